"""Numbers in sentences."""

from __future__ import annotations


def many(number: int, word: str, plural: str = "") -> str:
    """A number with its noun: ``1 cell``, ``1,204 cells``; give the plural where it is not the noun and an s."""
    return f"{number:,} {word if number == 1 else plural or word + 's'}"
