"""One gene under several symbols: approved, previous and alias symbols as the HGNC records them.

A screen and a protein file may be years apart in nomenclature, in either direction. A symbol is therefore looked up as
it is, then through the one gene that it can stand for; where it can stand for several, all are reported and none is
taken: `TAZ` is a previous symbol of TAFAZZIN and an alias of WWTR1, two unrelated proteins. An Ensembl gene id, of any
version, is one more name of its gene.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from vcc_fm.ground.errors import UserError

NameKind = Literal["approved", "previous", "alias", "ensembl"]
How = Literal["exact", "approved", "previous", "alias", "ensembl", "pinned", "ambiguous", "missing"]

ENSEMBL_ID = r"ENS[A-Z]*G\d+"
"""What an Ensembl gene id begins with, of any species; a version may follow."""
_VERSIONED = re.compile(rf"({ENSEMBL_ID})\.\d+")


class Resolution(NamedTuple):
    """What became of one symbol.

    Attributes:
        symbol: as asked.
        how: exact (known under this symbol), approved, previous, alias or ensembl (known under another name of its
            gene, of that kind), pinned (as the recipe says), ambiguous or missing.
        found: the known symbol, or None where it is ambiguous or missing.
        gene: approved symbol of its gene, or None where the table does not tell one.
        candidates: where it is ambiguous: the approved symbols or, when the gene is certain, its known symbols.
        note: a warning or a hint, or empty.
    """

    symbol: str
    how: How
    found: str | None = None
    gene: str | None = None
    candidates: tuple[str, ...] = ()
    note: str = ""


class SymbolTable:
    """Which genes a symbol can stand for, and which symbols a gene has. An empty table knows no other names."""

    def __init__(self, names: Iterable[tuple[str, str, NameKind]] = ()) -> None:
        """Take (approved symbol of the gene, symbol, kind of the symbol); the first kind of a pair counts."""
        self._names: dict[str, dict[str, NameKind]] = {}
        self._genes: dict[str, list[str]] = {}
        for gene, symbol, kind in names:
            of_gene = self._names.setdefault(gene, {gene: "approved"})
            symbol = without_version(symbol)
            if symbol not in of_gene:
                of_gene[symbol] = kind
                self._genes.setdefault(symbol, []).append(gene)

    def __len__(self) -> int:
        """Number of approved symbols."""
        return len(self._names)

    def genes(self, symbol: str) -> tuple[str, ...]:
        """Approved symbols of the genes it can stand for: an approved symbol stands for its own gene alone."""
        return (symbol,) if symbol in self._names else tuple(self._genes.get(without_version(symbol), ()))

    def resolve(self, symbol: str, known: AbstractSet[str], pins: Mapping[str, str] | None = None) -> Resolution:
        """Find the known symbol of the gene that a symbol stands for.

        Symbols are compared as written, so that a mouse symbol (Trp53) never meets a human one.

        Args:
            symbol: as the screen has it.
            known: the symbols that there are, as the protein file has them; a set, for the speed of look-ups.
            pins: symbol -> the gene that it stands for; it goes before everything else.
        """
        if pins and symbol in pins:
            return self._pinned(symbol, pins[symbol], known)
        genes = self.genes(symbol)
        if symbol in known:
            note = ""
            if genes and symbol not in genes:
                note = f"taken as it is, but it is no approved symbol and also a name of {_or(genes)}"
            return Resolution(symbol, "exact", symbol, genes[0] if len(genes) == 1 else None, note=note)
        if _mouse_like(symbol) and symbol not in self._names:
            genes = ()
        reached = {gene: self._known_names(gene, known) for gene in genes}
        if not any(reached.values()):
            gene_if_one = genes[0] if len(genes) == 1 else None
            return Resolution(symbol, "missing", None, gene_if_one, note=self._hint(symbol, genes, known))
        if len(genes) > 1:
            return Resolution(symbol, "ambiguous", candidates=genes, note=f"may be {self._described(symbol, genes)}")
        gene = genes[0]
        names = reached[gene]
        certain = [name for name in names if self.genes(name) == (gene,)]
        if len(certain) == 1:
            return Resolution(symbol, self._names[gene][certain[0]], certain[0], gene)
        if certain:
            note = f"the proteins have several of its names: {_or(certain)}"
        else:
            note = "; ".join(f"{name} may be {self._described(name, self.genes(name))}" for name in names)
        return Resolution(symbol, "ambiguous", None, gene, tuple(certain or names), note)

    def _known_names(self, gene: str, known: AbstractSet[str]) -> list[str]:
        """Its approved symbol where that is known, else its known names that are not approved for another gene."""
        if gene in known:
            return [gene]
        names = self._names.get(gene, ())
        return [name for name in names if name in known and name not in self._names and not _mouse_like(name)]

    def _pinned(self, symbol: str, gene: str, known: AbstractSet[str]) -> Resolution:
        if gene in known:
            return Resolution(symbol, "pinned", gene, gene)
        inner = self.resolve(gene, known)
        if inner.found is None:
            return Resolution(
                symbol, inner.how, None, gene, inner.candidates, f"pinned to {gene}, which is {inner.how}"
            )
        return Resolution(symbol, "pinned", inner.found, gene)

    def _described(self, symbol: str, genes: Iterable[str]) -> str:
        return _or(f"{gene} (as {self._names[gene][without_version(symbol)]})" for gene in genes)

    def _hint(self, symbol: str, genes: tuple[str, ...], known: AbstractSet[str]) -> str:
        if len(genes) > 1:
            return f"may be {self._described(symbol, genes)}; the proteins have none of them"
        for other in (symbol.upper(), symbol.capitalize()):
            if other != symbol and (other in known or other in self._genes or other in self._names):
                return f"{other} is another symbol: case matters, and mouse and human symbols differ by it"
        # A word (a drug, a stimulus) is written like Gapdh; a number at its end makes it look like a gene.
        mouse = _mouse_like(symbol) and symbol[0].isupper() and symbol[-1].isdigit()
        return "looks like a mouse symbol" if mouse else ""


def without_version(name: str) -> str:
    """An Ensembl gene id without its version (``ENSG00000141510.18``); any other name as it is."""
    versioned = _VERSIONED.fullmatch(name) if name.startswith("ENS") else None
    return versioned[1] if versioned else name


def _mouse_like(symbol: str) -> bool:
    """Trp53, Gapdh: no human gene has a lower-case second letter, though some of the HGNC's aliases do."""
    return symbol[1:2].islower()


def _or(names: Iterable[str]) -> str:
    return " or ".join(names)


# ---------------------------------------------------------------------------------------------------- approved symbols
class Renamed(NamedTuple):
    """Symbols of a file brought to the approved symbols of their genes.

    Attributes:
        symbols: [n] str, as they are to be used.
        renamed: symbol -> the approved symbol that took its place; Ensembl id without symbol -> itself, unversioned.
        ambiguous: symbol that was left as it is -> the genes that it may stand for.
        taken: symbol that was left as it is -> its approved symbol, which another symbol of the file stands for too.
    """

    symbols: np.ndarray
    renamed: dict[str, str]
    ambiguous: dict[str, tuple[str, ...]]
    taken: dict[str, str]


def approved_symbols(
    symbols: np.ndarray, table: SymbolTable, pins: Mapping[str, str] | None = None, merge: bool = False
) -> Renamed:
    """Bring symbols to the approved symbols of their genes, so that files of different years agree on names.

    A symbol is renamed where it stands for exactly one gene and is not approved itself. What is approved, unknown,
    written like a mouse symbol or ambiguous stays. Two symbols of a file are two columns: neither becomes the other
    by a guess, so that a symbol also stays where the file has its approved symbol, or another name of its gene. An
    Ensembl id that stays loses its version, unless the file has it in several.

    Args:
        symbols: [n] str, of one file.
        table: other names of genes.
        pins: symbol -> the gene that it stands for; it goes before the table.
        merge: rename a symbol even where its approved symbol is taken; the same symbol then stands there twice.
    """
    own = dict.fromkeys(map(str, symbols))
    wanted: dict[str, str] = {}
    ambiguous: dict[str, tuple[str, ...]] = {}
    for symbol in own:
        if pins and symbol in pins:
            genes: tuple[str, ...] = (pins[symbol],)
        else:
            genes = table.genes(symbol)
            if _mouse_like(symbol) and genes != (symbol,):
                genes = ()
        if len(genes) > 1:
            ambiguous[symbol] = genes
        elif genes and genes[0] != symbol:
            wanted[symbol] = genes[0]
    claims = Counter(wanted.values())
    taken = {symbol: gene for symbol, gene in wanted.items() if gene in own or claims[gene] > 1} if not merge else {}
    renamed = {symbol: gene for symbol, gene in wanted.items() if symbol not in taken}
    bare = {symbol: without_version(symbol) for symbol in own if symbol not in renamed}
    claims = Counter(bare.values())
    renamed |= {symbol: name for symbol, name in bare.items() if name != symbol and (merge or claims[name] == 1)}
    approved = np.array([renamed.get(symbol, symbol) for symbol in map(str, symbols)], dtype=str)
    return Renamed(approved, renamed, ambiguous, taken)


# ------------------------------------------------------------------------------------------------------------ coverage
class Coverage(NamedTuple):
    """What became of the symbols of a screen.

    Attributes:
        targets: one resolution a target gene.
        genes: one resolution a gene of the axis.
        shared: known symbol -> the symbols of the screen that lead to it, where several do.
    """

    targets: list[Resolution]
    genes: list[Resolution]
    shared: dict[str, list[str]]

    def found(self) -> dict[str, str]:
        """Symbol of the screen -> known symbol, of every target and gene that has one."""
        return {r.symbol: r.found for r in [*self.targets, *self.genes] if r.found is not None}

    def same(self) -> dict[str, str]:
        """Symbol of the screen -> known symbol, of those that share it with another."""
        return {symbol: known for known, symbols in self.shared.items() for symbol in symbols}

    def to_json(self) -> dict[str, object]:
        """Every symbol by what became of it, for a report file."""
        return {"targets": _sorted(self.targets), "genes": _sorted(self.genes), "shared": self.shared}

    def lines(self, most: int = 8) -> list[str]:
        """For a reader: counts, then up to ``most`` symbols of each kind that needs a look, targets first."""
        lines = []
        for what, resolutions in (("targets", self.targets), ("genes of the axis", self.genes)):
            counts = pd.Series([r.how for r in resolutions], dtype=object).value_counts()
            lines.append(
                f"{what}: {len(resolutions):,}, " + ", ".join(f"{how} {count:,}" for how, count in counts.items())
            )
            for how in ("ambiguous", "missing"):
                those = [r for r in resolutions if r.how == how]
                shown = ", ".join(r.symbol + (f" [{r.note}]" if r.note else "") for r in those[:most])
                more = f", … ({len(those):,} in all)" if len(those) > most else ""
                if those:
                    lines.append(f"  {how}: {shown}{more}")
        return lines


def coverage(
    targets: Iterable[str],
    axis: Iterable[str],
    table: SymbolTable,
    known: AbstractSet[str],
    pins: Mapping[str, str] | None = None,
) -> Coverage:
    """Resolve every target gene and every gene of the axis.

    Symbols of one axis name different genes. Where an ambiguous symbol stands on it beside another symbol of a
    candidate, its note says so, as a reason to pin the other candidate; the choice remains the recipe's.

    Args:
        targets: symbols of the target genes.
        axis: symbols of the gene axis.
        table: other names of genes; an empty table leaves exact matches and pins.
        known: the symbols that have a sequence or a vector.
        pins: symbol -> the gene that it stands for.

    Raises:
        UserError: a pin is of a symbol that is no target and not on the axis, or names no gene.
    """
    targets, axis = list(targets), list(axis)
    pins = pins or {}
    for symbol, gene in pins.items():
        if symbol not in {*targets, *axis}:
            raise UserError(f"data.names.pins: {symbol} is neither a target gene nor on the gene axis; remove it")
        if gene not in known and table.genes(gene) != (gene,):
            raise UserError(f"data.names.pins.{symbol}: {gene} is no approved symbol and has no protein; correct it")
    certain: dict[str, str] = {}
    for symbol in axis:
        genes = table.genes(symbol)
        if len(genes) == 1:
            certain.setdefault(genes[0], symbol)

    def resolved(symbol: str) -> Resolution:
        resolution = table.resolve(symbol, known, pins)
        beside = [gene for gene in resolution.candidates if gene in certain and certain[gene] != symbol]
        if not beside:
            return resolution
        there = ", ".join(gene if certain[gene] == gene else f"{gene} (as {certain[gene]})" for gene in beside)
        return resolution._replace(note=f"{resolution.note}; on the gene axis beside it: {there}")

    every = {symbol: resolved(symbol) for symbol in dict.fromkeys([*targets, *axis])}
    by_found: dict[str, list[str]] = {}
    for symbol, resolution in every.items():
        if resolution.found is not None:
            by_found.setdefault(resolution.found, []).append(symbol)
    shared = {name: symbols for name, symbols in by_found.items() if len(symbols) > 1}
    return Coverage([every[symbol] for symbol in targets], [every[symbol] for symbol in axis], shared)


def _sorted(resolutions: list[Resolution]) -> dict[str, object]:
    return {
        "exact": [r.symbol for r in resolutions if r.how == "exact"],
        "other name": {
            r.symbol: {"found": r.found, "how": r.how} for r in resolutions if r.found not in (None, r.symbol)
        },
        "ambiguous": {r.symbol: list(r.candidates) for r in resolutions if r.how == "ambiguous"},
        "missing": [r.symbol for r in resolutions if r.how == "missing"],
        "notes": {r.symbol: r.note for r in resolutions if r.note},
    }
