"""What a run tells its report beside the scores: words, curves and tables, without a look at where they come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from vcc_fm.scoring.report.tables import html_table


@dataclass(frozen=True)
class Listing:
    """A table of texts.

    Attributes:
        caption: above it.
        heads: of the columns.
        rows: as many texts each as there are heads.
    """

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A part of the page: a heading, paragraphs, tables, and long texts that are folded away.

    Attributes:
        title: its heading.
        lines: a paragraph each.
        listings: tables.
        folded: name -> text that is shown as it is, on a click.
    """

    title: str
    lines: Sequence[str] = ()
    listings: Sequence[Listing] = ()
    folded: dict[str, str] = field(default_factory=dict)

    def html(self) -> str:
        """The section without its heading."""
        return "\n".join(self._parts())

    def _parts(self) -> Iterable[str]:
        yield from (f"<p>{escape(line)}</p>" for line in self.lines)
        for one in self.listings:
            yield html_table(one.caption, one.heads, [[escape(text) for text in row] for row in one.rows], "texts")
        for name, text in self.folded.items():
            yield f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"


@dataclass(frozen=True)
class Record:
    """What the run says of itself.

    Attributes:
        title: of the page.
        notes: what a reader must know first, for example that the data are simulated.
        log: dictionaries with phase, step, split and loss; none leaves the curves out.
        emitted: how emitted cells compare with real ones, the records of ``check_emitter``.
        sections: what stands at the end: split, coverage, provenance.
    """

    title: str
    notes: Sequence[str] = ()
    log: Sequence[dict[str, Any]] = ()
    emitted: Sequence[dict[str, Any]] = ()
    sections: Sequence[Section] = ()
