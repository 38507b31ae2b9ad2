"""How fast and in what memory predictions become the archive of the Virtual Cell Challenge 2026, read back.

    python benchmarks/submission.py [--quick] [--json FILE]

A full submission has 360,000 cells of 18,533 genes. Here are two sizes of the same form, 5,000 genes with a count in a
cell; what the full one takes is told by the line through both. zstd alone compresses the same h5ad bytes at the same
level, in memory; vcc prep (extra `submit`) packs the same cells from an h5ad that is not compressed, and reads nothing
back. Each run is a process of its own; its memory is the largest resident set, libraries included. The disk needs
80 KB a cell.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
from _measure import Claim, Row, compare, finish, new_parser
from _screen import distinct_genes
from rich.console import Console

from vcc_fm.store.counts_file import CountsFile
from vcc_fm.submission.archive import write_cells
from vcc_fm.submission.challenge import Inputs
from vcc_fm.submission.submit import write_submission
from vcc_fm.submission.vcc2026 import CELLS, Vcc2026

GENES, NONZEROS, CONTEXTS = 18_533, 5_000, "ABC"
SIZES, QUICK_SIZES = (12_000, 36_000), (2_400, 6_000)
FULL, MEMORY_MB = 360_000, 4_000
ROUNDS, QUICK_ROUNDS = 2, 1
PIECE = 1 << 26
MISSING = "needs vcc-cli: pip install -e '.[submit]'"


def main(arguments: list[str]) -> int:
    """Measure, print, write; the exit code."""
    parser = new_parser("predictions into an archive: MB per second, and memory", "fewer cells and rounds")
    parser.add_argument("--sizes", type=int, nargs=2, metavar="CELLS", help="two other sizes, multiples of 1,200")
    parser.add_argument("--part", nargs=2, metavar=("PART", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part is not None:
        print(json.dumps(_part(options.part[0], Path(options.part[1]))))
        return 0
    sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
    console, rows = Console(), list[Row]()
    peers = {"zstd": "zstd alone, the same bytes in memory", "vcc": "vcc prep"}
    if shutil.which("vcc") is None:
        console.print(f"vcc prep: {MISSING}", markup=False)
        del peers["vcc"]
    peaks, seconds = list[float](), list[float]()
    for cells in sizes:
        found = measure(cells, ["ours", *peers], QUICK_ROUNDS if options.quick else ROUNDS)
        megabytes = found["zstd"][0]["bytes"] / 1e6
        rates = {part: np.array([megabytes / one["seconds"] for one in runs]) for part, runs in found.items()}
        peak = {part: max(one["peak"] for one in runs) for part, runs in found.items()}
        what = f"{cells:,} cells, {megabytes:,.0f} MB h5ad"
        rows += [compare(f"archive ({what})", rates["ours"], rates[part], peers[part], "MB/s") for part in peers]
        if "vcc" in peers:
            ratio = peak["ours"] / peak["vcc"]
            rows.append(Row(f"largest resident set ({what})", peak["ours"], peak["vcc"], "vcc prep", "MB", ratio))
        peaks.append(peak["ours"])
        seconds.append(megabytes / float(np.median(rates["ours"])))
    few, many = sizes
    slope = (peaks[1] - peaks[0]) / (many - few)
    rows.append(
        Row(f"largest resident set ({many:,} cells)", *peaks[::-1], f"{few:,} cells", "MB", peaks[1] / peaks[0])
    )
    claims = [
        Claim(
            f"by the line through both sizes {FULL:,} cells take at most {MEMORY_MB:,} MB of memory",
            1,
            MEMORY_MB / (peaks[1] + slope * (FULL - many)),
        ),
        Claim(
            f"time is linear in cells: {many:,} come at least 0.8 times as fast, a cell, as {few:,}",
            0.8,
            (seconds[0] / few) / (seconds[1] / many),
        ),
    ]
    console.print(f"by the same line {FULL:,} cells take {seconds[1] * FULL / many:,.0f} s")
    return finish(
        "submission", ["vcc-fm", "anndata", "h5py", "pyarrow", "vcc-cli"], rows, claims, options.json, console
    )


def measure(cells: int, parts: list[str], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Seconds, MB of memory and bytes of each part, for each round, on predictions of so many cells."""
    with tempfile.TemporaryDirectory(prefix="submission-") as name:
        folder = Path(name)
        write_predictions(folder, cells)
        runs: dict[str, list[dict[str, Any]]] = {part: [] for part in parts}
        for _ in range(rounds):
            for part, results in runs.items():
                command = [sys.executable, __file__, "--part", part, name]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                results.append(json.loads(done.stdout))
    return runs


def write_predictions(folder: Path, cells: int) -> None:
    """Write predictions of three contexts, 400 cells a perturbation, and the challenge's lists."""
    rng = np.random.default_rng(0)
    genes, targets = [f"GENE{number}" for number in range(GENES)], [f"P{i}" for i in range(cells // 3 // CELLS)]
    assert cells == 3 * CELLS * len(targets), f"{cells} is no multiple of {3 * CELLS}"
    with CountsFile(folder / "predictions.h5ad", genes, {}) as file:
        # The same draws for every group: drawing takes longer than what is measured. Each is far larger than what
        # zstd looks back at.
        places = distinct_genes(rng, CELLS, GENES, NONZEROS).ravel()
        values = 1 + rng.poisson(rng.gamma(0.5, 4.0, len(places))).astype(np.int32)
        counts = sp.csr_matrix((values, places, np.arange(CELLS + 1) * NONZEROS), shape=(CELLS, GENES))
        for context in CONTEXTS:
            for target in targets:
                file.append(counts, pd.DataFrame({"context": context, "perturbation": target}, range(CELLS)))
    shuffled = rng.permutation(genes).tolist()
    (folder / "gene_names.csv").write_text("\n".join(["gene_name", *shuffled]))
    (folder / "pert_counts.csv").write_text("\n".join(["target_gene", *targets]))


def _part(part: str, folder: Path) -> dict[str, Any]:
    """Seconds, MB of memory, and bytes of the h5ad inside the archive."""
    lists = [folder / "gene_names.csv", folder / "pert_counts.csv"]
    inputs, h5ad = Inputs(folder / "predictions.h5ad", _no_store, *lists, list(CONTEXTS)), folder / "cells.h5ad"
    if part == "ours":
        start = time.perf_counter()
        write_submission(Vcc2026(inputs), folder / "ours.vcc", 0, lambda step: _silent)
        return {"seconds": time.perf_counter() - start, "peak": _peak(resource.RUSAGE_SELF), "bytes": 0}
    if not h5ad.exists():
        write_cells(h5ad, Vcc2026(inputs), _silent)
    if part == "vcc":
        words = [
            "prep",
            h5ad,
            "-g",
            lists[0],
            "--perts",
            lists[1],
            "--contexts",
            "A,B,C",
            "-o",
            folder / "x.vcc",
            "-f",
        ]
        start = time.perf_counter()
        subprocess.run(["vcc", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
        seconds, peak = time.perf_counter() - start, _peak(resource.RUSAGE_CHILDREN)
        return {"seconds": seconds, "peak": peak, "bytes": h5ad.stat().st_size}
    codec, seconds = pa.Codec("zstd", compression_level=1), 0.0
    with h5ad.open("rb") as file:
        while piece := file.read(PIECE):
            start = time.perf_counter()
            codec.compress(piece)
            seconds += time.perf_counter() - start
    return {"seconds": seconds, "peak": _peak(resource.RUSAGE_SELF), "bytes": h5ad.stat().st_size}


def _peak(who: int) -> float:
    """Largest resident set so far, MB."""
    return resource.getrusage(who).ru_maxrss * 1024 / 1e6


def _silent(done: int, total: int) -> None:
    pass


def _no_store() -> Any:
    raise AssertionError("this challenge takes no control cells")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
