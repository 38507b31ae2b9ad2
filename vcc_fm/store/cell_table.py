"""The labels of all cells of all sources, in the words of the first, and the order in which a store has them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from vcc_fm.errors import UserError
from vcc_fm.recipe import SourceConfig
from vcc_fm.sources.h5ad import H5adSource

LABELS = ("context", "batch", "perturbation")


@dataclass
class CellTable:
    """All labelled cells of all sources, a source after the other. Arrays are [N].

    A cell's rank is its place in the order of the store, were every cell kept: by context, batch and perturbation, and
    shuffled inside a group. What is dropped later changes nothing about the order of the others.
    """

    barcode: np.ndarray
    source: np.ndarray
    """int32 number of the source."""
    codes: dict[str, np.ndarray]
    """context, batch, perturbation: int32 places in ``names``."""
    names: dict[str, np.ndarray]
    """context, batch, perturbation: sorted labels."""
    first: np.ndarray
    """[sources + 1] int64, where the cells of each source begin."""
    rank: np.ndarray = field(init=False)
    """int64."""

    def set_ranks(self, seed: int) -> None:
        """Draw the order inside groups from ``seed``."""
        shuffle = np.random.default_rng([seed, len(self.source)]).permutation(len(self.source))
        order = np.lexsort((shuffle, self.codes["perturbation"], self.codes["batch"], self.codes["context"]))
        self.rank = np.empty(len(order), np.int64)
        self.rank[order] = np.arange(len(order))


def cell_table(sources: list[H5adSource], configs: list[SourceConfig], seed: int) -> CellTable:
    """Bring the labels of all sources together.

    Args:
        sources: opened.
        configs: of these sources.
        seed: of the order inside groups.

    Raises:
        UserError: a label of one source means something else in another.
    """
    tables = []
    for number, (source, config) in enumerate(zip(sources, configs, strict=True)):
        table = source.cells.copy()
        table["source"] = np.int32(number)
        table["perturbation"] = unified_labels(table["perturbation"], config, configs[0])
        if len(sources) > 1:
            # Two files may both have a batch "1": these differ, and a batch has one set of measured genes.
            table["batch"] = source.name + ":" + table["batch"].astype(str)
            table["barcode"] = source.name + ":" + table["barcode"].astype(str)
        tables.append(table)
    cells = pd.concat(tables, ignore_index=True)
    # A lane that holds several contexts is a batch in each of them: controls of one are no controls of another.
    shared = cells.groupby("batch")["context"].transform("nunique") > 1
    cells.loc[shared, "batch"] = cells["context"] + ":" + cells["batch"]
    codes, names = {}, {}
    for label in LABELS:
        found, known = pd.factorize(cells[label], sort=True)
        codes[label], names[label] = found.astype(np.int32), np.asarray(known, dtype=object)
    first = np.concatenate([[0], np.cumsum([len(table) for table in tables])])
    made = CellTable(cells["barcode"].to_numpy(), cells["source"].to_numpy(), codes, names, first)
    made.set_ranks(seed)
    return made


def unified_labels(labels: pd.Series, config: SourceConfig, first: SourceConfig) -> pd.Series:
    """The perturbation labels of a source in the words of the first source: its control label, its separator.

    Args:
        labels: [n] str perturbation labels as the source has them.
        config: of the source.
        first: of the first source, whose words the store uses.

    Raises:
        UserError: the first source's control label is a perturbation here, or a target gene holds its separator.
    """
    known = {}
    for label in labels.unique():
        parts = [first.control] if label == config.control else label.split(config.separator)
        if label == first.control != config.control:
            raise UserError(
                f"source {config.name!r}: {label!r} is a perturbation here (control is {config.control!r}) and the "
                f"control of source {first.name!r}; correct control, or leave these cells out with keep"
            )
        if config.separator != first.separator and label != config.control and first.separator in "\n".join(parts):
            raise UserError(
                f"source {config.name!r}: perturbation {label!r} holds {first.separator!r}, which joins target genes "
                f"in source {first.name!r}; rename it in the file, or list this source first"
            )
        known[label] = first.separator.join(parts)
    return labels.map(known)
