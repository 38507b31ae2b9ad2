"""Protein sequences from a FASTA file, with their gene symbols: UniProt, Ensembl ``pep`` or plain headers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NamedTuple

from vcc_fm.errors import UserError
from vcc_fm.sources.remote import open_local, read_bytes

Kind = Literal["uniprot", "ensembl", "plain"]

_BLOCK = 1 << 20
# The 20 amino acids, the IUPAC codes B J Z X for uncertain ones, U and O for the two rare ones, and the gap.
_LETTERS = b"ACDEFGHIKLMNPQRSTVWYBJOUXZ-"
_NUCLEOTIDES = re.compile(r"[ACGTUN]{60,}")
_SPACE = b" \t\n\r\v\f"

_UNIPROT = re.compile(r"(?:sp|tr)\|([^|\s]+)\|\S+")
_UNIPROT_GENE = re.compile(r"\sGN=(.+?)(?=\s[A-Z]{2}=|$)")
_UNIPROT_ORGANISM = re.compile(r"\sOX=(\d+)")
_ENSEMBL = re.compile(r"(\S+) pep(?::\S+)? .*\bgene:")
_ENSEMBL_GENE = re.compile(r"\sgene_symbol:(\S+)")
# What stands first in headers of RefSeq, GENCODE and bare Ensembl files: an id of a protein, not a gene symbol.
_PROTEIN_ID = re.compile(r"[ANXWY]P_\d+|ENS[A-Z]*P\d{11}|\S*\|")

_NAMELESS = "without a gene symbol"
_STOPPED = "with a stop inside the sequence"


class Protein(NamedTuple):
    """One sequence.

    Attributes:
        symbol: gene symbol, as the header has it.
        accession: id of the protein: UniProt accession, Ensembl protein id, second word of a plain header or empty.
        sequence: one-letter amino acids, upper case, without a stop at the end.
    """

    symbol: str
    accession: str
    sequence: str


@dataclass(frozen=True)
class FastaReport:
    """What was read.

    Attributes:
        kind: the form of the file's headers.
        entries: number of entries, those left out included.
        genes: number of distinct symbols.
        left_out: reason -> headers' first words of the entries left out for it.
        repairs: name of a repair -> number of entries it touched.
    """

    kind: Kind
    entries: int
    genes: int
    left_out: dict[str, list[str]]
    repairs: dict[str, int]

    def text(self) -> str:
        """One line for a reader, with the first few of the entries left out."""
        parts = [f"{self.entries:,} proteins of {self.genes:,} genes, {self.kind} headers"]
        for reason, names in self.left_out.items():
            parts.append(f"{len(names):,} {reason} left out ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})")
        return "; ".join(parts + [f"{count:,} {name}" for name, count in self.repairs.items()])


class ProteinFasta(NamedTuple):
    """The proteins of a file, in its order, and what was read."""

    proteins: list[Protein]
    report: FastaReport


def read_proteins(
    path: str | Path, get: str | None = None, progress: Callable[[int, int], None] | None = None
) -> ProteinFasta:
    """Read the proteins of a FASTA file.

    The headers are of one kind, told by the first one:

    * UniProt, ``>sp|P04637|P53_HUMAN … OX=9606 GN=TP53 …``; an isoform has its own accession (``P04637-2``);
    * Ensembl, ``>ENSP00000269305.4 pep … gene_symbol:TP53 …``;
    * plain, ``>SYMBOL [id …]``: a symbol that comes again under another id is an isoform.

    UniProt and Ensembl entries without a gene symbol are left out and named in the report, and so are Ensembl's
    translations with a stop inside (pseudogenes and loss-of-function alleles). Lower case is read as upper case, and
    one ``*`` (stop) at the end of a sequence is taken off.

    Args:
        path: FASTA file, plain or gzip (told by the content): a path, ``https://`` or ``hf://`` as ``open_local``.
        get: where to get the file, for the message when it is missing.
        progress: of a download, (bytes so far, bytes in all or 0).

    Raises:
        UserError: the file is missing, cut short or no FASTA; a header is of another kind, has no symbol or repeats;
            UniProt entries are of several organisms; a sequence is empty, holds a character that stands for no amino
            acid, or is nucleotides.
    """
    local = open_local(str(path), get, progress)
    with read_bytes(local) as file:
        return _parse(_entries(file, local), str(local))


def isoforms(proteins: list[Protein]) -> dict[str, list[Protein]]:
    """The proteins of each gene that differ in their sequence, the first of equal ones; both in order of the file.

    Ensembl lists one protein once per transcript and alternative locus: counted each time, its weight in the mean
    over a gene's isoforms would follow the annotation and not the proteins.
    """
    genes: dict[str, dict[str, Protein]] = {}
    for protein in proteins:
        genes.setdefault(protein.symbol, {}).setdefault(protein.sequence, protein)
    return {symbol: list(distinct.values()) for symbol, distinct in genes.items()}


def read_fasta(path: str | Path, get: str | None = None) -> dict[str, list[str]]:
    """Distinct sequences of each gene symbol, both in order of the file; else as :func:`read_proteins`."""
    genes = isoforms(read_proteins(path, get).proteins)
    return {symbol: [protein.sequence for protein in proteins] for symbol, proteins in genes.items()}


def _entries(file: IO[bytes], where: Path) -> Iterator[tuple[str, bytes]]:
    """(header without ``>``, lines of the sequence), a block of the file in memory at a time."""
    pending = file.read(_BLOCK).removeprefix(b"\xef\xbb\xbf").lstrip(_SPACE)
    if not pending.startswith(b">"):
        found = pending[:20].decode("ascii", "replace")
        raise UserError(f"{where}: not FASTA: starts with {found!r} where a header '>…' is expected")
    for number, entry in enumerate(_split(pending[1:], file), start=1):
        header, _, body = entry.partition(b"\n")
        if not header.isascii():
            raise UserError(f"{where}: entry {number} has a header that is no ASCII text; is this a FASTA file?")
        yield header.decode("ascii").rstrip(), body


def _split(pending: bytes, file: IO[bytes]) -> Iterator[bytes]:
    for block in iter(lambda: file.read(_BLOCK), b""):
        *whole, pending = (pending + block).split(b"\n>")
        yield from whole
    yield from pending.split(b"\n>")


def _parse(entries: Iterator[tuple[str, bytes]], where: str) -> ProteinFasta:
    proteins: list[Protein] = []
    seen: set[tuple[str, str]] = set()
    organisms: dict[str, str] = {}
    left_out: dict[str, list[str]] = {}
    kind: Kind | None = None
    count = lower = stops = 0
    for count, (header, body) in enumerate(entries, start=1):
        found = _kind(header)
        kind = kind or found
        entry = f"{where}: entry {count}"
        if found != kind:
            raise UserError(f"{entry} ('>{header[:40]}') has a {found} header in a {kind} file; give one kind a file")
        symbol, accession = _names(header, kind, entry)
        key = ("", accession) if kind != "plain" else (symbol or "", accession)
        if key in seen:
            name = " ".join(filter(None, key))
            raise UserError(f"{entry}: header '>{name}' comes twice; an isoform needs an id of its own")
        seen.add(key)
        if kind == "uniprot" and (organism := _UNIPROT_ORGANISM.search(header)):
            organisms.setdefault(organism[1], accession)
        raw = body.translate(None, _SPACE)
        upper = raw.upper()
        sequence = upper.removesuffix(b"*")
        lower += upper != raw
        stops += sequence != upper
        name = f"{entry} ({' '.join(header.split()[:2])})"
        if not symbol:
            left_out.setdefault(_NAMELESS, []).append(accession)
        elif kind == "ensembl" and b"*" in sequence:
            left_out.setdefault(_STOPPED, []).append(accession)
        else:
            proteins.append(Protein(symbol, accession, _checked(sequence, name)))
    if len(organisms) > 1:
        found_in = ", ".join(f"OX={organism} in {accession}" for organism, accession in list(organisms.items())[:3])
        raise UserError(
            f"{where}: proteins of {len(organisms)} organisms ({found_in}) with the same symbols; keep one"
        )
    assert kind is not None  # an empty file has been refused
    if not proteins:
        raise UserError(f"{where}: none of the {count} proteins has a gene symbol ({kind} headers); give one that has")
    repairs = {"in lower case read as upper case": lower, "with a stop at the end taken off": stops}
    genes = len({protein.symbol for protein in proteins})
    return ProteinFasta(proteins, FastaReport(kind, count, genes, left_out, {k: n for k, n in repairs.items() if n}))


def _kind(header: str) -> Kind:
    if _UNIPROT.match(header):
        return "uniprot"
    return "ensembl" if _ENSEMBL.match(header) else "plain"


def _names(header: str, kind: Kind, entry: str) -> tuple[str | None, str]:
    """Gene symbol, or None where a UniProt or Ensembl header has none, and accession."""
    if kind == "plain":
        words = header.split(maxsplit=2)
        if not words or header[0].isspace():
            raise UserError(f"{entry} has no gene symbol in its header {'>' + header[:40]!r}")
        if _PROTEIN_ID.match(words[0]):
            raise UserError(
                f"{entry}: '>{words[0]}' names a protein, not a gene; "
                "use '>SYMBOL [id]', UniProt or Ensembl pep headers"
            )
        return words[0], words[1] if len(words) > 1 else ""
    accession, gene = (_UNIPROT, _UNIPROT_GENE) if kind == "uniprot" else (_ENSEMBL, _ENSEMBL_GENE)
    identity, symbol = accession.match(header), gene.search(header)
    assert identity is not None  # the kind was told by it
    return (symbol[1] if symbol else None), identity[1]


def _checked(residues: bytes, where: str) -> str:
    if not residues:
        raise UserError(f"{where}: has no sequence; the file may be cut short")
    # Deleting the letters is a pass in C; only a sequence with something left is searched for it.
    foreign = residues.translate(None, _LETTERS)
    if foreign:
        position = residues.index(foreign[:1])
        character = foreign[:1].decode("ascii", "replace")
        raise UserError(f"{where}: {character!r} at residue {position + 1} stands for no amino acid")
    sequence = residues.decode("ascii")
    if _NUCLEOTIDES.fullmatch(sequence):
        raise UserError(f"{where}: holds nucleotides; protein sequences are expected")
    return sequence
