"""What a score table costs beside the scorer's own functions, and what the next model on the same truth costs.

    python benchmarks/scoring.py [--quick] [--full] [--genes G] [--controls C] [--json FILE]

One context of random counts, preset vcc2026. The bare scorer reads the same files and calls cell-eval2 for the mean
response, the replicate and one model, by the settings that the preset gives it. Both take turns, each with empty
caches; then a second model is scored with the cache of the first. What counts is processor time. `--full` is a
contest's context: 300 perturbations of 400 cells, 10,000 controls, 18,080 genes (60 GB, days on one core). Time falls
with `--genes` (there must be more than perturbations) and with `--controls`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from _measure import Claim, compare, finish, new_parser
from rich.console import Console

from vcc_fm.scoring.anchors import quiet, scorer_config, threads
from vcc_fm.scoring.presets.vcc2026 import Vcc2026
from vcc_fm.scoring.score import score
from vcc_fm.scoring.table import Entry

CONTROL = "non-targeting"
ROUNDS = 3


class Size(NamedTuple):
    """Perturbations, cells of each, control cells, and genes."""

    perturbations: int
    cells: int
    controls: int
    genes: int


SIZE, QUICK, FULL = Size(16, 100, 500, 1_500), Size(12, 50, 400, 1_000), Size(300, 400, 10_000, 18_080)


def main(arguments: list[str]) -> int:
    """Measure, print, write; the exit code."""
    parser = new_parser("score tables: perturbations per hour", "fewer perturbations and genes")
    parser.add_argument("--full", action="store_true", help="a contest's context: days on one core, 60 GB")
    parser.add_argument("--genes", type=int, help="so many genes instead")
    parser.add_argument("--controls", type=int, help="so many control cells instead")
    options = parser.parse_args(arguments)
    size, rounds = (FULL, 1) if options.full else (QUICK if options.quick else SIZE, ROUNDS)
    size = size._replace(genes=options.genes or size.genes, controls=options.controls or size.controls)
    seconds = []
    with tempfile.TemporaryDirectory(prefix="scoring-") as folder:
        # What is compiled at the first call belongs to nobody.
        measure(Path(folder), QUICK._replace(perturbations=3, genes=400), seed=9)
        for number in range(rounds):
            seconds.append(measure(Path(folder), size, seed=number))
    first, second, bare = np.array(seconds).T
    size_text = f"{size.perturbations} perturbations x {size.cells} cells x {size.genes:,} genes"
    amount = 3600 * size.perturbations
    rows = [
        compare(
            f"one model ({size_text})", amount / first, amount / bare, "cell-eval2's own functions", "perturb./CPU h"
        ),
        compare(f"the next model ({size_text})", amount / second, amount / first, "the first model", "perturb./CPU h"),
    ]
    claims = [
        Claim("a score table costs at most a tenth more than the bare scorer", 1 / 1.1, rows[0].ratio),
        Claim("the next model on the same truth costs at most half of the first", 2.0, rows[1].ratio),
    ]
    return finish("scoring", ["vcc-fm", "cell-eval2", "pdex"], rows, claims, options.json, Console())


def measure(folder: Path, size: Size, seed: int) -> tuple[float, float, float]:
    """Seconds of the processor: a first model, a second model with what was kept, the bare scorer with the first."""
    truth, models = folder / "truth.h5ad", [folder / f"model{number}.h5ad" for number in range(2)]
    random_cells(size, seed, draw=0).write_h5ad(truth)
    for draw, path in enumerate(models, start=1):
        cells = random_cells(size, seed, draw)
        cells[cells.obs["perturbation"] != CONTROL].copy().write_h5ad(path)
    taken = []
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        for path in models:
            begin = time.process_time()
            score(truth, [Entry("model", "model", path)], CONTROL, "vcc2026", Path(cache))
            taken.append(time.process_time() - begin)
    begin = time.process_time()
    bare_scorer(truth, models[0])
    return taken[0], taken[1], time.process_time() - begin


def bare_scorer(truth: Path, model: Path) -> None:
    """Both ends of the scale and the metrics of one model, by the scorer's own functions."""
    from cell_eval2 import build_generic_baseline, compute_metrics
    from cell_eval2.anchor import compute_replicate_anchor

    real = ad.read_h5ad(truth)
    controls = real[real.obs["perturbation"] == CONTROL]
    config = scorer_config("vcc2026", list(Vcc2026.metrics), CONTROL)
    config = replace(config, num_threads=threads(real.n_vars, controls.n_obs))
    with quiet(), tempfile.TemporaryDirectory() as kept:
        cached = replace(config, cache_real=kept)
        build_generic_baseline(real, config=cached, allow_degenerate=True)
        compute_replicate_anchor(real, config=replace(config, metrics=list(Vcc2026.metrics)))
        submission = ad.concat([ad.read_h5ad(model), controls], index_unique="-")
        compute_metrics(submission, real, config=cached)


def random_cells(size: Size, seed: int, draw: int) -> ad.AnnData:
    """Poisson counts, 10,000 a cell; a perturbation changes a tenth of the genes. ``draw`` varies the cells only."""
    means, cells = np.random.default_rng(seed), np.random.default_rng([seed, draw])
    genes = [f"G{number}" for number in range(size.genes)]
    base = means.lognormal(0, 1.5, size.genes)
    blocks, labels = [], []
    for number in range(size.perturbations + 1):
        effect = means.normal(0, 0.7, size.genes) * (means.random(size.genes) < 0.1) * (number > 0)
        mean = base * np.exp(effect)
        count = size.cells if number else size.controls
        blocks.append(sp.csr_matrix(cells.poisson(10_000 * mean / mean.sum(), (count, size.genes)).astype(np.float32)))
        labels += [genes[number - 1] if number else CONTROL] * count
    obs = pd.DataFrame(
        {"context": "c", "perturbation": labels}, index=[f"cell{number}" for number in range(len(labels))]
    )
    return ad.AnnData(sp.vstack(blocks, format="csr"), obs=obs, var=pd.DataFrame(index=genes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
