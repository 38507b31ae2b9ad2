"""How fast cells reach the decoder, beside Hugging Face `datasets` on the same folder and the memory's own speed.

    python benchmarks/loader.py [--quick] [--json FILE]

A synthetic screen goes through `prepare`; then four pieces of work take turns, each in one thread and on sets or rows
of 512 cells: training batches as the trainer gets them (control embeddings, log shares, dense counts), dense counts of
random rows of the cell store, the same through `datasets`, and filling a dense buffer that is there already: nothing
writes dense counts faster. The files are in the page cache, as they are after a first epoch.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
from _measure import Claim, compare, finish, rates
from _screen import Size, write_screen
from rich.console import Console

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.cellsets.sampler import Assembler, SetSampler, Vocabulary

GENES, NONZEROS = 18_080, 3_000
CELLS, QUICK_CELLS, FEWEST_CELLS = 20_000, 4_000, 400
ROUNDS, QUICK_ROUNDS = 60, 20
SETS, SET_SIZE = 16, 32
ROWS = SETS * SET_SIZE

BATCHES = "training batches"
DENSE = "random cells, dense float32"
HF = "datasets rows, densified by numpy"
MEMORY = "memory-write limit"


def main(arguments: list[str]) -> int:
    """Measure, print, write; the exit code."""
    parser = argparse.ArgumentParser(description="cells per second that reach the decoder")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_CELLS:,} cells instead of {CELLS:,}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    parser.add_argument("--cells", type=int, help=f"number of cells, at least {FEWEST_CELLS}")
    options = parser.parse_args(arguments)
    cells = options.cells if options.cells is not None else QUICK_CELLS if options.quick else CELLS
    if cells < FEWEST_CELLS:
        parser.error(f"--cells {cells}: every group needs cells, use at least {FEWEST_CELLS}")
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        console.print(f"writing {cells:,} cells with {GENES:,} genes, {NONZEROS:,} of them non-zero", highlight=False)
        data = write_screen(Path(folder), Size(cells, GENES, NONZEROS))
        found = rates(_works(data), QUICK_ROUNDS if options.quick else ROUNDS)
    size = f"{cells:,} cells x {GENES:,} genes, {NONZEROS:,} non-zero"
    rows = [
        compare(f"{DENSE} ({size})", found[DENSE], found[HF], HF, "cells/s"),
        compare(f"{DENSE} ({size})", found[DENSE], found[MEMORY], MEMORY, "cells/s"),
        compare(f"{BATCHES} ({size})", found[BATCHES], found[HF], f"{HF} (counts alone)", "cells/s"),
        compare(f"{BATCHES} ({size})", found[BATCHES], found[MEMORY], f"{MEMORY} (counts alone)", "cells/s"),
    ]
    claims = [
        Claim("dense counts of random cells come at least twice as fast as through datasets", 2.0, rows[0].ratio),
        Claim(
            "dense counts of random cells reach a twentieth of the memory-write limit, in one thread",
            0.05,
            rows[1].ratio,
        ),
    ]
    return finish("loader", ["vcc-fm", "numpy", "numba", "pyarrow", "datasets"], rows, claims, options.json, console)


def _works(data: Dataset) -> dict[str, Callable[[int], float]]:
    """What is timed: each takes the number of a round and returns how many cells it handled."""
    store = data.cells
    peer = datasets.load_from_disk(str(store.folder)).with_format("numpy", columns=["genes", "counts"])
    buffer = np.empty((ROWS, len(store.genes)), np.float32)
    sampler = SetSampler(data, data.split.groups("train"), SET_SIZE, 0)
    vocabulary = Vocabulary(tuple(store.contexts), tuple(store.batches), ())
    assembler = Assembler(data, vocabulary, SET_SIZE, response=True)

    def random_rows(number: int) -> np.ndarray:
        return np.random.default_rng(number).integers(len(store), size=ROWS)

    def through_datasets(rows: np.ndarray) -> np.ndarray:
        dense = np.zeros((len(rows), len(store.genes)), np.float32)
        lists = peer[rows]
        for cell, genes, counts in zip(dense, lists["genes"], lists["counts"], strict=True):
            cell[genes] = counts
        return dense

    def batch(number: int) -> float:
        return float(assembler.assemble(sampler.step(number, SETS, slice(None))).cell_mask_BS.sum())

    def fill(number: int) -> float:
        buffer.fill(number)
        return ROWS

    # Equal results first: a faster way to something else would be no comparison.
    rows = random_rows(0)
    assert np.array_equal(store.dense(rows), through_datasets(rows))
    # What a run computes once (log shares, responses) is computed here, as it is before the second epoch.
    for number in range(-(-len(sampler) // SETS)):
        batch(number)
    return {
        BATCHES: batch,
        DENSE: lambda number: len(store.dense(random_rows(number))),
        HF: lambda number: len(through_datasets(random_rows(number))),
        MEMORY: fill,
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
