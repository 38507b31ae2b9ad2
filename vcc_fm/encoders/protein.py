"""What every protein encoder offers, and how the proteins of a gene become the gene's one vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vcc_fm.ground.errors import UserError

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


def encode_genes(encoder: ProteinEncoder, sequences: dict[str, list[str]]) -> tuple[list[str], NDArray[np.float32]]:
    """The vector of a gene: the mean of its isoforms' vectors, each isoform with the same weight.

    Args:
        encoder: Any protein encoder.
        sequences: Gene symbol -> the amino-acid sequences of its isoforms (one-letter code).

    Returns:
        The symbols in the order of ``sequences``, and their vectors, [n, width] float32.

    Raises:
        UserError: A gene has no sequence, or a sequence has no standard amino acid.
    """
    for symbol, isoforms in sequences.items():
        if not isoforms:
            raise UserError(f"gene {symbol}: no protein sequence; add one to the FASTA or leave the gene out")
        for isoform in isoforms:
            if set(isoform.upper()).isdisjoint(AMINO_ACIDS):
                raise UserError(
                    f"gene {symbol}: a protein sequence without any standard amino acid, found {isoform[:20]!r}; "
                    "correct it in the FASTA or remove the record"
                )
    if not sequences:
        return [], np.empty((0, encoder.width), np.float32)
    flat = [isoform for isoforms in sequences.values() for isoform in isoforms]
    return list(sequences), mean_over_isoforms(
        encoder.encode(flat), [len(isoforms) for isoforms in sequences.values()]
    )


def mean_over_isoforms(rows: NDArray[np.float32], isoforms: Sequence[int]) -> NDArray[np.float32]:
    """Mean of consecutive runs of rows, [len(isoforms), width] float32; ``isoforms`` says how long each run is."""
    number = np.asarray(isoforms)
    sums = np.add.reduceat(rows.astype(np.float64), np.cumsum(number) - number, axis=0)
    return (sums / number[:, None]).astype(np.float32)
