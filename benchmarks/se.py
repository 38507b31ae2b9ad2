"""How fast and in what memory SE embeds cells, beside arc-state with the same weights and cells.

    python benchmarks/se.py [--quick] [--full] [--json FILE]

Weights are random. arc-state is called as a black box, on its defaults but for sizes and the batch size, which is that
which suits it best here. It starts a process that prepares its batches; its rates are given without that: the
tokenizer's from the first batch's arrival to the last's, that of whole cells from the difference of two calls. Both
sides have all cores, but for our tokenizer, which has one. `--full` adds a CPU at the geometry of SE-600M (minutes,
and up to 8 GB of memory). Memory is that of `embed cells`, each run in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _measure import Claim, Row, compare, finish, matmul_peak, new_parser
from _se import (
    HAS_ARC,
    SE_600M,
    Arc,
    arc_rate,
    counts,
    encoder,
    operations,
    own_memory,
    random_tensors,
    temporary,
    write_cells,
)
from accelerate import PartialState
from rich.console import Console
from state_se_checkpoints import random_names, tiny, write_folder

from vcc_fm.encoders.cells.embed import embed_cells
from vcc_fm.encoders.cells.state_se import StateSe, StateSeSettings
from vcc_fm.store.cells import CellStore

PEER = "arc-state"
STARTED = "arc-state, once its worker runs"
INSTALL = "arc-state is not installed: pip install -e '.[peers]'"
TOKEN_GENES, TOKEN_PAD, EXPRESSED = 18_080, 2048, 3_000
STORE_CELLS, QUICK_STORE_CELLS, STORE_GENES, STORE_NONZEROS = (5_000, 50_000), (200, 600), 1_000, 100
ROUNDS, QUICK_ROUNDS = 3, 1
BATCHES = (4, 8, 16, 32)

Work = Callable[[], tuple[float, ...]]


def main(arguments: list[str]) -> int:
    """Measure, print, write; the exit code."""
    parser = new_parser("cells per second through SE, and its memory", "fewer cells and rounds")
    parser.add_argument("--full", action="store_true", help="also SE-600M's geometry on a CPU: minutes, 8 GB")
    parser.add_argument("--part", nargs=2, metavar=("PART", "OF"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part is not None:
        print(json.dumps(_part(*options.part)))
        return 0
    console = Console()
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    with temporary() as name:
        folder = Path(name)
        rows, claims = _memory(folder, QUICK_STORE_CELLS if options.quick else STORE_CELLS)
        full = options.full and not options.quick
        for more in (_tokenizer(folder, options.quick, rounds), _large_cpu(folder, full), _large_gpu()):
            rows, claims = rows + more[0], claims + more[1]
    if not HAS_ARC:
        console.print(INSTALL, highlight=False, markup=False)
    if not torch.cuda.is_available():
        console.print("no GPU here")
    libraries = ["vcc-fm", "torch", "numba"] + ["arc-state"] * HAS_ARC
    return finish("se", libraries, rows, claims, options.json, console)


def _in_turns(works: dict[str, Work], rounds: int) -> dict[str, list[np.ndarray]]:
    """Rates that each piece of work tells of itself, per rate one number a round; a first round is not counted."""
    told: dict[str, list[tuple[float, ...]]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            told[name].append(work())
    return {name: list(np.array(values[1:]).T) for name, values in told.items()}


def _timed(work: Callable[[], object], cells: int) -> tuple[float]:
    start = time.perf_counter()
    work()
    return (cells / (time.perf_counter() - start),)


def _tokenizer(folder: Path, quick: bool, rounds: int) -> tuple[list[Row], list[Claim]]:
    """One process of each."""
    claim = f"tokens of {TOKEN_GENES:,} genes, {TOKEN_PAD:,} of a cell, come at least 10 times as fast, per process"
    if not HAS_ARC:
        return [], [Claim(claim, 10, None)]
    geometry = tiny(SE_600M.genes)
    cells, more = counts(48 if quick else 128, TOKEN_GENES, EXPRESSED), counts(512, TOKEN_GENES, EXPRESSED)
    tokenizer = encoder(geometry, random_tensors(geometry), TOKEN_GENES, TOKEN_PAD).tokenizer()
    arc = Arc(folder, geometry, TOKEN_PAD)
    # Equal results first: a faster way to something else would be no comparison.
    theirs = -np.sort(-arc.tokens(cells)[0][:, 1:], axis=1)
    np.testing.assert_allclose(tokenizer.tokenize(cells).values, theirs, rtol=1e-5)
    works: dict[str, Work] = {
        "ours": lambda: _timed(lambda: tokenizer.tokenize(more), 512),
        PEER: lambda: (arc.tokens(cells)[1],),
    }
    found = _in_turns(works, rounds)
    what = f"tokenizer ({TOKEN_GENES:,} genes, {EXPRESSED:,} of them non-zero, {TOKEN_PAD:,} tokens; one core)"
    row = compare(what, found["ours"][0], found[PEER][0], STARTED, "cells/s")
    return [row], [Claim(claim, 10, row.ratio)]


def _large_cpu(folder: Path, wanted: bool) -> tuple[list[Row], list[Claim]]:
    """SE-600M's geometry, one program after the other, each in a process of its own."""
    claim = "at the geometry of SE-600M a CPU embeds cells no slower than with arc-state"
    if not (wanted and HAS_ARC):
        return [], [Claim(claim, 1, None)]
    ours, theirs = (_child(part, folder) for part in ("ours", "theirs"))
    row = compare(
        f"cells (geometry of SE-600M, {TOKEN_PAD:,} tokens; CPU, float32)",
        np.array([3600 * ours]), np.array([3600 * theirs]), STARTED, "cells/h",
    )  # fmt: skip
    return [row], [Claim(claim, 1, row.ratio)]


def _large_gpu() -> tuple[list[Row], list[Claim]]:
    """SE-600M's geometry on a GPU, for several numbers of cells at a time."""
    claim = "on a GPU in bfloat16 at the geometry of SE-600M half of the measured rate of matrix products is reached"
    if not torch.cuda.is_available():
        return [], [Claim(claim, 0.5, None)]
    cells, tensors, rows = counts(256, TOKEN_GENES, EXPRESSED), random_tensors(SE_600M), []
    tera = operations(SE_600M, TOKEN_PAD + 1) / 1e12
    for size in BATCHES:
        ours = encoder(SE_600M, tensors, TOKEN_GENES, TOKEN_PAD, dtype=torch.bfloat16, device="cuda", batch_cells=size)
        tokens = ours.tokenizer().tokenize(cells)
        works: dict[str, Work] = {
            "ours": lambda ours=ours, tokens=tokens: _timed(lambda: ours.embed(tokens), 256),
            "matrix": lambda: (matmul_peak() / 1e12,),
        }
        found = _in_turns(works, ROUNDS)
        rate, peak = found["ours"][0], found["matrix"][0]
        what = f"GPU, bfloat16, {size} cells at a time: {np.median(rate):,.1f} cells/s"
        rows.append(compare(what, rate * tera, peak, "matrix products in the same run", "TFLOP/s"))
    return rows, [Claim(claim, 0.5, max(row.ratio for row in rows))]


def _memory(folder: Path, sizes: tuple[int, int]) -> tuple[list[Row], list[Claim]]:
    """Largest memory of the stage that embeds a store, for two numbers of cells."""
    claim = f"memory is flat: of {sizes[1]:,} cells' peak {sizes[0]:,} cells need at least 90 %"
    if not Path("/proc/self/status").exists():
        return [], [Claim(claim, 0.9, None)]
    geometry = tiny(STORE_GENES)
    write_folder(folder / "se", random_tensors(geometry), random_names(geometry))
    peaks = []
    for cells in sizes:
        store = folder / f"cells-{cells}"
        _child("store", store)
        peaks.append(_child("memory", store))
    what = f"own memory at the peak, {sizes[1]:,} cells of a store (width 64, 128 tokens)"
    row = Row(what, peaks[1], peaks[0], f"{sizes[0]:,} cells", "MB", peaks[1] / peaks[0])
    return [row], [Claim(claim, 0.9, peaks[0] / peaks[1])]


def _child(part: str, folder: Path) -> float:
    """A number that another process of this program measures."""
    command = [sys.executable, __file__, "--part", part, str(folder)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def _part(part: str, of: str) -> float:
    folder = Path(of)
    if part == "store":
        cells = counts(int(folder.name.removeprefix("cells-")), STORE_GENES, STORE_NONZEROS)
        write_cells(folder, cells)
        return cells.shape[0]
    if part == "memory":
        model = StateSe(StateSeSettings(model=str(folder.parent / "se"), pad_length=128))
        with own_memory() as peak:
            cells, console = CellStore(folder / "cells"), Console(stderr=True)
            embed_cells(folder / "embedded", cells, model, "e" * 64, PartialState(cpu=True), console)
        return peak[0]
    threads = torch.get_num_threads()
    cells = counts(3 * threads, TOKEN_GENES, EXPRESSED)
    if part == "ours":
        ours = encoder(SE_600M, random_tensors(SE_600M), TOKEN_GENES, TOKEN_PAD)
        ours.encode(cells[:threads])
        return _timed(lambda: ours.encode(cells[threads:]), 2 * threads)[0]
    arc = Arc(folder, SE_600M, TOKEN_PAD)
    return arc_rate(arc.load(), arc.write(cells[:threads]), arc.write(cells), threads)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
