"""Protein sequences from a FASTA file whose headers start with the gene symbol."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

from vcc_fm.errors import UserError
from vcc_fm.recipe import expand

# The 20 amino acids, the IUPAC codes B J Z X for uncertain ones, U and O for the two rare ones, and the gap.
_FOREIGN = re.compile(r"[^ACDEFGHIKLMNPQRSTVWYBJOUXZ\-]")
_NUCLEOTIDES = re.compile(r"[ACGTUN]{60,}")


def read_fasta(path: str | Path, get: str | None = None) -> dict[str, list[str]]:
    """Read protein sequences by gene symbol.

    A header is ``>SYMBOL [id …]``; a symbol that comes again under another id is an isoform. Plain or gzip, told by
    the content. Lower case is read as upper case; one ``*`` (stop) at the end of a sequence is left out.

    Args:
        path: FASTA file; ``${VARIABLE}`` is expanded.
        get: where to get the file, for the message when it is missing.

    Returns:
        symbol -> sequences (one-letter amino acids), both in order of the file.

    Raises:
        UserError: the file is missing, cut short or no FASTA; a header has no symbol or repeats; a sequence is empty,
            holds a character that stands for no amino acid, or is nucleotides.
    """
    text = _read(expand(str(path)), get)
    before, *entries = re.split(r"^>", text, flags=re.MULTILINE)
    if before.strip() or not entries:
        raise UserError(f"{path}: not FASTA: starts with {text[:20]!r} where a header '>SYMBOL' is expected")
    sequences: dict[str, list[str]] = {}
    headers: set[tuple[str, ...]] = set()
    for number, entry in enumerate(entries, start=1):
        header, _, body = entry.partition("\n")
        words = tuple(header.split())
        if not words or header[0].isspace():
            raise UserError(f"{path}: entry {number} has no gene symbol in its header {'>' + header[:40]!r}")
        if words in headers:
            raise UserError(f"{path}: header {'>' + ' '.join(words)!r} comes twice; an isoform needs an id of its own")
        headers.add(words)
        sequence = "".join(body.split()).upper().removesuffix("*")
        _check(sequence, f"{path}: entry {number} ({' '.join(words[:2])})")
        sequences.setdefault(words[0], []).append(sequence)
    return sequences


def _read(path: Path, get: str | None) -> str:
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("ascii")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file" + (f"; get it from {get}" if get else "")) from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a FASTA file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: gzip file cut short or damaged ({error}); get it again") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not FASTA: holds bytes that are no ASCII text") from None


def _check(sequence: str, where: str) -> None:
    if not sequence:
        raise UserError(f"{where}: has no sequence; the file may be cut short")
    foreign = _FOREIGN.search(sequence)
    if foreign:
        raise UserError(f"{where}: {foreign[0]!r} at residue {foreign.start() + 1} stands for no amino acid")
    if _NUCLEOTIDES.fullmatch(sequence):
        raise UserError(f"{where}: holds nucleotides; protein sequences are expected")
