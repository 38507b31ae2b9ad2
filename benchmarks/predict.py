"""How fast predicted cells become an h5ad, group by group, beside anndata appending to its own file.

    python benchmarks/predict.py [--quick] [--json FILE]

A group has 64 cells of 18,080 genes, 640 of them with a count. What a group costs must not depend on how many came
before it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from _measure import Claim, compare, finish, new_parser
from anndata.io import sparse_dataset, write_elem
from rich.console import Console

from vcc_fm.store.counts_file import CountsFile

CELLS, GENES, NONZEROS = 64, 18_080, 640
GROUPS, QUICK_GROUPS = (1_000, 10_000), (100, 1_000)
PEER_GROUPS = 1_000
ROUNDS = 3


def main(arguments: list[str]) -> int:
    """Measure, print, write; the exit code."""
    parser = new_parser("predicted cells into an h5ad: groups per second", "fewer groups")
    options = parser.parse_args(arguments)
    few, many = QUICK_GROUPS if options.quick else GROUPS
    peers = min(few, PEER_GROUPS)
    rng = np.random.default_rng(0)
    genes = np.sort(rng.random((CELLS, GENES)).argpartition(NONZEROS)[:, :NONZEROS], axis=1)
    counts = sp.csr_matrix(
        (1 + rng.poisson(1.0, genes.size).astype(np.int32), genes.ravel(), np.arange(CELLS + 1) * NONZEROS),
        shape=(CELLS, GENES),
    )
    rates: dict[str, list[float]] = {"few": [], "many": [], "peer": []}
    with tempfile.TemporaryDirectory(prefix="predict-") as folder:
        path = Path(folder, "x.h5ad")
        for _ in range(ROUNDS):
            rates["few"].append(few / ours(path, counts, few))
            rates["peer"].append(peers / theirs(path, counts, peers))
        rates["many"].append(many / ours(path, counts, many))
    rows = [
        compare(
            f"groups appended ({few:,} of {CELLS} cells)",
            np.array(rates["few"]),
            np.array(rates["peer"]),
            "anndata.io.sparse_dataset(...).append",
            "groups/s",
        )
    ]
    ratio = rates["many"][0] / float(np.median(rates["few"]))
    claim = f"time is linear in groups: of {many:,} groups one comes at least 0.8 times as fast as of {few:,}"
    return finish("predict", ["vcc-fm", "anndata", "h5py"], rows, [Claim(claim, 0.8, ratio)], options.json, Console())


def ours(path: Path, counts: sp.csr_matrix, groups: int) -> float:
    """Seconds to write a file of ``groups`` groups."""
    begin = time.perf_counter()
    with CountsFile(path, [f"g{i}" for i in range(GENES)], {}) as file:
        for number in range(groups):
            file.append(counts, pd.DataFrame({"perturbation": [f"p{number}"] * CELLS}))
    return time.perf_counter() - begin


def theirs(path: Path, counts: sp.csr_matrix, groups: int) -> float:
    """Seconds for anndata to append as many, the matrix alone."""
    begin = time.perf_counter()
    with h5py.File(path, "w") as file:
        write_elem(file, "X", counts, dataset_kwargs={"compression": "gzip", "compression_opts": 1})
        matrix = sparse_dataset(file["X"])
        for _ in range(groups - 1):
            matrix.append(counts)
    return time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
