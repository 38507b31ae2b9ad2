"""The order in which a store has the cells of all sources, and their groups, in the words of the first source."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pandas as pd

from vcc_fm.ground.arrays import BLOCK, Arrays, counted, made_once, places_type
from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.data import SourceConfig
from vcc_fm.sources.anndata_source import AnnDataSource
from vcc_fm.store.description import LABELS

Names = dict[str, list[str]]
Codes = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class CellTable:
    """All labelled cells of all sources, a source after the other, N in all.

    A cell's rank is its place in the order of the store, were every cell kept: by context, batch and perturbation, and
    shuffled inside a group. What is dropped later changes nothing about the order of the others.
    """

    rank: np.ndarray
    """[N] int32 (int64 where N needs it)."""
    start: np.ndarray
    """[groups + 1] int64, ranks at which groups begin."""
    codes: Arrays
    """context, batch, perturbation: [groups] int64 places in ``names``."""
    names: Names
    """context, batch, perturbation: sorted labels."""
    batch_source: np.ndarray
    """[batches] int64, number of the source of each batch."""
    first: np.ndarray
    """[sources + 1] int64, where the cells of each source begin."""

    def sizes(self, cells: np.ndarray) -> np.ndarray:
        """[contexts, perturbations] int64, number of cells, from that of each group ([groups] int64)."""
        sizes = np.zeros((len(self.names["context"]), len(self.names["perturbation"])), np.int64)
        np.add.at(sizes, (self.codes["context"], self.codes["perturbation"]), cells)
        return sizes


def cell_table(
    sources: Sequence[AnnDataSource], configs: Sequence[SourceConfig], seed: int | None, path: Path | None = None
) -> CellTable:
    """Bring the labels of all sources together.

    Args:
        sources: opened.
        configs: of these sources.
        seed: of the order inside groups; None keeps that of the sources.
        path: of the file where ranks and groups are kept for all processes, if anywhere.

    Raises:
        UserError: a label of one source means something else in another.
    """
    perturbations = [source.labels.names["perturbation"].tolist() for source in sources]
    _check_controls([sorted(set(known)) for known in perturbations], configs)
    unified = [_unified(known, config, configs[0]) for known, config in zip(perturbations, configs, strict=True)]

    def make() -> tuple[Arrays, dict[str, Any]]:
        contexts = [source.labels.names["context"].tolist() for source in sources]
        lanes = _batches(sources)
        known = (contexts, [list(names.values()) for names in lanes], unified)
        names = {label: sorted({*chain(*parts)}) for label, parts in zip(LABELS, known, strict=True)}
        place = {label: {name: code for code, name in enumerate(of)} for label, of in names.items()}
        codes = [
            _codes_of(place, *of, source.labels.names["batch"])
            for of, source in zip(zip(contexts, lanes, unified, strict=True), sources, strict=True)
        ]
        batch_source = np.empty(len(names["batch"]), np.int64)
        for number, batches in enumerate(lanes):
            batch_source[[place["batch"][name] for name in batches.values()]] = number
        shape = tuple(len(names[label]) for label in LABELS)
        keys, start, rank = _ranks(lambda: _keys(sources, codes, shape), int(first[-1]), seed)
        of_groups = dict(zip(LABELS, np.unravel_index(keys, shape), strict=True))
        return {"rank": rank, "start": start, "batch_source": batch_source} | of_groups, names

    first = np.concatenate([[0], np.cumsum([len(source) for source in sources])])
    arrays, names = made_once(path, make)
    for source in sources:
        source.let_go()
    codes = {label: arrays[label] for label in LABELS}
    return CellTable(arrays["rank"], arrays["start"], codes, names, arrays["batch_source"], first)


def _codes_of(
    place: dict[str, dict[str, int]],
    contexts: list[str],
    batches: dict[tuple[int, int], str],
    perturbations: list[str],
    lanes: np.ndarray,
) -> Codes:
    """The codes of all sources for those of one: [contexts], [lanes, contexts] and [perturbations] int64."""
    batch = np.zeros((len(lanes), len(contexts)), np.int64)
    for pair, name in batches.items():
        batch[pair] = place["batch"][name]
    context, perturbation = (
        np.array([place[label][name] for name in known], np.int64)
        for label, known in (("context", contexts), ("perturbation", perturbations))
    )
    return context, batch, perturbation


def _keys(sources: Sequence[AnnDataSource], codes: list[Codes], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """A number for the group of each cell, int64, in the order of groups; some cells at a time."""
    for source, (context_of, batch_of, perturbation_of) in zip(sources, codes, strict=True):
        for start in range(0, len(source), BLOCK):
            context, lane, perturbation = (source.labels.codes[label][start : start + BLOCK] for label in LABELS)
            of_cells = context_of[context], batch_of[lane, context], perturbation_of[perturbation]
            yield np.ravel_multi_index(of_cells, shape)


def _ranks(keys: Callable[[], Iterator[np.ndarray]], cells: int, seed: int | None) -> tuple[np.ndarray, ...]:
    """The distinct keys, the ranks at which their groups begin [groups + 1], and the rank of each cell."""
    cell, rank = (np.arange(cells, dtype=places_type(cells)) for _ in range(2))
    if seed is not None:
        _invert(np.random.default_rng([seed, cells]).permutation(cells), cell)
    distinct = np.empty(0, np.int64)
    for block in keys():
        distinct = np.union1d(distinct, pd.unique(block))
    group, done = np.empty(cells, places_type(len(distinct))), 0
    for block in keys():
        group[done : done + len(block)] = np.searchsorted(distinct, block)
        done += len(block)
    start = np.concatenate([[0], np.cumsum(counted(group, len(distinct)))])
    _rank(cell, group, start[:-1].copy(), rank)
    return distinct, start, rank


@numba.njit(cache=True)
def _invert(place, cell):  # type: ignore[no-untyped-def]
    """Write where each number is in a permutation."""
    for i in range(place.shape[0]):
        cell[place[i]] = i


@numba.njit(cache=True)
def _rank(cell, group, free, rank):  # type: ignore[no-untyped-def]
    """Give the cells, in the order of ``cell``, the next free rank of their groups."""
    for i in range(cell.shape[0]):
        own = group[cell[i]]
        rank[cell[i]] = free[own]
        free[own] += 1


def _check_controls(labels: Sequence[Sequence[str]], configs: Sequence[SourceConfig]) -> None:
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


def _batches(sources: Sequence[AnnDataSource]) -> list[dict[tuple[int, int], str]]:
    """Technical batches: a lane of one source, and of one context where it holds several. All names differ.

    Two files may both have a lane "1"; these differ, and a batch has one set of measured genes. A lane that holds
    several contexts is a batch in each of them: controls of one are no controls of another.

    Returns:
        Per source, (place of a lane, place of a context) -> name.
    """
    parts: list[dict[tuple[int, int], str]] = []
    taken: set[str] = set()
    for source in sources:
        codes, known = source.labels.codes, source.labels.names
        shape = len(known["batch"]), len(known["context"])
        cells = np.zeros(shape, np.int64)
        for start in range(0, len(source), BLOCK):
            lane_of, context_of = (codes[label][start : start + BLOCK] for label in ("batch", "context"))
            pairs = np.ravel_multi_index((lane_of, context_of), shape)
            cells += np.bincount(pairs, minlength=cells.size).reshape(shape)
        shared = ((cells > 0).sum(axis=1) > 1).tolist()
        names: dict[tuple[int, int], str] = {}
        for lane, context in np.argwhere(cells).tolist():
            label = f"{source.name}:{known['batch'][lane]}" if len(sources) > 1 else str(known["batch"][lane])
            name = f"{known['context'][context]}:{label}" if shared[lane] else label
            names[lane, context] = _distinct(name, taken)
        parts.append(names)
    return parts


def _distinct(name: str, taken: set[str]) -> str:
    """The name, with a number where another batch has it: lane "1" of context K, beside a lane called "K:1"."""
    number, one = 1, name
    while one in taken:
        number += 1
        one = f"{name} ({number})"
    taken.add(one)
    return one


def _unified(labels: list[str], config: SourceConfig, first: SourceConfig) -> list[str]:
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
    return unified
