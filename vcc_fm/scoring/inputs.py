"""Reading the truth and the predictions, one context at a time, and refusing what cannot be scored."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from vcc_fm.ground.errors import UserError, reading
from vcc_fm.ground.words import listed
from vcc_fm.sources.controls import contexts_with, require_controls

COLUMNS = ("context", "perturbation")

#: The scorer refuses a cell with more counts than this (its preset's `max_counts_per_cell`).
MAXIMUM_DEPTH = 1_000_000


@dataclass(frozen=True)
class Labels:
    """The labels of a file, without its counts.

    Attributes:
        path: the h5ad file.
        cells: one row per cell, in file order, columns ``context`` and ``perturbation`` (strings).
        genes: gene symbols in file order.
    """

    path: Path
    cells: pd.DataFrame
    genes: pd.Index

    def groups(self, context: str) -> pd.Series[int]:
        """Number of cells of every perturbation label in a context."""
        return self.cells.loc[self.cells["context"] == context, "perturbation"].value_counts()

    def contexts(self) -> list[str]:
        """Contexts in order of first appearance."""
        return list(dict.fromkeys(self.cells["context"]))


def read_labels(path: Path) -> Labels:
    """Read the labels and the gene axis of an h5ad file.

    Raises:
        UserError: no such file, no h5ad file, a label column is missing or has empty fields, or a gene repeats.
    """
    file = _open(path)
    try:
        for column in COLUMNS:
            if column not in file.obs:
                raise UserError(f"{path}: obs has no column {column!r}, found {list(file.obs.columns)}")
            empty = int(file.obs[column].isna().sum())
            if empty:
                raise UserError(f"{path}: obs.{column} is empty for {empty} cells; label or drop them")
        cells = file.obs[list(COLUMNS)].astype(str).reset_index(drop=True)
        genes = pd.Index(file.var_names.astype(str))
    finally:
        file.file.close()
    if genes.has_duplicates:
        raise UserError(f"{path}: gene {genes[genes.duplicated()][0]!r} repeats in the var index; sum or drop repeats")
    return Labels(path, cells, genes)


def check_truth(truth: Labels, control: str) -> None:
    """Refuse a truth that cannot give a scale: see :func:`check_groups`."""
    cells = {(context, str(label)): n for context in truth.contexts() for label, n in truth.groups(context).items()}
    check_groups(cells, control, str(truth.path))


def check_groups(cells: Mapping[tuple[str, str], int], control: str, where: str) -> None:
    """Refuse measured cells that cannot give a scale.

    Args:
        cells: (context, perturbation) -> number of cells, of what is scored and of the controls.
        control: label of the control cells.
        where: what holds the cells, for the message.

    Raises:
        UserError: a context without control cells, or a group of one cell, which cannot be split in halves for the
            replicate.
    """
    require_controls((context for context, _ in cells), contexts_with(control, cells), control, where)
    single = sorted(f"{label} in {context}" for (context, label), number in cells.items() if number < 2)
    if single:
        raise UserError(
            f"{where}: a single cell of {listed(single)}; the replicate splits every group in halves and needs 2: "
            "raise data.minimum_cells to 2, or leave the group out"
        )


def check_measured(
    contexts: Collection[str], pairs: Collection[tuple[str, str]], measured: Mapping[str, np.ndarray]
) -> None:
    """Refuse to score a context whose sources measured other genes: an unmeasured gene would be a truth of no counts.

    Args:
        contexts: that are scored.
        pairs: (context, source) of all cells.
        measured: source -> [G] bool, genes of the axis that it measured.

    Raises:
        UserError: there is such a context.
    """
    for context in sorted(contexts):
        sources = sorted({source for where, source in pairs if where == context})
        masks = np.stack([measured[source] for source in sources])
        if uneven := int((masks.any(axis=0) & ~masks.all(axis=0)).sum()):
            raise UserError(
                f"{context} is scored, and of its sources ({', '.join(sources)}) not all measured the same genes "
                f"({uneven:,} differ): a gene that was not measured would count as silent; set "
                "data.genes=intersection, or give the sources contexts of their own"
            )


def check_pair(truth: Labels, prediction: Labels, control: str) -> list[str]:
    """Refuse a prediction that does not answer what the truth asks.

    Returns:
        The ``context/perturbation`` that are predicted and have no truth, sorted; they are not scored.

    Raises:
        UserError: the gene axes differ, the prediction holds control cells, or a (context, perturbation) is missing.
    """
    path = prediction.path
    if len(prediction.genes) != len(truth.genes):
        raise UserError(
            f"{path}: {len(prediction.genes)} genes, but {truth.path} has {len(truth.genes)}; "
            f"{_first_difference(prediction.genes, truth.genes)}"
        )
    if not prediction.genes.equals(truth.genes):
        raise UserError(
            f"{path}: gene axis differs from {truth.path}; {_first_difference(prediction.genes, truth.genes)}"
        )
    controls = int((prediction.cells["perturbation"] == control).sum())
    if controls:
        raise UserError(f"{path}: {controls} control cells ({control!r}); drop them, the truth's controls are used")
    asked = truth.cells[truth.cells["perturbation"] != control].drop_duplicates()
    pairs = asked.merge(prediction.cells.drop_duplicates(), how="outer", indicator="side")
    pairs["name"] = pairs["context"] + "/" + pairs["perturbation"]
    beyond = sorted(pairs.loc[pairs["side"] == "right_only", "name"])
    if missing := sorted(pairs.loc[pairs["side"] == "left_only", "name"]):
        hint = f" (it has {listed(beyond)}, of which there is no truth)" if beyond else ""
        raise UserError(
            f"{path}: {len(missing)} (context, perturbation) missing: {listed(missing)}{hint}; predict all pairs of "
            f"{truth.path}"
        )
    return beyond


def read_context(labels: Labels, context: str, perturbations: Collection[str] | None = None) -> ad.AnnData:
    """Read one context's cells, of some perturbations or of all, and verify that they are counts.

    Returns:
        AnnData with X (cells, genes) as float32 CSR, obs ``context`` and ``perturbation``, the file's gene axis.

    Raises:
        UserError: a value that is not finite, negative or fractional, a cell deeper than the scorer accepts, or a
            perturbation without any count.
    """
    rows = (labels.cells["context"] == context).to_numpy()
    if perturbations is not None:
        rows &= labels.cells["perturbation"].isin(list(perturbations)).to_numpy()
    file = _open(labels.path)
    try:
        # The file may be larger than memory; one context at a time is not.
        counts = sp.csr_matrix(file[rows].to_memory().X)
    finally:
        file.file.close()
    cells = labels.cells[rows]
    _check_counts(counts, cells["perturbation"].to_numpy(), f"{labels.path}: context {context!r}")
    index = pd.Index([str(row) for row in np.flatnonzero(rows)])
    return ad.AnnData(
        counts.astype(np.float32), obs=cells.set_index(index), var=pd.DataFrame(index=labels.genes.copy())
    )


def read_blocks(
    labels: Labels, context: str, perturbations: Collection[str], size: int = 1024
) -> Iterator[tuple[np.ndarray, sp.csr_matrix]]:
    """Read some groups of one context, ``size`` rows of the file at a time, without a look at the values.

    Yields:
        Labels of the perturbations [cells], and counts [cells, genes], in file order.
    """
    cells = labels.cells
    rows = np.flatnonzero((cells["context"] == context) & cells["perturbation"].isin(list(perturbations)))
    file = _open(labels.path)
    try:
        for part in np.split(rows, np.flatnonzero(np.diff(rows // size)) + 1) if len(rows) else []:
            start = int(part[0]) // size * size
            block = sp.csr_matrix(file.X[start : start + size])
            yield cells["perturbation"].to_numpy()[part], block[part - start]
    finally:
        file.file.close()


def _check_counts(counts: sp.csr_matrix, perturbations: np.ndarray, where: str) -> None:
    values = counts.data
    if not np.isfinite(values).all():
        raise UserError(f"{where}: X has {int((~np.isfinite(values)).sum())} values that are NaN or infinite")
    if (values < 0).any():
        raise UserError(f"{where}: X has negative values (lowest {values.min():g}); the scorer needs raw counts")
    fractional = values != np.rint(values)
    if fractional.any():
        raise UserError(
            f"{where}: X has fractional values (for example {values[fractional][0]:g}); the scorer needs raw counts"
        )
    depth = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    if depth.max() > MAXIMUM_DEPTH:
        raise UserError(f"{where}: a cell has {depth.max():.0f} counts; the scorer accepts at most {MAXIMUM_DEPTH}")
    totals = pd.Series(depth).groupby(perturbations).sum()
    empty = sorted(str(label) for label in totals.index[totals == 0])
    if empty:
        raise UserError(f"{where}: no counts at all in any cell of {listed(empty)}")


def _open(path: Path) -> ad.AnnData:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with reading(path, "h5ad"):
        return ad.read_h5ad(path, backed="r")


def _first_difference(ours: pd.Index, theirs: pd.Index) -> str:
    shorter = min(len(ours), len(theirs))
    differs = np.flatnonzero(ours[:shorter].to_numpy() != theirs[:shorter].to_numpy())
    position = int(differs[0]) if len(differs) else shorter
    found = [repr(axis[position]) if position < len(axis) else "nothing" for axis in (ours, theirs)]
    return f"first difference at position {position}: {found[0]} against {found[1]}; use the truth's gene axis"
