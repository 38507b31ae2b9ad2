"""What every benchmark shares: rates measured in turn, the machine, the printed table and the JSON."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from vcc_fm.ground.files import write_json

MATRIX = 8192


@dataclass(frozen=True)
class Row:
    """One comparison; ``ratio`` is ours to the peer's."""

    what: str
    ours: float
    peer: float
    peer_name: str
    unit: str
    ratio: float


@dataclass(frozen=True)
class Claim:
    """A sentence that a reader may rely on: it holds where ``measured`` reaches ``target``.

    ``measured`` is None where this machine cannot tell; then nothing is claimed.
    """

    claim: str
    target: float
    measured: float | None

    @property
    def holds(self) -> bool | None:
        """Whether what was measured reaches the target; None where nothing was measured."""
        return None if self.measured is None else self.measured >= self.target


def new_parser(description: str, quick: str) -> argparse.ArgumentParser:
    """What every script takes: ``--quick``, which means ``quick``, and ``--json FILE``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    return parser


def rates(
    works: dict[str, Callable[[int], float]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, np.ndarray]:
    """Amount per second of each piece of work, one number a round; a first round is not counted.

    The pieces take turns, so that whatever else the machine does meets all of them alike.

    Args:
        works: name -> function of the round's number that returns the amount done (cells).
        rounds: rounds counted.
        clock: by which time is told; ``time.process_time`` where the work is bound by one core.

    Returns:
        name -> [rounds] float64, amount per second.
    """
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            start = clock()
            amount = work(number)
            found[name].append(amount / (clock() - start))
    return {name: np.array(values[1:]) for name, values in found.items()}


def compare(what: str, ours: np.ndarray, peer: np.ndarray, peer_name: str, unit: str) -> Row:
    """Medians of the rounds, and the median of the rounds' ratios."""
    return Row(what, float(np.median(ours)), float(np.median(peer)), peer_name, unit, float(np.median(ours / peer)))


def finish(
    name: str, libraries: list[str], rows: list[Row], claims: list[Claim], path: Path | None, console: Console
) -> int:
    """Print rows and claims, write them as JSON where ``path`` is given; 1 where a claim does not hold, else 0."""
    table = Table("what", "ours", "peer", "ratio", "unit", "peer is", title=name)
    for row in rows:
        table.add_row(row.what, f"{row.ours:,.0f}", f"{row.peer:,.0f}", f"{row.ratio:.2f}", row.unit, row.peer_name)
    console.print(table)
    for claim in claims:
        if claim.measured is None:
            console.print(f"not measured here: {claim.claim} (target {claim.target:g})")
            continue
        verdict = "holds" if claim.holds else "DOES NOT HOLD"
        console.print(f"{verdict}: {claim.claim} (target {claim.target:g}, measured {claim.measured:.2f})")
    if path is not None:
        record = {
            "name": name,
            "machine": machine(),
            "versions": {"python": platform.python_version()} | {library: _version(library) for library in libraries},
            "rows": [asdict(row) for row in rows],
            "claims": [asdict(claim) | {"holds": claim.holds} for claim in claims],
        }
        write_json(path, record)
    return 1 if any(claim.holds is False for claim in claims) else 0


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:  # it is run from where it lies
        return "not installed"


def matmul_peak() -> float:
    """Operations a second of a large square matrix product in bfloat16."""
    left, right = (torch.randn(MATRIX, MATRIX, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(20):
        torch.cuda.synchronize()
        start = time.perf_counter()
        left @ right
        torch.cuda.synchronize()
        best = max(best, 2 * MATRIX**3 / (time.perf_counter() - start))
    return best


def machine() -> dict[str, Any]:
    """Processor, number of cores, GPU or None, memory (GB), and system."""
    try:
        described = Path("/proc/cpuinfo").read_text().splitlines()
    except FileNotFoundError:  # not Linux
        described = []
    models = [line.partition(":")[2].strip() for line in described if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "memory_gb": round(memory / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }
