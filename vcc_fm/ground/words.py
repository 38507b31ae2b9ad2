"""Numbers in sentences."""

from __future__ import annotations

from collections.abc import Sequence


def many(number: int, word: str, plural: str = "") -> str:
    """A number with its noun: ``1 cell``, ``1,204 cells``; give the plural where it is not the noun and an s."""
    return f"{number:,} {word if number == 1 else plural or word + 's'}"


def listed(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
