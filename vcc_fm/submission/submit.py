"""From predictions to the archive under its name: checked, written, read again, and judged by the official program."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import empty_folder, whole_file
from vcc_fm.submission.archive import compare, pack, unpack, write_cells
from vcc_fm.submission.challenge import Challenge, Official, Progresses

GB = 1_000_000_000
BASE = GB
"""Bytes that an official program takes beside the cells: 0.2 and 0.4 GB were measured."""


class Archived(Challenge):
    """A challenge whose file is an archive of cells."""

    suffix = ".vcc"

    def write(self, output: Path, memory: float, progress: Progresses) -> dict[str, Any]:
        """See :func:`write_submission`."""
        result = write_submission(self, output, memory, progress)
        verdict = "accepted" if result["accepted"] else "not asked"
        self.notes += [
            f"{result['file']}: {result['cells']:,} cells x {result['genes']:,} genes, {result['bytes']:,} bytes, "
            "read back and equal to the predictions",
            f"{result['official']}: {verdict}: {result['said']}",
        ]
        return result


def write_submission(challenge: Challenge, output: Path, memory: float, progress: Progresses) -> dict[str, Any]:
    """Write the archive of a challenge; it has its name once it was read back and found right.

    Memory holds ``ROWS`` cells, and the labels and offsets of all. The disk of ``output`` needs room for the archive
    and for the same cells without compression, 8 bytes a stored value.

    Args:
        challenge: with the cells.
        output: the archive.
        memory: bytes that the official program may take; it is not called where it needs more.
        progress: gives, for the name of a step, what is told its progress in cells.

    Returns:
        File, bytes, cells, genes, stored values, and whether the official program took it, or why it was not asked.

    Raises:
        UserError: the name does not end in .vcc, the platform would refuse the cells, what was written reads back
            differently, or the official program refuses it.
    """
    if output.suffix != ".vcc":
        raise UserError(f"--output {output}: write a name that ends in .vcc; the platform takes no other")
    work = output.with_name(f"{output.name}.work")
    with whole_file(output) as partial:
        empty_folder(work)
        try:
            h5ad = work / "pred.h5ad"
            values = write_cells(h5ad, challenge, progress("write"))
            members = challenge.members(values)
            pack(partial, h5ad, members)
            unpack(partial, h5ad, members)
            compare(h5ad, challenge, output, progress("read back"))
            judged = judge(challenge.official(h5ad, values), memory)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        size = partial.stat().st_size
    shape = {"cells": len(challenge), "genes": len(challenge.genes), "values": values}
    return {"file": str(output), "bytes": size} | shape | judged


def judge(official: Official, memory: float) -> dict[str, Any]:
    """Let a challenge's own program check an h5ad file.

    Returns:
        Program, whether it took the file (None: it was not asked), and what to say of that.

    Raises:
        UserError: it refuses the file; the message is its own.
    """
    program, needs = official.programs[0], official.memory + BASE
    result: dict[str, Any] = {"official": " ".join([program, official.arguments[0]]), "accepted": None}
    # Beside this Python as well: an environment need not be activated.
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    missing = [name for name in official.programs if shutil.which(name, path=places) is None]
    if missing:
        install = f"pip install '{official.package}'" if program in missing else f"install {' and '.join(missing)}"
        return result | {"said": f"there is no {' and no '.join(missing)} here: {install}, and run this again"}
    if needs > memory:
        wants = math.ceil(needs / GB)
        return result | {
            "said": f"it reads all cells at once, into {wants} GB: --memory-gb {wants} where there are so many"
        }
    done = subprocess.run(  # noqa: S603 - a program that the user installed, on files that this program wrote
        [str(shutil.which(program, path=places)), *official.arguments],
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | {"PATH": places},
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        # A refusal of vcc begins with its reason; that of cell-eval begins the end of a traceback.
        reasons = [line for line in said if re.match(r"vcc prep: |\w+Error: ", line)] or said[-1:]
        reason = reasons[-1] if reasons else f"exit code {done.returncode}"
        raise UserError(f"{result['official']} refuses the cells: {reason}")
    return result | {"accepted": True, "said": "it took the cells that were read back from the file"}
