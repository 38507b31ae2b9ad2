"""What every protein encoder offers, and how the proteins of a gene become the gene's one vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

JSON: TypeAlias = "str | int | float | bool | list[JSON] | dict[str, JSON] | None"
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"


class ProteinShard(Protocol):
    """Sequences that one process encodes in one go."""

    @property
    def sequences(self) -> tuple[str, ...]:
        """Each once."""

    @property
    def residues(self) -> int:
        """Of all sequences together."""


class ProteinEncoder(Protocol):
    """A frozen map from an amino-acid sequence to a vector of fixed width."""

    @property
    def width(self) -> int:
        """Length of a vector."""

    def describe(self) -> dict[str, JSON]:
        """Encoder name, parameters, licence and citation: what ``store.json`` records."""

    def repairs(self, sequences: list[str]) -> dict[str, int]:
        """What is read otherwise than it is written: name of the repair -> number of sequences."""

    def encode(self, sequences: list[str]) -> NDArray[np.float32]:
        """One row per sequence, [n, width] float32; a row does not depend on the other sequences."""

    def plan(self, sequences: list[str]) -> Sequence[ProteinShard]:
        """The same sequences cut into shards: the same ones for the same set, whatever its order."""

    def encode_shard(self, shard: Any, progress: Callable[[int], None]) -> NDArray[np.float32]:
        """One row per sequence of a shard of :meth:`plan`, the same to the last bit whoever computes it.

        ``progress`` is told now and then how many residues are done.
        """


def mean_over_isoforms(rows: NDArray[np.float32], isoforms: Sequence[int]) -> NDArray[np.float32]:
    """Mean of consecutive runs of rows, [len(isoforms), width] float32; ``isoforms`` says how long each run is."""
    number = np.asarray(isoforms)
    sums = np.add.reduceat(rows.astype(np.float64), np.cumsum(number) - number, axis=0)
    return (sums / number[:, None]).astype(np.float32)
