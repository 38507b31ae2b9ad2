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
    contexts: dict[str, int]  # context -> cells
    groups: int
    cells_per_group: list[int]  # least, median and most
    few: int  # groups of fewer than ``FEW`` cells
    control_cells: int
    batches: int
    controls_per_batch: list[int]  # least, median and most
    batches_without_control: list[str]
    contexts_without_control: list[str]
    guides: dict[str, dict[int, int]]  # column with numbers of guides -> numbers that are worth keeping -> cells
    dropped: dict[str, int]  # reason -> cells without a label
    repairs: dict[str, int]


def count_groups(labels: Labels, control: str, separator: str, guides: pd.DataFrame) -> Groups:
    """Count cells.

    Args:
        labels: as a recipe reads them.
        control: label of the control.
        separator: what joins the parts of a combination.
        guides: [cells of the file] columns with numbers of guides.
    """
    cells = labels.cells.assign(control=labels.cells["perturbation"] == control)
    sizes = cells[~cells["control"]].groupby(["context", "perturbation"], observed=True).size()
    names = sizes.index.unique("perturbation")
    batches = cells.groupby(["context", "batch"], observed=True)["control"].sum()
    contexts = cells.groupby("context", observed=True)["control"].agg(["size", "sum"])
    without = batches.index[batches == 0]
    kept = {str(name): _numbers_to_keep(guides[name], labels, control, separator) for name in guides.columns}
    return Groups(
        perturbations=len(names),
        combinations=sum(separator in name for name in names),
        contexts={str(name): int(n) for name, n in contexts["size"].items()},
        groups=len(sizes),
        cells_per_group=_range(sizes.to_numpy()),
        few=int((sizes < FEW).sum()),
        control_cells=int(cells["control"].sum()),
        batches=len(batches),
        controls_per_batch=_range(batches.to_numpy()),
        batches_without_control=[
            batch if len(contexts) == 1 else f"{batch} ({context})" for context, batch in without
        ],
        contexts_without_control=contexts.index[contexts["sum"] == 0].tolist(),
        guides={name: numbers for name, numbers in kept.items() if numbers},
        dropped=labels.dropped,
        repairs=labels.repairs,
    )


def _numbers_to_keep(column: pd.Series, labels: Labels, control: str, separator: str) -> dict[int, int]:
    """The numbers of guides that cells of each kind mostly have -> cells of all kinds; empty where all cells do.

    A kind is the control, or perturbations of as many target genes: where numbers are of targets, a control has 0.
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
