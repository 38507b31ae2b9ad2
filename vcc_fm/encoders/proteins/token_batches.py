"""What is computed together: windows in batches of at most so many tokens, batches in shards of whole sequences.

A window's vector depends in its last bits on what it is computed with. So the plan is made from the sequences alone:
they are sorted by length (equal ones by their letters), and neither the order in which they come, nor the number of
processes, nor what is computed already has a say. A shard is what one process computes and keeps; whichever process
computes it, and after whatever interruption, it comes out the same.

Neighbours in the sorted list are about equally long, which keeps padding low; the windows of long sequences are all of
one length and need none.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vcc_fm.encoders.proteins.esm2_tokens import END, EXTRA, PADDING, START, check_sequences, residue_tokens
from vcc_fm.encoders.proteins.windows import Windows, cut_windows, residue_weights
from vcc_fm.ground.errors import UserError


@dataclass(frozen=True)
class Cutting:
    """How sequences become windows, batches and shards.

    Attributes:
        window: most residues of a window; ESM2 was trained on 1,022 and two more tokens.
        overlap: fewest residues that neighbouring windows share.
        tokens_per_batch: most tokens of a batch, padding included.
        tokens_per_shard: tokens after which a shard ends, so far as sequences stay whole.
    """

    window: int = 1022
    overlap: int = 256
    tokens_per_batch: int = 4096
    tokens_per_shard: int = 1 << 18


@dataclass(frozen=True)
class Shard:
    """Sequences that are computed together.

    Attributes:
        sequences: unlike each other, by length and then by letters.
        windows: their windows, by length too.
        bounds: [b + 1] int64; batch i holds the windows from ``bounds[i]`` to ``bounds[i + 1]``.
    """

    sequences: tuple[str, ...]
    windows: Windows
    bounds: NDArray[np.int64]

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[n] int64, residues of each sequence."""
        return np.array([len(sequence) for sequence in self.sequences])

    @property
    def residues(self) -> int:
        """Residues of all sequences, each counted once."""
        return int(self.lengths.sum())

    @property
    def tokens(self) -> int:
        """Tokens of all windows without padding: residues of overlaps as often as they are read, starts and ends."""
        return int(self.windows.length.sum()) + EXTRA * len(self.windows)

    @property
    def padded_tokens(self) -> int:
        """Tokens that the model reads, padding included."""
        longest = np.maximum.reduceat(self.windows.length, self.bounds[:-1])
        return int((np.diff(self.bounds) * (longest + EXTRA)).sum())

    @cached_property
    def _flat(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        """Tokens and weights of all residues, and where each window begins in them."""
        offsets = np.cumsum(self.lengths) - self.lengths
        first = offsets[self.windows.owner] + self.windows.start
        return residue_tokens(self.sequences), residue_weights(self.lengths, self.windows), first

    def batch(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """What the model reads, and what each of its tokens weighs in the vector of the window's sequence.

        Returns:
            Tokens [b, t] int64, and weights [b, t] float32: zero for start, end and padding.
        """
        chosen = slice(self.bounds[number], self.bounds[number + 1])
        residues, weights, first = self._flat
        length = self.windows.length[chosen]
        place = np.arange(length.max())
        inside = place < length[:, None]
        # Beyond the end of a window lies the next sequence, or nothing: `inside` hides what is read there.
        source = np.minimum(first[chosen, None] + place, len(residues) - 1)
        tokens = np.full((len(length), length.max() + EXTRA), PADDING)
        tokens[:, 0] = START
        tokens[:, 1:-1] = np.where(inside, residues[source], PADDING)
        tokens[np.arange(len(length)), length + 1] = END
        weighed = np.zeros(tokens.shape, np.float32)
        weighed[:, 1:-1] = np.where(inside, weights[source], np.float32(0.0))
        return tokens, weighed


def plan_shards(sequences: Iterable[str], cutting: Cutting) -> list[Shard]:
    """The shards of ``sequences``: the same for the same set of sequences, in whatever order and however often.

    Args:
        sequences: Amino-acid sequences, one-letter code.
        cutting: How they are cut.

    Raises:
        UserError: A sequence is empty, has a character that ESM2 does not know or no standard amino acid; the
            overlap leaves no step between windows; a batch has no room for a window.
    """
    if cutting.tokens_per_batch < cutting.window + EXTRA:
        raise UserError(
            f"embed.proteins.tokens_per_batch={cutting.tokens_per_batch}: a window takes {cutting.window + EXTRA} "
            "tokens; use at least as many"
        )
    sequences = list(sequences)
    check_sequences(sequences)
    ordered = sorted(set(sequences), key=lambda sequence: (len(sequence), sequence))
    lengths = np.array([len(sequence) for sequence in ordered], np.int64)
    windows = cut_windows(lengths, cutting.window, cutting.overlap)
    tokens = np.bincount(windows.owner, windows.length + EXTRA, minlength=len(ordered)).astype(np.int64)
    shard = (np.cumsum(tokens) - tokens) // cutting.tokens_per_shard
    edges = [0, *(np.flatnonzero(np.diff(shard)) + 1).tolist(), len(ordered)] if ordered else []
    return [_shard(ordered[first:last], cutting) for first, last in itertools.pairwise(edges)]


def _shard(sequences: list[str], cutting: Cutting) -> Shard:
    lengths = np.array([len(sequence) for sequence in sequences])
    windows = cut_windows(lengths, cutting.window, cutting.overlap)
    bounds = [0]
    for number, length in enumerate(windows.length.tolist()):
        # Windows come by length: this one is the longest so far, and all would be padded to it.
        if (number + 1 - bounds[-1]) * (length + EXTRA) > cutting.tokens_per_batch:
            bounds.append(number)
    return Shard(tuple(sequences), windows, np.array([*bounds, len(windows)]))
