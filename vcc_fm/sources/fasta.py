"""Protein sequences from a FASTA file, with their gene symbols: UniProt, Ensembl ``pep`` or plain headers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, NamedTuple

from vcc_fm.ground.errors import UserError
from vcc_fm.sources.remote import open_local, read_bytes

Kind = Literal["uniprot", "ensembl", "plain"]
_Key = tuple[str, str]
"""What tells the proteins of a file apart: accession, in plain headers with the symbol before it."""

_BLOCK = 1 << 20
# The IUPAC codes B J Z X for uncertain amino acids, U and O for the two rare ones, and the gap.
_UNCERTAIN = b"BJZXUO-"
_LETTERS = b"ACDEFGHIKLMNPQRSTVWY" + _UNCERTAIN
_NUCLEOTIDES = re.compile(rb"[ACGTUN]{60,}")
_SPACE = b" \t\n\r\v\f"

_UNIPROT = re.compile(r"(?:sp|tr)\|([^|\s]+)\|\S+")
_UNIPROT_GENE = re.compile(r"\sGN=(.+?)(?=\s[A-Z]{2}=|$)")
_UNIPROT_ORGANISM = re.compile(r"\sOX=(\d+)")
_ENSEMBL = re.compile(r"(\S+) pep(?::\S+)? .*\bgene:")
_ENSEMBL_GENE = re.compile(r"\sgene_symbol:(\S+)")
_KINDS: tuple[tuple[Kind, re.Pattern[str], re.Pattern[str]], ...] = (
    ("uniprot", _UNIPROT, _UNIPROT_GENE),
    ("ensembl", _ENSEMBL, _ENSEMBL_GENE),
)
# What stands first in headers of RefSeq, GENCODE and bare Ensembl files: an id of a protein, not a gene symbol.
_PROTEIN_ID = re.compile(r"[ANXWY]P_\d+|ENS[A-Z]*P\d{11}|\S*\|")

_STOPPED = "with a stop inside the sequence"
_TWICE = "under a header that comes twice, with another sequence,"
# Smallest share of a file's entries: below it the file is a mixture, and nobody can say which organism to keep.
_MAIN_ORGANISM = 0.9


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
        kind: the form of most headers.
        entries: number of entries, those left out included.
        genes: number of distinct symbols.
        left_out: reason -> ids (or symbols, where there is no id) of the entries left out for it.
        faulty: symbol -> what is wrong with its first entry, of genes that have no sound one. Ensembl's translations
            with a stop inside are no fault of the file.
        repairs: name of a repair -> number of entries it touched.
    """

    kind: Kind
    entries: int
    genes: int
    left_out: dict[str, list[str]]
    faulty: dict[str, str]
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


def read_proteins(path: str | Path) -> ProteinFasta:
    """Read the proteins of a FASTA file.

    Each header is of one of three kinds:

    * UniProt, ``>sp|P04637|P53_HUMAN … OX=9606 GN=TP53 …``; an isoform has its own accession (``P04637-2``);
    * Ensembl, ``>ENSP00000269305.4 pep … gene_symbol:TP53 …``;
    * plain, ``>SYMBOL [id …]``: a symbol that comes again under another id is an isoform.

    An entry that cannot be used is left out and named in the report, because nobody may ask for its gene: one without
    a gene symbol, a sequence or a standard amino acid; with a stop inside or a character that stands for no amino
    acid; of nucleotides; of another organism than the rest; or under a header that comes twice, with another sequence.
    Who needs the gene looks into ``faulty``. Lower case is read as upper case, one ``*`` (stop) at the end of a
    sequence is taken off, and an entry that comes again is read once.

    Args:
        path: FASTA file, plain or gzip (told by the content): a path, ``https://`` or ``hf://`` as ``open_local``.

    Raises:
        UserError: the file is missing, cut short or no FASTA; it is a mixture of organisms; or no entry can be used.
    """
    local = open_local(str(path))
    with read_bytes(local, "FASTA") as file:
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


def _entries(file: IO[bytes], where: Path) -> Iterator[tuple[str, bytes]]:
    """(header without ``>``, lines of the sequence), a block of the file and an entry in memory at a time."""
    start = file.read(_BLOCK).removeprefix(b"\xef\xbb\xbf").lstrip(_SPACE)
    if not start.startswith(b">"):
        found = start[:20].decode("ascii", "replace")
        raise UserError(f"{where}: not FASTA: starts with {found!r} where a header '>…' is expected")
    for entry in _split(start[1:], file):
        header, _, body = entry.partition(b"\n")
        yield header.decode("utf-8", "replace").rstrip(), body


def _split(block: bytes, file: IO[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    while block:
        *whole, last = block.split(b"\n>")
        for end in whole:
            yield b"".join([*parts, end])
            parts = []
        # It may be the first byte of what stands between two entries.
        waiting = b"\n" if last.endswith(b"\n") else b""
        parts.append(last.removesuffix(waiting))
        more = file.read(_BLOCK)
        block = waiting + more if more else b""
    yield b"".join(parts)


@dataclass
class _LeftOut:
    """The entries that are left out, as :class:`FastaReport` has them, and what is wrong with each."""

    names: dict[str, list[str]] = field(default_factory=dict)
    faulty: dict[str, str] = field(default_factory=dict)
    details: list[str] = field(default_factory=list)

    def add(self, reason: str, name: str, symbol: str, detail: str) -> None:
        self.names.setdefault(reason, []).append(name)
        self.details.append(detail)
        if symbol:
            self.faulty.setdefault(symbol, detail)


def _parse(entries: Iterator[tuple[str, bytes]], where: str) -> ProteinFasta:
    proteins: dict[_Key, Protein] = {}
    organism_of: dict[_Key, str] = {}
    unsound: set[_Key] = set()
    left_out = _LeftOut()
    kinds: Counter[Kind] = Counter()
    repairs: Counter[str] = Counter()
    for number, (header, body) in enumerate(entries, start=1):
        kind, symbol, accession = _names(header)
        kinds[kind] += 1
        raw = body.translate(None, _SPACE)
        upper = raw.upper()
        residues = upper.removesuffix(b"*")
        name = accession or symbol or f"entry {number}"
        entry = f"entry {number} ({' '.join(header.split()[:2])})"
        if fault := _fault(header, kind, symbol, residues):
            reason, detail = fault
            expected = kind == "ensembl" and reason == _STOPPED
            left_out.add(reason, name, "" if expected else symbol, f"{entry}: {detail}")
            continue
        key = (symbol if kind == "plain" else "", accession)
        protein = Protein(symbol, accession, residues.decode("ascii"))
        if key not in proteins:
            proteins[key] = protein
            if kind == "uniprot" and (organism := _UNIPROT_ORGANISM.search(header)):
                organism_of[key] = organism[1]
            repairs["in lower case read as upper case"] += upper != raw
            repairs["with a stop at the end taken off"] += residues != upper
        elif proteins[key] == protein:
            repairs["that come again read once"] += 1
        else:
            detail = f"{entry}: its header comes twice, with another sequence; an isoform needs an id of its own"
            for _ in range(1 if key in unsound else 2):  # the first time both are left out
                left_out.add(_TWICE, name, symbol, detail)
            unsound.add(key)

    for key, detail in _of_other_organisms(organism_of, where).items():
        unsound.add(key)
        left_out.add("of another organism", proteins[key].accession, proteins[key].symbol, detail)
    sound = [protein for key, protein in proteins.items() if key not in unsound]
    if not sound:
        raise UserError(f"{where}: none of the {kinds.total()} proteins can be used; {left_out.details[0]}")
    (kind, most), symbols = kinds.most_common(1)[0], {protein.symbol for protein in sound}
    repairs[f"with another header than the {kind} one of most"] = kinds.total() - most
    report = FastaReport(
        kind,
        kinds.total(),
        len(symbols),
        left_out.names,
        {symbol: detail for symbol, detail in left_out.faulty.items() if symbol not in symbols},
        {repair: number for repair, number in repairs.items() if number},
    )
    return ProteinFasta(sound, report)


def _of_other_organisms(organism_of: dict[_Key, str], where: str) -> dict[_Key, str]:
    """The proteins that are not of the organism that nearly all are of, and what is wrong with each."""
    counted = Counter(organism_of.values())
    if not counted:
        return {}
    main, most = counted.most_common(1)[0]
    if most < _MAIN_ORGANISM * counted.total():
        first = {one: accession for (_, accession), one in reversed(organism_of.items())}
        firsts = [f"OX={one} in {first[one]}" for one in list(counted)[:3]]
        raise UserError(
            f"{where}: proteins of {len(counted)} organisms ({', '.join(firsts)}), which have genes of the same "
            "symbols; keep one"
        )
    return {
        (symbol, accession): f"{accession}: is of organism OX={one} in a file of OX={main}"
        for (symbol, accession), one in organism_of.items()
        if one != main
    }


def _names(header: str) -> tuple[Kind, str, str]:
    """Kind of a header, gene symbol and accession; empty where the header has none."""
    for kind, accession, gene in _KINDS:
        if identity := accession.match(header):
            symbol = gene.search(header)
            return kind, symbol[1] if symbol else "", identity[1]
    words = header.split(maxsplit=2)
    if not words or header[0].isspace():
        return "plain", "", ""
    if _PROTEIN_ID.match(words[0]):
        return "plain", "", words[0]
    return "plain", words[0], words[1] if len(words) > 1 else ""


def _fault(header: str, kind: Kind, symbol: str, residues: bytes) -> tuple[str, str] | None:
    """Why an entry cannot be used, as the report counts it and as a message tells it."""
    if not symbol:
        if kind == "plain" and header and not header[0].isspace():
            use = "use '>SYMBOL [id]', UniProt or Ensembl pep headers"
            return "named by the id of a protein", f"names a protein, not a gene; {use}"
        return "without a gene symbol", f"has no gene symbol in its header {'>' + header[:40]!r}"
    if not residues:
        return "without a sequence", "has no sequence; the file may be cut short"
    # Deleting the letters is a pass in C; only a sequence with something left is searched for it.
    foreign = residues.translate(None, _LETTERS)
    if foreign:
        position = residues.index(foreign[:1]) + 1
        detail = f"{foreign[:1].decode('ascii', 'replace')!r} at residue {position} stands for no amino acid"
        return _STOPPED if foreign[:1] == b"*" else "with a character that stands for no amino acid", detail
    if not residues.strip(_UNCERTAIN):
        return "without a standard amino acid", f"has no standard amino acid, found {residues[:20].decode('ascii')!r}"
    if _NUCLEOTIDES.fullmatch(residues):
        return "of nucleotides", "holds nucleotides; protein sequences are expected"
    return None
