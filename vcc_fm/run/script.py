"""What the programs of a recipe have in common: errors by exit code, and one writer at a time.

``script_main`` is the body of every script that `accelerate launch` or torchrun starts.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from vcc_fm.ground.errors import DISK_FULL, TRY_AGAIN, TryAgain, UserError, obey_signals
from vcc_fm.ground.files import one_writer
from vcc_fm.recipe.read import load_any

# What the owner of a disk can mend, and a program cannot.
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)

A_DAY = 24 * 3600.0
PATIENCE_OF_PEERS = 600.0
"""Seconds that several processes wait for the first one to get the lock: their own patience ends after 30 minutes."""


def storage_problem(error: BaseException) -> str | None:
    """What the user can do about an error of the file system; None where it is something else.

    Several libraries that write files (safetensors, HDF5) report a full disk in an error of their own, without its
    number: its text tells.
    """
    number = error.errno if isinstance(error, OSError) else None
    named = error.filename if isinstance(error, OSError) else None
    if named is None and (found := re.search(r"filename = '([^']+)'", str(error))):  # HDF5's way
        named = found.group(1)
    where = "an output" if named is None else str(named)
    full = next((code for code in DISK_FULL if number == code or os.strerror(code) in str(error)), None)
    if full is not None:
        return f"{where}: {os.strerror(full).lower()}; make room, or set `output` to a folder on another disk"
    if number in _CLOSED:
        return f"{where}: {os.strerror(number).lower()}; mend it, or set `output` to a folder that can be written"
    return None


def fail(error: BaseException, debug: bool) -> NoReturn:
    """Say on stderr what went wrong, with a traceback if asked, and exit.

    The code is 2 for a user's error, 75 where the same command goes on when it is run again, 1 for a fault.
    """
    if debug:
        traceback.print_exception(error)
    if isinstance(error, TryAgain):
        print_error(f"{error}; run the same command again to go on")
        sys.exit(TRY_AGAIN)
    if isinstance(error, UserError):
        print_error(str(error))
        sys.exit(2)
    storage = storage_problem(error)
    if storage is None:
        print_error(f"{type(error).__name__}: {error}\nthis is a fault of vcc-fm; --debug shows where")
        sys.exit(1)
    print_error(storage)
    # HDF5 takes the interpreter down when it closes, at the very end, a file that it could not write.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def print_error(message: str) -> None:
    """Print a message on stderr as it is: brackets in it are no markup, and its lines are not broken."""
    console = Console(stderr=True, soft_wrap=True)
    console.print("error: ", style="red", end="")
    console.print(message, markup=False, highlight=False)


@contextmanager
def sole_writer(folder: Path, console: Console, patience: float = A_DAY) -> Iterator[None]:
    """Hold the lock on a folder: of a run, or of its stores; a second run waits, and says for whom.

    Raises:
        UserError: the lock was not free within ``patience`` seconds.
    """
    note = folder.with_name(f".{folder.name}.writer")
    with ExitStack() as stack:
        try:
            stack.enter_context(one_writer(folder, 0.2))
        except UserError:
            waiting = f"{folder}: waiting for {_writer(note)}, which is writing it"
            console.print(waiting, highlight=False, markup=False, soft_wrap=True)
            stack.enter_context(one_writer(folder, patience))
        note.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield


def _writer(note: os.PathLike[str]) -> str:
    try:
        with open(note) as file:
            return file.read()
    except FileNotFoundError:  # it has the lock, and no time yet to say who it is
        return "another process"


def script_main(
    description: str | None, begin: Callable[[Any], list[Path]], action: Callable[[Any, Console], None]
) -> int:
    """Run ``action`` on the recipe named on the command line; 0, or exits as :func:`fail` says.

    Only the first process prints, errors excepted: these may be of one process alone.

    Args:
        description: of the program, for its help.
        begin: called before the processes find each other; gives the folders to hold the lock of.
        action: called in each of them.
    """
    # Imported here, because the command line shares this module's messages and need not wait for torch.
    from vcc_fm.ground.peers import Peers, lost_connection
    from vcc_fm.ground.processes import process_state

    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="path of the recipe")
    parser.add_argument("overrides", nargs="*", help="key.key=value")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--launched", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    end_with_launcher(arguments.launched)
    obey_signals()
    state = peers = None
    try:
        recipe = load_any(arguments.recipe, arguments.overrides)
        folders = begin(recipe)
        with ExitStack() as stack:
            try:
                state = process_state()
                console = Console(quiet=arguments.quiet or not state.is_main_process)
                if state.num_processes > 1:
                    peers = stack.enter_context(Peers(state.process_index, state.num_processes, recipe.lost_after))
                if state.is_main_process and not arguments.launched:
                    patience = A_DAY if state.num_processes == 1 else PATIENCE_OF_PEERS
                    for folder in folders:
                        stack.enter_context(sole_writer(folder, console, patience))
                state.wait_for_everyone()
                action(recipe, console)
            except RuntimeError as error:
                if os.environ.get("WORLD_SIZE", "1") == "1" or not lost_connection(error):
                    raise
                found = peers.lost() if peers is not None else None
                raise TryAgain(found or f"the connection to another process broke ({error})") from error
    except KeyboardInterrupt:
        return 130
    except Exception as error:  # noqa: BLE001 - the last frame: a fault is shown in one line and has its own exit code
        fail(error, arguments.debug)
    finally:
        if state is not None:
            state.destroy_process_group()
    return 0


def end_with_launcher(launched: bool) -> None:
    """End this process when the one that launched it is gone.

    Args:
        launched: whether it was `vcc-fm`, whose end closes our stdin; `accelerate launch` and torchrun tell by their
            environment that they started us, and by our parent's number that they are gone.
    """

    def closed() -> None:
        # Not through sys.stdin, whose lock the interpreter would wait for at its end.
        while os.read(0, 1):
            continue
        os._exit(1)

    def orphaned(parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(TRY_AGAIN)

    if launched:
        threading.Thread(target=closed, daemon=True).start()
    elif {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"} & os.environ.keys():
        threading.Thread(target=orphaned, args=[os.getppid()], daemon=True).start()
