"""How many cells there are of each perturbation, and how many control cells in each batch."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vcc_fm.sources.labels import Labels

FEW = 30
"""Cells of a group below which its response is mostly noise."""


@dataclass(frozen=True)
class Groups:
    """Numbers of cells. A group is a perturbation in a context; a batch, one of a context."""

    perturbations: int
    combinations: int
    contexts: dict[str, int]
    """Context -> cells."""
    groups: int
    cells_per_group: list[int]
    """Least, median and most."""
    few: int
    """Groups of fewer than ``FEW`` cells."""
    fewest: dict[str, int]
    control_cells: int
    batches: int
    controls_per_batch: list[int]
    """Least, median and most."""
    batches_without_control: list[str]
    contexts_without_control: list[str]
    dropped: dict[str, int]
    """Reason -> cells without a label."""
    repairs: dict[str, int]


def count_groups(labels: Labels, control: str, separator: str) -> Groups:
    """Count cells.

    Args:
        labels: as a recipe reads them.
        control: label of the control.
        separator: what joins the parts of a combination.
    """
    cells = labels.cells
    is_control = (cells["perturbation"] == control).to_numpy()
    perturbed = cells[~is_control]
    sizes = perturbed.groupby(["context", "perturbation"], observed=True).size().sort_values(kind="stable")
    names = perturbed["perturbation"].unique()
    batches = cells.assign(control=is_control).groupby(["context", "batch"], observed=True)["control"].sum()
    contexts = cells.assign(control=is_control).groupby("context", observed=True)["control"].agg(["size", "sum"])
    one_context = len(contexts) == 1
    empty = batches.index[batches == 0].to_frame()
    without = list(empty["batch"] if one_context else empty["batch"] + " (" + empty["context"] + ")")
    lonely = [str(context) for context in contexts.index[contexts["sum"] == 0]]
    few = int((sizes < FEW).sum())
    smallest = sizes.index[:5].to_frame()
    return Groups(
        perturbations=len(names),
        combinations=sum(separator in name for name in names),
        contexts={str(name): int(n) for name, n in contexts["size"].items()},
        groups=len(sizes),
        cells_per_group=_range(sizes.to_numpy()),
        few=few,
        fewest=dict(
            zip(smallest["perturbation"] + " in " + smallest["context"], sizes.iloc[:5].tolist(), strict=True)
        ),
        control_cells=int(is_control.sum()),
        batches=len(batches),
        controls_per_batch=_range(batches.to_numpy()),
        batches_without_control=without,
        contexts_without_control=lonely,
        dropped=labels.dropped,
        repairs=labels.repairs,
    )


def numbers_to_keep(column: pd.Series, labels: Labels, control: str, separator: str) -> dict[int, int]:
    """The numbers of guides that cells of each kind mostly have -> cells of all kinds; empty where all cells do.

    A kind is the control, or perturbations of as many target genes: where numbers are of targets, a control has 0.

    Args:
        column: [cells of the file] numbers of guides.
        labels: as a recipe reads them.
        control: label of the control.
        separator: what joins the parts of a combination.
    """
    perturbation = labels.cells["perturbation"]
    parts = (perturbation.str.count(re.escape(separator)) + 1).where(perturbation != control, 0).to_numpy()
    numbers = column.iloc[labels.rows].astype(float).to_numpy()
    known = ~np.isnan(numbers)
    usual = pd.Series(numbers[known]).groupby(parts[known]).agg(lambda of_kind: of_kind.mode().iloc[0])
    kept = {int(number): int((numbers == number).sum()) for number in sorted(set(usual))}
    return {} if sum(kept.values()) == len(numbers) else kept


def _range(numbers: np.ndarray) -> list[int]:
    return [int(numbers.min()), int(np.median(numbers)), int(numbers.max())]
