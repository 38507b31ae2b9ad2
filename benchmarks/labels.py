"""In what memory and time `prepare` takes the labels of many cells: two processes together, and a cell's share.

    python benchmarks/labels.py [--quick] [--json FILE]

The file is made here: barcodes, categorical context, batch and perturbation, and a matrix with one value a cell, so
that hardly anything but labels takes memory. `vcc-fm prepare --processes 2` makes the store. Memory is the largest
sum of what both processes hold (PSS: a page that they share counts once), libraries and mapped files included. Seconds
are told by what lies in the folder of pieces: labels and order of cells; cells read; what is kept; all written.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import yaml
from _measure import Claim, Row, finish, new_parser
from anndata.io import write_elem
from rich.console import Console

SIZES, QUICK_SIZES = (1_000_000, 10_000_000), (20_000, 100_000)
GENES, CONTEXTS, BATCHES, PERTURBATIONS = 100, 4, 96, 2_000
CONTROL = "non-targeting"
MEMORY_MB = 1_000
READING_MB = 64
RANGE = 1 << 20
PARTS = ("labels", "read", "kept", "written")
SEEN = ("owner.json", "order.safetensors", "kept.lock", "kept.safetensors")
"""Pieces at whose coming a part of the work begins or ends."""


def main(arguments: list[str]) -> int:
    """Measure, print, write; the exit code."""
    options = new_parser("labels of many cells: memory and seconds of prepare", "fewer cells").parse_args(arguments)
    few, many = QUICK_SIZES if options.quick else SIZES
    console = Console()
    megabytes, rates = {}, {}
    for cells in (few, many):
        with tempfile.TemporaryDirectory(prefix="labels-") as folder:
            seconds, peaks = prepare(Path(folder), cells)
        rates[cells] = cells / (seconds["labels"] + seconds["kept"])
        told = ", ".join(f"{part} {duration:.1f} s" for part, duration in seconds.items())
        told += "; MB in two processes: " + ", ".join(f"{part} {peak:,.0f}" for part, peak in peaks.items())
        console.print(f"{cells:,} cells: {told}", highlight=False, soft_wrap=True)
        megabytes[cells] = max(peaks[part] for part in PARTS[:-1])  # writing holds counts
    each = (megabytes[many] - megabytes[few]) * 1e6 / (many - few)
    console.print(f"before the writing a further cell takes {each:.0f} bytes at the peak, of both processes together")
    ratio = rates[many] / rates[few]
    rows = [Row(f"labels, what is kept ({many:,} cells)", rates[many], rates[few], f"{few:,} cells", "cells/s", ratio)]
    claims = [
        Claim(
            f"{many:,} cells take at most {MEMORY_MB:,} MB in two processes, until they are written",
            1,
            MEMORY_MB / megabytes[many],
        ),
        Claim(
            f"time is linear in cells: labels of {many:,} come at least 0.8 times as fast, a cell, as of {few:,}",
            0.8,
            ratio,
        ),
    ]
    return finish("labels", ["vcc-fm", "h5py", "pandas", "numba"], rows, claims, options.json, console)


def write_labels(path: Path, cells: int) -> None:
    """Write a screen of ``cells`` with one value each."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        matrix = file.create_group("X")
        matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": (cells, GENES)})
        matrix.create_dataset("data", data=rng.integers(1, 9, cells).astype(np.float32))
        matrix.create_dataset("indices", data=rng.integers(GENES, size=cells, dtype=np.int32))
        matrix.create_dataset("indptr", data=np.arange(cells + 1))
        write_elem(file, "obs", pd.DataFrame(index=pd.Index([], name="_index", dtype=object)))
        obs = file["obs"]
        del obs["_index"]
        obs.attrs["column-order"] = ["context", "batch", "perturbation"]
        text = obs.create_dataset("_index", (cells,), h5py.string_dtype())
        text.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
        for start in range(0, cells, RANGE):
            stop = min(start + RANGE, cells)
            text[start:stop] = [f"{number * 2654435761 % (1 << 32):016x}-{number}" for number in range(start, stop)]
        for name, levels in (
            ("context", [f"C{number}" for number in range(CONTEXTS)]),
            ("batch", [f"lane{number}" for number in range(BATCHES)]),
            ("perturbation", [CONTROL, *(f"GENE{number}" for number in range(1, PERTURBATIONS))]),
        ):
            codes = rng.integers(len(levels), size=cells, dtype=np.int16)
            write_elem(obs, name, pd.Categorical.from_codes(codes, levels))
        write_elem(file, "var", pd.DataFrame(index=[f"GENE{number}" for number in range(GENES)]))
        for name in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
            write_elem(file, name, {})
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})


def prepare(folder: Path, cells: int) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each part of the work, and MB of both processes at their peak in it."""
    write_labels(folder / "cells.h5ad", cells)
    source = {
        "name": "cells",
        "path": str(folder / "cells.h5ad"),
        "control": CONTROL,
        "values": "counts",
        **{f"{label}_column": label for label in ("context", "batch", "perturbation")},
    }
    data = {"sources": [source], "memory_mb": READING_MB}
    recipe = {
        "name": "labels",
        "output": str(folder),
        "data": data,
        "embed": {"proteins": {"kmer": 1}},
        "split": {"hold_out": "perturbations"},
        "train": {"steps": 1, "set_size": 2, "batch_sets": 1, "eval_every": 1, "checkpoint_every": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    process = subprocess.Popen(
        [sys.executable, "-m", "vcc_fm.cli", "prepare", str(folder / "recipe.yaml"), "--processes", "2", "--quiet"]
    )
    times: dict[str, float] = {}
    peaks = dict.fromkeys(("start", *PARTS), 0.0)
    while process.poll() is None:
        part = ("start", *PARTS)[len(times)]
        peaks[part] = max(peaks[part], sum(map(held, children(process.pid))))
        for name in SEEN:
            if name not in times and next(folder.glob(f"**/cells.shards/{name}"), None) is not None:
                times[name] = time.perf_counter()
        time.sleep(0.02)
    if process.returncode:
        raise RuntimeError(f"prepare ended with {process.returncode}")
    moments = [*(times[name] for name in SEEN), time.perf_counter()]
    return dict(zip(PARTS, np.diff(moments).tolist(), strict=True)), peaks


def children(process: int) -> list[int]:
    """The processes that a process has started."""
    try:
        return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except FileNotFoundError:  # it has just ended
        return []


def held(process: int) -> float:
    """MB that a process holds, its share of what it shares with others."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("Pss:")), 0.0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
