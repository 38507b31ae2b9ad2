"""The tokens of ESM2: one a residue, with a start and an end token round every window.

The alphabet is that of fair-esm's ``Alphabet.from_architecture("ESM-1b")`` and of ``vocab.txt`` on the Hub, which are
the same 33 tokens. Two letters more are read: lower case as upper case, and J (leucine or isoleucine), for which ESM2
has no token, as X (any residue).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from vcc_fm.encoders.proteins.encoder import AMINO_ACIDS
from vcc_fm.ground.errors import UserError

START, PADDING, END, MASK = 0, 1, 2, 32
SIZE = 33
"""Number of tokens, those that never occur in a protein (unknown, mask, filler) included."""

EXTRA = 2
"""Tokens of a window that are no residues: start and end."""

_FIRST = 4
_LETTERS = "LAGVSERTIDPKQNFYMHWCXBUZO.-"
READ_AS = {"J": "X"}
"""Letters without a token, and the letter in whose place they are read."""

_READ = {*_LETTERS, *READ_AS}


def _codes() -> NDArray[np.int64]:
    codes = np.full(256, -1, np.int64)
    codes[np.frombuffer(_LETTERS.encode(), np.uint8)] = _FIRST + np.arange(len(_LETTERS))
    for letter, other in READ_AS.items():
        codes[ord(letter)] = codes[ord(other)]
    return codes


_CODES = _codes()


def residue_tokens(sequences: Iterable[str]) -> NDArray[np.int64]:
    """Tokens of the residues of checked sequences, one after another, without start and end tokens.

    Returns:
        [sum of lengths] int64.
    """
    return _CODES[np.frombuffer("".join(sequences).upper().encode("ascii"), np.uint8)]


def check_sequences(sequences: Iterable[str]) -> None:
    """Refuse what has no meaning as a protein.

    Raises:
        UserError: A sequence is empty, holds a character without a token, or has no standard amino acid.
    """
    for number, sequence in enumerate(sequences, start=1):
        letters = set(sequence.upper())
        if foreign := sorted(letters - _READ):
            what = f"ESM2 has no token for {foreign[0]!r} (position {sequence.upper().index(foreign[0]) + 1})"
        elif letters.isdisjoint(AMINO_ACIDS):
            what = "no standard amino acid"
        else:
            continue
        raise UserError(
            f"protein sequence {number}, {sequence[:20]!r}: {what}; correct it in the FASTA or remove the record"
        )
