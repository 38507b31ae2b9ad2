"""Gene symbols of a file, and the one gene axis that several files share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from vcc_fm.ground.errors import UserError, reading
from vcc_fm.ground.paths import expand
from vcc_fm.recipe.data import SourceConfig
from vcc_fm.sources.labels import missing_labels
from vcc_fm.sources.perturbations import combination
from vcc_fm.sources.symbols import ENSEMBL_ID, Renamed, SymbolTable, approved_symbols

_HEADERS = {"gene_name", "gene_symbol"}


class GeneColumns(NamedTuple):
    """The symbols of one matrix.

    Attributes:
        genes: [G] str, distinct symbols in order of first appearance.
        columns: [columns of the file] int32, position of each column's symbol in ``genes``.
        repairs: name of a repair -> number of columns it touched.
        renamed: symbol of the file -> the approved symbol that took its place.
    """

    genes: np.ndarray
    columns: np.ndarray
    repairs: dict[str, int]
    renamed: dict[str, str]


def gene_columns(
    var: pd.DataFrame,
    column: str,
    duplicates: Literal["refuse", "sum"],
    where: str,
    names: SymbolTable | None = None,
    pins: Mapping[str, str] | None = None,
) -> GeneColumns:
    """Read the gene symbols of a matrix.

    Args:
        var: table of the matrix' columns.
        column: column of ``var`` with the symbols, or ``index``.
        duplicates: what to do with a symbol that repeats: refuse it, or give its columns one position.
        where: source and file, for messages.
        names: other names of genes; symbols are brought to their approved symbols by :func:`approved_symbols`. Where
            that gives two columns one symbol, they keep their own, unless ``duplicates`` is ``sum``.
        pins: symbol -> the gene that it stands for, where ``names`` cannot tell.

    Raises:
        UserError: the column is absent, a symbol is missing, symbols are numbers or Ensembl gene ids of which
            ``names`` knows hardly any, or a symbol repeats and ``duplicates`` is ``refuse``.
    """
    label, text = _text(var, column, where)
    symbols = text.str.strip()
    renaming = Renamed(symbols.to_numpy(), {}, {}, {})
    if names is not None:
        renaming = approved_symbols(symbols.to_numpy(), names, pins, merge=duplicates == "sum")
    ids, brought = symbols.str.match(ENSEMBL_ID), pd.Series(renaming.symbols, dtype=object)
    unnamed = ids & brought.str.match(ENSEMBL_ID)
    known = "" if names is None else f"data.names.symbols knows {int((ids & ~unnamed).sum())} of {len(ids)}; "
    numbers = symbols.str.match(r"\d+(\.\d+)?$")
    for wrong, what, told in ((unnamed, "Ensembl gene ids", known), (numbers, "numbers", "")):
        if len(symbols) and wrong.mean() >= 0.9:
            raise UserError(
                f"{where}: {label} holds {what} ({symbols.iloc[0]}, …) where gene symbols are expected; {told}"
                + _symbol_hint(var, column, wrong is unnamed)
            )
    repeated = symbols[symbols.duplicated()].unique()
    if len(repeated) and duplicates == "refuse":
        raise UserError(
            f"{where}: {label} repeats {len(repeated)} gene symbol(s): {_names(repeated)}; "
            "set duplicate_genes to sum, or make them distinct in the file"
        )
    unknown = "Ensembl ids without a symbol of their own in data.names.symbols, left as they are"
    taken = "gene symbols whose approved symbol another column stands for, left as they are"
    repaired = {
        "gene symbols stripped of spaces": symbols != text,
        "gene symbols brought to their approved symbol": symbols.isin(renaming.renamed) & ~ids,
        "Ensembl ids brought to the approved symbol": ids & ~unnamed,
        unknown: unnamed & (names is not None),
        "gene symbols that may stand for several genes, left as they are": symbols.isin(renaming.ambiguous),
        taken: symbols.isin(renaming.taken),
        "columns summed into a gene of the same symbol": brought.duplicated(),
    }
    repairs = {repair: int(columns.sum()) for repair, columns in repaired.items() if columns.any()}
    codes, genes = pd.factorize(brought)
    return GeneColumns(genes.to_numpy(dtype=str), codes.astype(np.int32), repairs, renaming.renamed)


def _text(var: pd.DataFrame, column: str, where: str) -> tuple[str, pd.Series]:
    """What a column of ``var`` is called in messages, and its values as they stand, all of which name a gene."""
    if column != "index" and column not in var.columns:
        raise UserError(f"{where}: var has no column {column!r}; set symbols to index or one of {_names(var.columns)}")
    label = "var index" if column == "index" else f"var column {column!r}"
    raw = pd.Series(var.index if column == "index" else var[column].to_numpy(), dtype=object)
    missing = missing_labels(raw)
    if missing.any():
        raise UserError(
            f"{where}: {label} has {int(missing.sum())} of {len(raw)} genes without a symbol, the first in row "
            f"{int(missing.argmax())}; set symbols to a column that names every gene"
        )
    return label, raw.astype(str)


def approved_targets(
    labels: np.ndarray, config: SourceConfig, named: GeneColumns, names: SymbolTable, pins: Mapping[str, str] | None
) -> np.ndarray:
    """Perturbation labels whose target genes are named as the genes of the matrix are.

    Args:
        labels: [L] str, distinct.
        config: of the source: its control label stays, its separator joins target genes.
        named: the genes of the matrix. A target gene among them is renamed if and as its column is.
        names: other names of genes, for target genes that the matrix lacks.
        pins: symbol -> gene that it stands for, before everything else.

    Returns:
        [L] str; two labels may have become one.
    """
    distinct = [label for label in labels if label != config.control]
    targets = dict.fromkeys(part for label in distinct for part in label.split(config.separator))
    known = set(named.genes) | named.renamed.keys()
    elsewhere = np.array([target for target in targets if target not in known], dtype=str)
    return renamed_targets(
        labels, config, approved_symbols(elsewhere, names, merge=True).renamed | named.renamed | dict(pins or {})
    )


def renamed_targets(labels: np.ndarray, config: SourceConfig, renamed: Mapping[str, str]) -> np.ndarray:
    """[L] labels with target genes under other names, those that ``renamed`` has; the control stays."""
    # Two names of one gene in a combination become one target.
    found = [
        label
        if label == config.control
        else combination((renamed.get(part, part) for part in label.split(config.separator)), config.separator)
        for label in labels
    ]
    return np.array(found, dtype=object)


def _symbol_hint(var: pd.DataFrame, column: str, ids: bool) -> str:
    """Which part of ``var`` looks like symbols: words, no ids, mostly distinct."""
    candidates = {"index": pd.Series(var.index, dtype=object)} | {name: var[name] for name in var.columns}
    fitting = []
    for name, values in candidates.items():
        text = values.dropna().astype(str)
        words = text.str.match(r"[A-Za-z][\w.\-]*$") & ~text.str.match(ENSEMBL_ID)
        if name != column and len(text) and words.mean() >= 0.8 and text.nunique() >= 0.5 * len(text):
            fitting.append(name)
    if fitting:
        return f"set symbols to {' or '.join(map(str, fitting))}"
    instead = (
        ", or give data.names.symbols a table of Ensembl ids, such as HGNC's complete set, and set data.names.approved"
        if ids
        else ""
    )
    return f"no column of var looks like symbols; add one to the file{instead}"


def _names(values: object, most: int = 8) -> str:
    names = [str(value) for value in np.asarray(values, dtype=object)]
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "") if names else "none"


def gene_axis(sources: list[np.ndarray], rule: str) -> np.ndarray:
    """The ordered symbols on which all sources are put.

    Args:
        sources: per source, [G] str symbols, distinct.
        rule: ``union`` (order of first appearance), ``intersection`` (order of the first source), or the path of a
            text file with one symbol a line, optionally under a header ``gene_name`` or ``gene_symbol``.

    Returns:
        [G] str, distinct symbols.

    Raises:
        UserError: no gene is common to all sources, or the file is missing, empty, repeats a symbol, has more than
            one column, or names no gene of any source.
    """
    union = pd.unique(np.concatenate(sources))
    if rule == "union":
        return union
    if rule == "intersection":
        axis = sources[0][np.logical_and.reduce([np.isin(sources[0], other) for other in sources])]
        if not len(axis):
            firsts = "; ".join(_names(genes, 3) for genes in sources)
            raise UserError(f"data.genes=intersection: no gene is in all sources ({firsts}); check their symbols")
        return axis
    axis = read_axis(expand(rule))
    if not np.isin(axis, union).any():
        raise UserError(f"{rule}: none of its genes ({_names(axis, 3)}) is in a source ({_names(union, 3)})")
    return axis


def read_axis(path: Path, key: str = "data.genes") -> np.ndarray:
    """The symbols of a text file that ``key`` names, [G] str; refused as :func:`gene_axis` says."""
    with reading(f"{key}={path}", "text", "give a file with one gene symbol a line"):
        try:
            lines = [line.strip().strip('"') for line in path.read_text("utf-8-sig").splitlines()]
        except FileNotFoundError:
            raise UserError(
                f"{key}={path}: no such file; write union, intersection, or a file with one symbol a line"
            ) from None
    symbols = [line for line in lines if line]
    if symbols and symbols[0].lower() in _HEADERS:
        del symbols[0]
    if not symbols:
        raise UserError(f"{key}={path}: names no gene")
    wrong = next((line for line in symbols if re.search(r"[,;\t ]", line)), None)
    if wrong is not None:
        raise UserError(f"{key}={path}: one gene symbol a line is expected, found {wrong[:60]!r}")
    axis = np.array(symbols)
    repeated = pd.Series(axis)[pd.Series(axis).duplicated()].unique()
    if len(repeated):
        raise UserError(f"{key}={path}: repeats {len(repeated)} gene symbol(s): {_names(repeated)}")
    return axis
