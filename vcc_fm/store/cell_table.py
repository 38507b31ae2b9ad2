"""The labels of all cells of all sources, in the words of the first, and the order in which a store has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.data import SourceConfig
from vcc_fm.sources.anndata_source import AnnDataSource
from vcc_fm.store.description import LABELS


@dataclass(frozen=True)
class CellTable:
    """All labelled cells of all sources, a source after the other. Arrays are [N].

    A cell's rank is its place in the order of the store, were every cell kept: by context, batch and perturbation, and
    shuffled inside a group. What is dropped later changes nothing about the order of the others.
    """

    codes: dict[str, np.ndarray]
    """context, batch, perturbation: int32 places in ``names``."""
    names: dict[str, np.ndarray]
    """context, batch, perturbation: sorted labels."""
    first: np.ndarray
    """[sources + 1] int64, where the cells of each source begin."""
    rank: np.ndarray
    """int64."""
    sources: tuple[str, ...]
    """Names of the sources."""
    barcode: np.ndarray
    """As the source has it."""

    def source(self, cells: np.ndarray) -> np.ndarray:
        """Number of the source of each of ``cells`` [n]."""
        return np.searchsorted(self.first, cells, side="right") - 1

    def barcodes(self, cells: np.ndarray) -> np.ndarray:
        """Barcodes of ``cells`` [n]; behind the name of their source where there are several."""
        found = self.barcode[cells]
        if len(self.sources) == 1:
            return found
        prefix = np.array([f"{name}:" for name in self.sources], dtype=object)
        return prefix[self.source(cells)] + found


def cell_table(sources: Sequence[AnnDataSource], configs: Sequence[SourceConfig], seed: int) -> CellTable:
    """Bring the labels of all sources together.

    Args:
        sources: opened.
        configs: of these sources.
        seed: of the order inside groups.

    Raises:
        UserError: a label of one source means something else in another.
    """
    contexts, labels = (
        [_factorised(source.cells[column]) for source in sources] for column in ("context", "perturbation")
    )
    _check_controls([known for _, known in labels], configs)
    perturbations = [
        (codes, _unified_labels(known, config, configs[0]))
        for (codes, known), config in zip(labels, configs, strict=True)
    ]
    parts = (contexts, _batches(sources, contexts), perturbations)
    joined = {label: _joined(part) for label, part in zip(LABELS, parts, strict=True)}
    codes = {label: of for label, (of, _) in joined.items()}
    names = {label: known for label, (_, known) in joined.items()}
    shuffle = np.random.default_rng([seed, len(codes["batch"])]).permutation(len(codes["batch"]))
    order = np.lexsort((shuffle, codes["perturbation"], codes["batch"], codes["context"]))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    first = np.concatenate([[0], np.cumsum([len(source.cells) for source in sources])])
    barcode = np.concatenate([source.cells["barcode"].to_numpy(object) for source in sources])
    return CellTable(codes, names, first, rank, tuple(source.name for source in sources), barcode)


def _check_controls(labels: Sequence[np.ndarray], configs: Sequence[SourceConfig]) -> None:
    """No control of one source is a perturbation, or a part of one, of another."""
    for config, known in zip(configs, labels, strict=True):
        others = {other.control: other.name for other in configs if other.control != config.control}
        for label in known:
            for part in (label, *label.split(config.separator)):
                if label != config.control and part in others:
                    raise UserError(
                        f"source {config.name!r} (control {config.control!r}): perturbation {label!r} is or holds "
                        f"{part!r}, the control of source {others[part]!r}; correct control (or also_control), or "
                        "leave these cells out with keep"
                    )


def _factorised(labels: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    codes, names = pd.factorize(labels, sort=True)
    return codes.astype(np.int32), np.asarray(names, dtype=object)


def _joined(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Codes and names of several sources as those of all; equal names are one."""
    names = np.array(sorted({name for _, known in parts for name in known}), dtype=object)
    index = pd.Index(names)
    return np.concatenate([index.get_indexer(known).astype(np.int32)[codes] for codes, known in parts]), names


def _batches(
    sources: Sequence[AnnDataSource], contexts: list[tuple[np.ndarray, np.ndarray]]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Technical batches: a lane of one source, and of one context where it holds several. All names differ.

    Two files may both have a lane "1"; these differ, and a batch has one set of measured genes. A lane that holds
    several contexts is a batch in each of them: controls of one are no controls of another.
    """
    parts, taken = [], set[str]()
    for source, (context, context_names) in zip(sources, contexts, strict=True):
        lane, lane_names = _factorised(source.cells["batch"])
        pairs, codes = np.unique(lane.astype(np.int64) * len(context_names) + context, return_inverse=True)
        of, within = np.divmod(pairs, len(context_names))
        shared = np.bincount(of, minlength=len(lane_names))[of] > 1
        names = []
        for one, name, both in zip(context_names[within], lane_names[of], shared, strict=True):
            label = f"{source.name}:{name}" if len(sources) > 1 else str(name)
            names.append(_distinct(f"{one}:{label}" if both else label, taken))
        parts.append((codes.astype(np.int32), np.array(names, dtype=object)))
    return parts


def _distinct(name: str, taken: set[str]) -> str:
    """The name, with a number where another batch has it: lane "1" of context K, beside a lane called "K:1"."""
    number, one = 1, name
    while one in taken:
        number += 1
        one = f"{name} ({number})"
    taken.add(one)
    return one


def _unified_labels(labels: np.ndarray, config: SourceConfig, first: SourceConfig) -> np.ndarray:
    """The labels of a source in the words of the first source: its control label, its separator."""
    unified = []
    for label in labels:
        parts = [first.control] if label == config.control else label.split(config.separator)
        if config.separator != first.separator and label != config.control and first.separator in "\n".join(parts):
            raise UserError(
                f"source {config.name!r}: perturbation {label!r} holds {first.separator!r}, which joins target genes "
                f"in source {first.name!r}; rename it in the file, or list this source first"
            )
        unified.append(first.separator.join(parts))
    return np.array(unified, dtype=object)
