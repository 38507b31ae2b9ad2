"""How a sequence longer than a protein model's window is read: overlapping windows, averaged residue by residue.

The rule. A sequence of at most ``window`` residues is one window. A longer one of L residues becomes the fewest
windows, all of full length, whose neighbours share at least ``overlap`` residues:

    n = 1 + ceil((L - window) / (window - overlap)),    start_k = floor(k (L - window) / (n - 1)),    k = 0 .. n - 1

so that the first begins with the sequence, the last ends with it, and they are evenly spaced. The representation of a
residue is the mean over the windows that cover it, and the protein's is the mean over its residues. Both together are
one weighted sum over windows in which a residue weighs 1 / (coverage x L) wherever it occurs: no residue is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcc_fm.ground.errors import UserError


@dataclass(frozen=True)
class Windows:
    """The windows of several sequences, in the order of the sequences and of their residues.

    Attributes:
        owner: [w] int64, which sequence.
        start: [w] int64, first residue, counted from the start of the sequence.
        length: [w] int64, residues.
    """

    owner: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.owner)


def cut_windows(lengths: NDArray[np.int64], window: int, overlap: int) -> Windows:
    """The windows of sequences, by the rule above.

    Args:
        lengths: [n] int64, residues of each sequence, all above zero.
        window: Most residues of a window.
        overlap: Fewest residues that neighbouring windows share.

    Raises:
        UserError: ``overlap`` is negative or leaves no step from one window to the next.
    """
    if not 0 <= overlap < window:
        raise UserError(
            f"embed.proteins.overlap={overlap}: windows of {window} residues can share 0 to {window - 1} residues"
        )
    beyond = np.maximum(lengths - window, 0)
    number = 1 + -(-beyond // (window - overlap))
    owner = np.repeat(np.arange(len(lengths)), number)
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(number) - number, number)
    start = rank * beyond[owner] // np.maximum(number[owner] - 1, 1)
    return Windows(owner, start, np.minimum(lengths, window)[owner])


def residue_weights(lengths: NDArray[np.int64], windows: Windows) -> NDArray[np.float32]:
    """What each residue weighs in its sequence's vector, in every window where it occurs.

    Args:
        lengths: [n] int64, residues of each sequence.
        windows: Their windows.

    Returns:
        [sum of lengths] float32, the sequences one after another: 1 / (windows that cover the residue x length).
    """
    offsets = np.cumsum(lengths) - lengths
    first = offsets[windows.owner] + windows.start
    steps = np.zeros(lengths.sum() + 1, np.int64)
    np.add.at(steps, first, 1)
    np.add.at(steps, first + windows.length, -1)
    coverage = np.cumsum(steps)[:-1]
    return (1.0 / (coverage * np.repeat(lengths, lengths))).astype(np.float32)
