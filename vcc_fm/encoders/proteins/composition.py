"""A protein encoder without weights: amino-acid and k-mer composition, and length.

It needs no download and no GPU, and it is the floor that a protein language model has to beat.

A vector has one block per k = 1 .. kmer and one last entry:

    block k     sqrt(K f) - 1, f the frequencies of the K possible k-mers of that block's alphabet
    last entry  ln(length / 400), length in standard residues (400: about the median human protein)

The square root is there because the sampling variance of sqrt(f) is 1 / (4 length) for every k-mer, rare or common
(delta method on a multinomial frequency), and because it is defined at f = 0, where a log-ratio would need a
pseudocount that then rules the rare entries. The factor K and the -1 put a uniform composition at zero and entries at
order one, whatever the block's size; a block of a sequence too short for its k-mers stays at zero.

k = 1 counts all 20 amino acids. Longer k-mers use the reduced alphabets of Murphy, Wallqvist and Levy, "Simplified
amino acid alphabets for protein fold recognition and implications for folding", Protein Engineering 13:149 (2000):
10 letters for k = 2 (100 entries) and 4 letters for k = 3 (64 entries), for which one protein has enough residues.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from vcc_fm.encoders.proteins.encoder import AMINO_ACIDS, JSON, SequenceEncoder
from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.embed import SequenceEncoderSettings

_ALPHABETS = {
    1: list(AMINO_ACIDS),
    2: ["LVIM", "C", "A", "G", "ST", "P", "FYW", "EDNQ", "KR", "H"],
    3: ["LVIMC", "AGSTP", "FYW", "EDNQKRH"],
}
_TYPICAL_LENGTH = 400.0


def _codes_of_bytes(alphabet: list[str]) -> NDArray[np.int64]:
    """ASCII byte -> letter of the alphabet, -1 for everything that is no standard amino acid."""
    codes = np.full(256, -1, np.int64)
    for code, members in enumerate(alphabet):
        codes[np.frombuffer(members.encode(), np.uint8)] = code
    return codes


_CODES = {k: _codes_of_bytes(alphabet) for k, alphabet in _ALPHABETS.items()}


class CompositionSettings(SequenceEncoderSettings):
    """Keys of ``embed.proteins`` with ``encoder: composition``."""

    encoder: Literal["composition"] = Field("composition", description="frequencies of k-mers, no weights")
    kmer: Literal[1, 2, 3] = Field(
        2, description="longest k-mer counted, residues: width 21 with 1, 121 with 2, 185 with 3"
    )


class Composition(SequenceEncoder):
    """Amino-acid and k-mer composition of a protein sequence."""

    Settings = CompositionSettings

    def __init__(self, settings: CompositionSettings) -> None:
        self.kmer = settings.kmer

    def identity(self) -> Any:
        """See :class:`ProteinEncoder`."""
        return ["composition", self.kmer]

    def check(self, sequences: Iterable[str]) -> None:
        """Refuse a sequence that holds no standard amino acid."""
        # A letter near the start tells for nearly all; `encode`, asked about the others, refuses them.
        self.encode([one for one in sequences if not any(letter in AMINO_ACIDS for letter in one.upper())])

    @property
    def width(self) -> int:
        """Length of a vector: all k-mers of every block, and the length entry."""
        return sum(len(_ALPHABETS[k]) ** k for k in range(1, self.kmer + 1)) + 1

    def describe(self) -> dict[str, JSON]:
        """Encoder name, parameters, licence and citation: what ``store.json`` records."""
        return {
            "encoder": "composition",
            "parameters": {
                "kmer": self.kmer,
                "alphabets": [",".join(_ALPHABETS[k]) for k in range(1, self.kmer + 1)],
                "transform": f"sqrt(K f) - 1 per block; ln(length / {_TYPICAL_LENGTH:g})",
            },
            "licence": "no weights; the licence of the sequences applies",
            "citation": "reduced alphabets: Murphy, Wallqvist, Levy, Protein Engineering 13:149 (2000)",
        }

    def repairs(self, sequences: list[str]) -> dict[str, int]:
        """What is left out of the count, and in how many sequences."""
        number = sum(not set(sequence.upper()) <= set(AMINO_ACIDS) for sequence in sequences)
        return {"with letters that are no standard amino acid, which count for nothing": number} if number else {}

    def encode(self, sequences: list[str]) -> NDArray[np.float32]:
        """Encode protein sequences.

        Letters that are no standard amino acid (B, J, O, U, X, Z, ``*``, ``-``) count for nothing: not as a residue,
        not in the length, and no k-mer spans them. Lower case is read as upper case.

        Args:
            sequences: Amino-acid sequences, one-letter code.

        Returns:
            [n, width] float32, one row per sequence, each independent of the others.

        Raises:
            UserError: A sequence is empty or has no standard amino acid.
        """
        n = len(sequences)
        # The line feed after each sequence is no amino acid: it keeps k-mers from spanning two sequences.
        residues = np.frombuffer("".join(f"{s}\n" for s in sequences).encode("ascii", "replace").upper(), np.uint8)
        owner = np.repeat(np.arange(n), [len(s) + 1 for s in sequences])
        length = np.bincount(owner[_CODES[1][residues] >= 0], minlength=n)
        if not length.all():
            first = int(np.argmin(length))
            raise UserError(
                f"protein sequence {first + 1} of {n} has no standard amino acid, found {sequences[first][:20]!r}; "
                "correct it in the FASTA or remove the record"
            )
        blocks = [_block(residues, owner, n, k) for k in range(1, self.kmer + 1)]
        return np.column_stack([*blocks, np.log(length / _TYPICAL_LENGTH)]).astype(np.float32)


def _block(residues: NDArray[np.uint8], owner: NDArray[np.int64], n: int, k: int) -> NDArray[np.float64]:
    """sqrt(K f) - 1 over the K k-mers, [n, K]; zero where a sequence has no k-mer."""
    letters = len(_ALPHABETS[k])
    size = letters**k
    # Past the end nothing is a residue: a k-mer may start at every position, in a batch of any size.
    codes = np.pad(_CODES[k][residues], (0, k - 1), constant_values=-1)
    windows = np.stack([codes[offset : offset + len(residues)] for offset in range(k)])
    whole = (windows >= 0).all(axis=0)
    kmers = letters ** np.arange(k - 1, -1, -1) @ windows[:, whole]
    counts = np.bincount(owner[whole] * size + kmers, minlength=n * size).reshape(n, size)
    totals = counts.sum(axis=1, keepdims=True)
    return np.where(totals > 0, np.sqrt(size * counts / np.maximum(totals, 1)) - 1.0, 0.0)
