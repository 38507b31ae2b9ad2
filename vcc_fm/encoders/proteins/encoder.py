"""What a protein encoder is: one class, with the section of the recipe that it reads.

There are two kinds: a :class:`SequenceEncoder` makes the vector of an amino-acid sequence, a :class:`VectorTable` has
the vectors of genes already.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vcc_fm.recipe.embed import ProteinEncoderSettings, SequenceEncoderSettings
from vcc_fm.sources.fasta import read_proteins

JSON: TypeAlias = "str | int | float | bool | list[JSON] | dict[str, JSON] | None"
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
SHARD = 4096
"""Sequences in a shard, where the encoder has no reason for other ones."""


class Known(NamedTuple):
    """The symbols that will have a vector, and what is wrong with the proteins of those that will not."""

    symbols: set[str]
    faulty: dict[str, str]


class ProteinShard(Protocol):
    """Sequences that one process encodes in one go."""

    @property
    def sequences(self) -> tuple[str, ...]:
        """Each once."""

    @property
    def residues(self) -> int:
        """Residues of all sequences together."""


class ProteinEncoder(ABC):
    """Gives every gene that it can a vector; frozen.

    A recipe names it under ``embed.proteins.encoder``; it is registered in ``vcc_fm.recipe.parts``.

    Attributes:
        Settings: its section of a recipe.
    """

    Settings: ClassVar[type[ProteinEncoderSettings]]

    @property
    @abstractmethod
    def width(self) -> int:
        """Length of a vector; a plan asks, so that no weights are read for it.

        Raises:
            UserError: it depends on a file that cannot be had.
        """

    @abstractmethod
    def identity(self) -> Any:
        """JSON of all that a vector depends on besides the sequences: it goes into the store's fingerprint."""

    @abstractmethod
    def known(self, fasta: Path | None) -> Known:
        """Whom it will give a vector, for a plan: nothing is computed.

        Args:
            fasta: the recipe's sequences, or None where it reads none.

        Raises:
            UserError: an input will be refused.
        """

    @abstractmethod
    def describe(self) -> dict[str, JSON]:
        """What ``store.json`` records: ``encoder``, ``parameters``, ``licence``, ``citation``, and what else."""


class VectorTable(ProteinEncoder):
    """Vectors of genes that are there already."""

    @abstractmethod
    def vectors(self) -> tuple[list[str], NDArray[np.float32]]:
        """Symbols and their vectors, [n, width] float32.

        Raises:
            UserError: the file cannot be read, or holds something else.
        """


class SequenceEncoder(ProteinEncoder):
    """A map from an amino-acid sequence to a vector of fixed width; a gene's is the mean over its isoforms."""

    Settings: ClassVar[type[SequenceEncoderSettings]]

    def known(self, fasta: Path | None) -> Known:
        """See :class:`ProteinEncoder`."""
        assert fasta is not None
        read = read_proteins(fasta)
        self.check(protein.sequence for protein in read.proteins)
        return Known({protein.symbol for protein in read.proteins}, read.report.faulty)

    def check(self, sequences: Iterable[str]) -> None:
        """Refuse what ``encode`` will refuse of ``sequences``.

        Raises:
            UserError: says which sequence, and why.
        """

    def prepare(self, folder: Path) -> None:
        """Make files that it needs, in ``folder``; the first process calls it, before any loads."""

    def load(self, folder: Path, device: str) -> None:
        """Load the weights, in every process.

        Args:
            folder: of :meth:`prepare`.
            device: as torch names it.

        Raises:
            UserError: they cannot be had.
        """

    def repairs(self, sequences: list[str]) -> dict[str, int]:
        """What is read otherwise than it is written: name of the repair -> number of sequences."""
        return {}

    @abstractmethod
    def encode(self, sequences: list[str]) -> NDArray[np.float32]:
        """One row per sequence, [n, width] float32; a row does not depend on the other sequences."""

    def plan(self, sequences: list[str]) -> Sequence[ProteinShard]:
        """The same sequences cut into shards: the same ones for the same set, whatever its order."""
        distinct = sorted(set(sequences))
        return [SomeSequences(tuple(distinct[i : i + SHARD])) for i in range(0, len(distinct), SHARD)]

    def encode_shard(self, shard: Any, progress: Callable[[int], None]) -> NDArray[np.float32]:
        """One row per sequence of a shard of :meth:`plan`, the same to the last bit whoever computes it.

        ``progress`` is told now and then how many residues are done.
        """
        return self.encode(list(shard.sequences))


@dataclass(frozen=True)
class SomeSequences:
    """Sequences in order of their letters."""

    sequences: tuple[str, ...]

    @property
    def residues(self) -> int:
        """Residues of all sequences together."""
        return sum(map(len, self.sequences))


def mean_over_isoforms(rows: NDArray[np.float32], isoforms: Sequence[int]) -> NDArray[np.float32]:
    """Mean of consecutive runs of rows, [len(isoforms), width] float32; ``isoforms`` says how long each run is."""
    number = np.asarray(isoforms)
    sums = np.add.reduceat(rows.astype(np.float64), np.cumsum(number) - number, axis=0)
    return (sums / number[:, None]).astype(np.float32)
