"""What a model or a store was made from, under which terms; and what is not sent before its terms were accepted."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcc_fm.ground.errors import UserError

_LIMITS = re.compile(
    r"non[- ]?commercial|(?<![a-z])(?:nc|nd)(?![a-z])|no[- ]?deriv|no redistribution|not (?:be |for )?(?:re)?distribut"
    r"|proprietary|confidential|all rights reserved|(?:academic|research|personal|private)(?: use| purposes?)? only",
    re.IGNORECASE,
)
UNKNOWN = "not told"


@dataclass(frozen=True)
class Ancestor:
    """Something that a model or store was made from.

    Attributes:
        name: by which its terms are accepted.
        role: what it was used for.
        licence: its terms; ``UNKNOWN`` where nobody told.
        citation: what to cite; may be empty.
    """

    name: str
    role: str
    licence: str
    citation: str

    @property
    def limits(self) -> bool:
        """Whether its terms limit use or passing on."""
        return _LIMITS.search(self.licence) is not None


def ancestors_of(config: dict[str, Any], sources: Iterable[tuple[str, str | None, str | None]]) -> list[Ancestor]:
    """What a decoder was made from.

    Args:
        config: the decoder's, as JSON; or the two encoders alone.
        sources: name, licence and citation of the data.
    """
    found = []
    if started := config.get("started_from"):
        found.append(Ancestor("base", "weights that training started from", started["licence"], started["citation"]))
    for side in ("cell", "protein"):
        encoder = config[f"{side}_encoder"]
        found.append(Ancestor(encoder["encoder"], f"encoder of {side}s", encoder["licence"], encoder["citation"]))
    found += [Ancestor(name, "data", licence or UNKNOWN, citation or "") for name, licence, citation in sources]
    return found


def require_accepted(ancestors: Iterable[Ancestor], accepted: Collection[str]) -> None:
    """Refuse to send what was made from something with limiting terms that nobody said to have read.

    Raises:
        UserError: shows the terms, and how to accept them.
    """
    open_ = {one.name: one for one in ancestors if one.limits and one.name not in accepted}
    if open_:
        terms = "; ".join(f"{one.name} ({one.role}): {one.licence.rstrip('.')}" for one in open_.values())
        names = " ".join(f"--accept-licence {name}" for name in open_)
        raise UserError(
            f"nothing was sent: what you share is under terms of others. {terms}. If you may share it so, add {names} "
            "(hub.accept_licence in a recipe)"
        )


def write_licences(ancestors: Iterable[Ancestor], folder: Path, texts: Iterable[Path] = ()) -> None:
    """Write the terms of each ancestor into ``folder``, a file each, and copy the licence files that are at hand."""
    folder.mkdir(parents=True)
    for one in ancestors:
        lines = [f"{one.name}: {one.role}", "", f"Licence: {one.licence}"]
        lines += ["", f"Citation: {one.citation}"] if one.citation else []
        (folder / f"{_file_name(one.name)}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for text in texts:
        (folder / _file_name(f"{text.parent.name}-{text.name}")).write_bytes(text.read_bytes())


def _file_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip(".-")[:80] or "unnamed"
