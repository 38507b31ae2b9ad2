"""How fast and in what memory a cell store is made of an h5ad, beside anndata reading the file and writing it again.

    python benchmarks/prepare.py [--quick] [--json FILE]

The file is made here, chunk by chunk: CSR counts as float32, uncompressed, as anndata writes it. The store holds every
value verified, cells in group order, and a SHA-256 of the source and of each shard; anndata's copy holds what the file
holds. Each run is a process of its own; its memory is the largest resident set, libraries and mapped files included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from _measure import Claim, Row, compare, finish, new_parser
from _screen import CONTROL, distinct_genes, write_store
from anndata.io import write_elem
from rich.console import Console

from vcc_fm.store.verify import verify

GENES, NONZEROS = 18_080, 2_500
SIZES, QUICK_SIZES = (20_000, 200_000), (1_000, 4_000)
ROUNDS, QUICK_ROUNDS = 3, 1
CHUNK = 2_000
MEMORY_MB = 2_000
PEER = "anndata.read_h5ad and write_h5ad"


def main(arguments: list[str]) -> int:
    """Measure, print, write; the exit code."""
    parser = new_parser("a cell store out of an h5ad: MB per second, and memory", "fewer cells and rounds")
    parser.add_argument("--part", nargs=2, metavar=("PART", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part is not None:
        print(json.dumps(_part(options.part[0], Path(options.part[1]))))
        return 0
    sizes, rounds = (QUICK_SIZES, QUICK_ROUNDS) if options.quick else (SIZES, ROUNDS)
    console = Console()
    rates, peaks, rows = {}, {}, []
    with tempfile.TemporaryDirectory(prefix="prepare-") as folder:
        for cells in sizes:
            path = Path(folder) / f"{cells}.h5ad"
            write_screen(path, cells)
            megabytes = path.stat().st_size / 1e6
            found = {part: [_child(part, path) for _ in range(rounds)] for part in ("ours", "theirs")}
            rates[cells], theirs = (np.array([megabytes / s for s, _ in found[part]]) for part in found)
            peaks[cells], their_peak = (max(peak for _, peak in found[part]) for part in found)
            what = f"{cells:,} cells x {GENES:,} genes, {NONZEROS:,} non-zero, {megabytes:,.0f} MB"
            rows.append(compare(f"cell store of an h5ad ({what})", rates[cells], theirs, PEER, "MB/s"))
            ratio = peaks[cells] / their_peak
            rows.append(Row(f"largest resident set ({cells:,} cells)", peaks[cells], their_peak, PEER, "MB", ratio))
            path.unlink()
    few, many = sizes
    claims = [
        Claim(
            f"{many:,} cells are prepared in at most {MEMORY_MB:,} MB of memory",
            1,
            MEMORY_MB / peaks[many],
        ),
        Claim(
            f"time is linear in cells: {many:,} come at least 0.8 times as fast, a cell, as {few:,}",
            0.8,
            float(np.median(rates[many]) / np.median(rates[few])),
        ),
    ]
    return finish("prepare", ["vcc-fm", "anndata", "h5py", "numba", "pyarrow"], rows, claims, options.json, console)


def write_screen(path: Path, cells: int) -> None:
    """Write a synthetic screen of ``cells``, some of them in memory at a time."""
    rng = np.random.default_rng(0)
    genes = [f"GENE{number}" for number in range(GENES)]
    with h5py.File(path, "w") as file:
        matrix = file.create_group("X")
        matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (cells, GENES)})
        options = {"shape": (0,), "maxshape": (None,), "chunks": (1 << 18,)}
        data, indices = (matrix.create_dataset(n, dtype=t, **options) for n, t in (("data", "f4"), ("indices", "i4")))
        indptr = [0]
        for start in range(0, cells, CHUNK):
            number = min(CHUNK, cells - start)
            nonzeros = int(rng.integers(NONZEROS - 200, NONZEROS + 201))
            end = indptr[-1] + number * nonzeros
            for stored, values in (
                (indices, distinct_genes(rng, number, GENES, nonzeros).ravel()),
                (data, 1 + rng.poisson(1.0, number * nonzeros).astype(np.float32)),
            ):
                stored.resize((end,))
                stored[indptr[-1] :] = values
            indptr += (indptr[-1] + nonzeros * np.arange(1, number + 1)).tolist()
        matrix.create_dataset("indptr", data=np.array(indptr, np.int64))
        label = np.where(
            rng.random(cells) < 0.2, CONTROL, np.array(genes)[rng.integers(max(4, cells // 800), size=cells)]
        )
        obs = {"context": rng.integers(2, size=cells).astype(str), "batch": rng.integers(8, size=cells).astype(str)}
        index = pd.Index([f"cell{number}" for number in range(cells)])
        write_elem(file, "obs", pd.DataFrame(obs | {"perturbation": label}, index, dtype="category"))
        write_elem(file, "var", pd.DataFrame(index=genes))
        for name in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
            write_elem(file, name, {})
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})


def _child(part: str, path: Path) -> tuple[float, float]:
    """Seconds and MB that another process of this program needs."""
    command = [sys.executable, __file__, "--part", part, str(path)]
    seconds, peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return seconds, peak


def _part(part: str, path: Path) -> tuple[float, float]:
    with tempfile.TemporaryDirectory(prefix="prepare-", dir=path.parent) as name:
        start = time.perf_counter()
        if part == "theirs":
            anndata.read_h5ad(path).write_h5ad(Path(name) / "copy.h5ad")
        else:
            write_store(path, Path(name) / "cells", Console(stderr=True))
        seconds, peak = time.perf_counter() - start, _resident()
        if part == "ours":
            verify(Path(name) / "cells")  # what is not whole is not done
    return seconds, peak


def _resident() -> float:
    """Largest resident set of this process so far, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
