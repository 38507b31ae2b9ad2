"""Which cells go into which set.

Every measured cell of the chosen groups stands in exactly one set an epoch, unless the recipe weighs its group.
Nothing is drawn with replacement, except control cells where a batch has fewer of them than a set needs. All
randomness follows from (seed, epoch, number of the set), so that any step can be assembled on any process without the
ones before it.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from vcc_fm.cellsets.dataset import Dataset


@dataclass(frozen=True)
class CellSet:
    """One set before its counts are read.

    Attributes:
        context, perturbation: of the set.
        control_rows: [n] int64 rows of the control cells, n <= S.
        measured_rows: [n] int64 rows of the measured cells, each of the same batch as its control; None to predict.
        hide_codes, hide_response: what the decoder must do without in this set.
        noise_seed: of the noise in the energy distance.
    """

    context: str
    perturbation: str
    control_rows: np.ndarray
    measured_rows: np.ndarray | None
    hide_codes: bool
    hide_response: bool
    noise_seed: int

    def __str__(self) -> str:
        return f"{self.perturbation} in {self.context}"


@numba.njit(cache=True, nogil=True)
def _in_turn(batches, place, controls, start, size):  # type: ignore[no-untyped-def]
    """For each of ``batches`` [n] the next control of its pool, from ``place`` (a share of the pool) on.

    Compiled: in Python it would hold the interpreter's lock, which the training loop waits for.
    """
    taken, found = np.zeros(len(size), np.int64), np.empty(len(batches), np.int64)
    for i, batch in enumerate(batches):
        found[i] = controls[start[batch] + (int(place * size[batch]) + taken[batch]) % size[batch]]
        taken[batch] += 1
    return found


class Sets(ABC):
    """An addressable, endless stream of sets; ``str`` of a set says for people which it is."""

    @abstractmethod
    def __len__(self) -> int:
        """Sets in an epoch."""

    @abstractmethod
    def __getitem__(self, position: int) -> Any:
        """The set at ``position`` of the stream; threads may ask at the same time."""

    def step(self, step: int, batch_sets: int, share: slice) -> list[Any]:
        """The sets of optimiser step ``step`` that fall to one device: ``share`` of its ``batch_sets`` sets."""
        return [self[step * batch_sets + i] for i in range(batch_sets)[share]]


class _Epoch:
    """What is drawn for the sets of one epoch.

    Attributes:
        number: of the epoch.
        order: [sets] positions in the sampler's list of them.
        hidden: [sets, 2] bool, whether codes, and whether responses, are hidden.
        noise_seed: [sets] int64.
        place: [sets] between 0 and 1, where a set begins in the controls of its batches.
        passes: number of a pass and a group -> the order of its cells; drawn when first wanted.
        controls: the controls of all batches, each in the epoch's order where ``batches`` says that it is drawn.
    """

    def __init__(self, seed: int, number: int, sets: int, dropout: tuple[float, float], pools: list[np.ndarray]):
        self.number = number
        self.order = np.random.default_rng([seed, number, 0]).permutation(sets)
        rng = np.random.default_rng([seed, number, 2])
        self.hidden = rng.random((sets, 2)) < dropout
        self.noise_seed = rng.integers(2**62, size=sets)
        self.place = rng.random(sets)
        self.passes = dict[tuple[int, int], np.ndarray]()
        self.controls, self.batches = np.empty(sum(map(len, pools)), np.int64), np.zeros(len(pools), bool)


class SetSampler(Sets):
    """An endless, addressable stream of cell sets over the measured cells of some groups.

    Position ``i`` of the stream is set ``i % len(self)`` of epoch ``i // len(self)``. Each group goes through its
    cells in passes, every cell once a pass. An epoch is one pass; of a group of weight w it is w passes, to the
    nearest set and one set at the least, and where one epoch ends the next one goes on.
    """

    def __init__(
        self,
        data: Dataset,
        groups: list[tuple[str, str]],
        set_size: int,
        seed: int,
        code_dropout: float = 0.0,
        response_dropout: float = 0.0,
        weights: Mapping[tuple[str, str], float] | None = None,
    ):
        """Sample sets of ``set_size`` from ``groups`` of (context, perturbation).

        Args:
            data: where cells are.
            groups: whose measured cells the sets hold.
            set_size: S, most cells in a set.
            seed: of everything drawn.
            code_dropout: share of the sets whose context and batch codes are hidden.
            response_dropout: share of the sets of which as much is expected as if their perturbation had been measured
                nowhere.
            weights: of groups, above 0; 1 where none is given.
        """
        assert groups
        self.data = data
        self.groups = groups
        self.set_size = set_size
        self.seed = seed
        self.code_dropout = code_dropout
        self.response_dropout = response_dropout
        self._rows = [data.cells.rows(context, perturbation) for context, perturbation in groups]
        self._pools = self._control_pools()
        self._pool_size = np.array([len(pool) for pool in self._pools])
        self._pool_start = np.cumsum(self._pool_size) - self._pool_size
        # A group of n cells gives ceil(n / S) sets of nearly equal size: no cell is left out or drawn twice.
        self._parts = [-(-len(rows) // set_size) for rows in self._rows]
        weight = [1.0 if weights is None else weights.get(group, 1.0) for group in groups]
        taken = [max(1, round(parts * w)) for parts, w in zip(self._parts, weight, strict=True)]
        self._sets = [(group, item, number) for group, number in enumerate(taken) for item in range(number)]
        self._epochs = dict[int, _Epoch]()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sets)

    def _drawn(self, epoch: int, offset: int) -> _Epoch:
        """What is drawn for an epoch. The one before stays for a tenth of it: threads that read ahead ask for both."""
        if epoch not in self._epochs:
            dropout = self.code_dropout, self.response_dropout
            beside = {number: drawn for number, drawn in self._epochs.items() if abs(number - epoch) == 1}
            self._epochs = beside | {epoch: _Epoch(self.seed, epoch, len(self._sets), dropout, self._pools)}
        elif offset > len(self._sets) / 10:
            self._epochs.pop(epoch - 1, None)
        return self._epochs[epoch]

    def _control_pools(self) -> list[np.ndarray]:
        """Rows of each batch's control cells; of those of its context where it has none."""
        cells, context = self.data.cells, np.zeros(len(self.data.cells.batches), np.int64)
        context[cells.groups.batch] = cells.groups.context
        instead = [self.data.context_controls[cells.contexts[code]] for code in context]
        return [self.data.control_rows.get(batch, pool) for batch, pool in enumerate(instead)]

    def _part(self, drawn: _Epoch, number: int, group: int, part: int) -> np.ndarray:
        """The rows of a group's set ``part`` in pass ``number``."""
        key = number, group
        if key not in drawn.passes:
            rows = np.random.default_rng([self.seed, number, 1, group]).permutation(self._rows[group])
            drawn.passes[key] = rows
        size, longer = divmod(len(self._rows[group]), self._parts[group])
        start = part * size + min(part, longer)
        return drawn.passes[key][start : start + size + (part < longer)]

    def __getitem__(self, position: int) -> CellSet:
        with self._lock:  # of what is drawn
            return self._set(*divmod(position, len(self._sets)))

    def _set(self, epoch: int, offset: int) -> CellSet:
        drawn = self._drawn(epoch, offset)
        group, item, taken = self._sets[drawn.order[offset]]
        pass_, part = divmod(epoch * taken + item, self._parts[group])
        measured = self._part(drawn, pass_, group, part)
        context, perturbation = self.groups[group]
        return CellSet(
            context,
            perturbation,
            self._matching_controls(drawn, measured, drawn.place[offset]),
            measured,
            bool(drawn.hidden[offset, 0]),
            bool(drawn.hidden[offset, 1]),
            int(drawn.noise_seed[offset]),
        )

    def _matching_controls(self, drawn: _Epoch, measured: np.ndarray, place: float) -> np.ndarray:
        """One control cell of the same batch for each measured cell; of the context where the batch has none.

        A batch's controls are put in a new order every epoch; a set takes a run of them from its own random place on,
        from the end back to the beginning: none twice, unless the batch has fewer than the set needs.
        """
        batches = self.data.cells.batch[measured]
        if not drawn.batches[batches].all():
            for batch in set(batches[~drawn.batches[batches]].tolist()):
                start, end = self._pool_start[batch], self._pool_start[batch] + self._pool_size[batch]
                rng = np.random.default_rng([self.seed, drawn.number, 3, batch])
                drawn.controls[start:end] = rng.permutation(self._pools[batch])
                drawn.batches[batch] = True
        return _in_turn(batches, place, drawn.controls, self._pool_start, self._pool_size)

    def scarce_controls(self) -> dict[str, int]:
        """Batches with fewer control cells than a set may need, and how many; a set then shows some of them twice."""
        cells, most = self.data.cells, dict[int, int]()
        for rows in self._rows:
            for batch, number in zip(*np.unique(cells.batch[rows], return_counts=True), strict=True):
                most[int(batch)] = max(most.get(int(batch), 0), min(int(number), self.set_size))
        own = {batch: len(self.data.control_rows[batch]) for batch in most if batch in self.data.control_rows}
        return {cells.batches[batch]: number for batch, number in own.items() if number < most[batch]}


def control_sets(
    data: Dataset, context: str, perturbation: str, cells: int, set_size: int, seed: int
) -> Iterator[CellSet]:
    """Sets of control cells to predict ``cells`` perturbed ones from.

    The order is random, seeded by (seed, context, perturbation): a control cell returns only after all others of its
    context have been used.
    """
    key = [seed, *context.encode(), 0, *perturbation.encode()]
    rng = np.random.default_rng(key)
    pool = data.context_controls[context]
    rounds = -(-cells // len(pool))
    rows = np.concatenate([rng.permutation(pool) for _ in range(rounds)])[:cells]
    for start in range(0, cells, set_size):
        yield CellSet(context, perturbation, rows[start : start + set_size], None, False, False, 0)
