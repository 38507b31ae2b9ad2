"""The command ``vcc-fm``."""

from __future__ import annotations

import sys
from typing import NoReturn

from typer.exceptions import TyperException

from vcc_fm.cli import files, hub, stages
from vcc_fm.cli.options import app
from vcc_fm.ground.errors import UserError, obey_signals

__all__ = ["app", "files", "hub", "main", "stages"]

INTERRUPTED = 130
"""Exit code that Typer makes of Ctrl-C, as shells do."""


def main() -> None:
    """Entry point: exit code 0, 2 for a user's error, 75 for one that goes on when it is run again, 1 for a fault."""
    obey_signals()
    try:
        # Typer returns the code of an `Exit` rather than raising it where it is not the last frame itself.
        code = app(standalone_mode=False)
    except TyperException as error:
        # Without a message it is a command without arguments, whose help has been shown.
        if message := error.format_message():
            _fail(UserError(f"{message.rstrip('.')}; see vcc-fm --help"))
        return
    except Exception as error:  # noqa: BLE001 - the last frame: a fault is shown in one line and has its own exit code
        _fail(error)
    if code == INTERRUPTED:
        print("error: interrupted; run the same command again to go on", file=sys.stderr)
    sys.exit(code)


def _fail(error: Exception) -> NoReturn:
    # Imported here, as everything beyond the command line itself: help must come at once.
    from vcc_fm.run.script import fail

    fail(error, "--debug" in sys.argv)
