"""Names of genes and of cells: what a label may be, and which of the two the rows of a file are."""

from __future__ import annotations

import pandas as pd

from vcc_fm.inspection.genes import GeneFacts, gene_names, is_ensembl
from vcc_fm.inspection.labels import read_obs
from vcc_fm.inspection.perturbation import GeneNames

_BARCODE = r"(.*[_:#\-])?[ACGT]{10,}([-_.:].*)?$"
_MITOCHONDRIAL = r"(MT|mt)-[A-Za-z]"
_LEAST_MITOCHONDRIAL = 3


def known_names(var: pd.DataFrame, genes: GeneFacts) -> GeneNames:
    """The names that a recipe reads, and others; all are read where nothing looks like symbols.

    Args:
        var: table of the matrix' columns.
        genes: how its genes are named.
    """
    columns = ["index", *(one.column for one in genes.names if one.column != "index")]
    names = {column: _stripped(gene_names(var, column)) for column in columns}
    read = genes.symbols or genes.incomplete
    if read is None:
        return GeneNames(frozenset().union(*names.values()), {})
    elsewhere = {
        "the var index" if column == "index" else f"var column {column!r}": found
        for column, found in names.items()
        if column != read
    }
    return GeneNames(names[read], elsewhere)


def _stripped(names: pd.Series) -> frozenset[str]:
    return frozenset(names.dropna().astype(str).str.strip()) - {""}


def transposed(obs: pd.DataFrame, var: pd.DataFrame, names: GeneNames) -> bool:
    """Whether the rows of a file are genes and its columns cells.

    Args:
        obs: table of the rows.
        var: table of the columns.
        names: of the columns.
    """
    rows, columns = pd.Series(obs.index.astype(str)), pd.Series(var.index.astype(str))
    genes = is_ensembl(rows) or int(rows.str.match(_MITOCHONDRIAL).sum()) >= _LEAST_MITOCHONDRIAL
    if not genes:
        return False
    if columns.str.match(_BARCODE).mean() >= 0.5:
        return True
    labels = read_obs(var, GeneNames(frozenset(rows), {}), None)
    return any(one.controls or one.genes >= 0.5 for one in labels.perturbations)
