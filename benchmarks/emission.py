"""How much of a replicate emission keeps, for a model that knows the mean of every group.

    python benchmarks/emission.py [--quick] [--json FILE]

Every group and the controls are cut in halves. Cells are emitted from the first half's controls and scored against the
second half beside its own controls, so that no noise of controls cancels. The first half's own cells are the ceiling.
The known mean is that of ten times as many cells of the same simulated groups; of real cells it is that of both
halves, as nothing nearer to the truth can be had. The claims are of the default emitter; a cell that repeats the
rounded mean is shown to fail.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from _measure import Claim, finish, new_parser
from rich.console import Console
from rich.table import Table

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.prediction.asking import Asked
from vcc_fm.prediction.emission import emit_groups
from vcc_fm.prediction.predictors import RatioPredictor
from vcc_fm.recipe.data import SimulateConfig
from vcc_fm.recipe.predict import PredictConfig
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.load import load_dataset
from vcc_fm.run.stages import run_stage, stages_of
from vcc_fm.scoring.score import score
from vcc_fm.scoring.table import Entry, ScoreTable
from vcc_fm.sources.simulate import simulate
from vcc_fm.store.counts_file import CountsFile

CONTROL = "non-targeting"
QUIET = Console(quiet=True)
EMITTERS = ("paired-controls", "negative-binomial")
CEILING, ROUNDED = "the first half itself", "rounded mean, repeated"
PAPALEXI = "perturbation/papalexi2021_thp1_crisprko_20729x299_counts.h5ad"
RESPONSIVE = ["IFNGR1", "IFNGR2", "JAK2", "STAT1", "IRF1", "SMAD4", "CUL3", "BRD4"]


def main(arguments: list[str]) -> int:
    """Measure, print, write; the exit code."""
    parser = new_parser(
        "scores of emitted cells as a share of the replicate they were made of",
        "fewer simulated cells, and no real ones",
    )
    options = parser.parse_args(arguments)
    console, claims = Console(), []
    with tempfile.TemporaryDirectory() as folder:
        for name, cells, known, target in screens(Path(folder), options.quick):
            found = measure(Path(folder, name), cells, known)
            show(name, found, console)
            shares = share_of_ceiling(found)
            claim = f"{name}: emitted cells reach {target} of the replicate on the weakest of six members"
            claims.append(Claim(claim, target, float(shares.loc[EMITTERS[0]].min())))
            failed = f"{name}: a repeated rounded mean loses at least half of the replicate on some member"
            claims.append(Claim(failed, 0.5, float(1 - shares.loc[ROUNDED].min())))
    return finish("emission", ["vcc-fm", "cell-eval2", "numpy"], [], claims, options.json, console)


def screens(folder: Path, quick: bool) -> list[tuple[str, anndata.AnnData, anndata.AnnData, float]]:
    """Name, cells with obs context, perturbation and batch, cells that tell their means, and the share claimed."""
    number = 100 if quick else 200
    found = [("simulated", simulated(folder / "few", number), simulated(folder / "many", 10 * number), 0.9)]
    data = os.environ.get("VCC_FM_DATA")
    if data is not None and not quick:
        cells = anndata.read_h5ad(Path(data, PAPALEXI))
        label = cells.obs["target_gene"].astype(str)
        cells = cells[cells.obs["assigned"].astype(bool) & label.isin([*RESPONSIVE, CONTROL])].copy()
        columns = {"perturbation": cells.obs["target_gene"].astype(str), "batch": cells.obs["bio_rep"].astype(str)}
        cells.obs = pd.DataFrame(columns).assign(context="THP-1")
        found.append(("Papalexi", cells, cells, 0.8))
    return found


def simulated(folder: Path, cells: int) -> anndata.AnnData:
    """A simulated screen in two contexts with so many cells a group; their means do not depend on the number."""
    config = SimulateConfig(contexts=["alpha", "beta"], cells=cells, controls=4 * cells)
    simulate(config, 200, folder)
    return anndata.concat([anndata.read_h5ad(folder / f"{context}.h5ad") for context in config.contexts])


def measure(folder: Path, cells: anndata.AnnData, known: anndata.AnnData) -> ScoreTable:
    """Scores of the first half's cells, of cells emitted from the ``known`` means, and of rounded means."""
    folder.mkdir(parents=True, exist_ok=True)
    first, second = halves(cells)
    second.write_h5ad(folder / "truth.h5ad")
    data, responses = dataset_of(folder / "first", first), dataset_of(folder / "known", known).responses
    perturbed = first[(first.obs["perturbation"] != CONTROL).to_numpy()]
    perturbed.write_h5ad(folder / "first.h5ad")
    entries = [Entry(CEILING, "ceiling", folder / "first.h5ad")]
    groups = [Asked(0, *group, number) for group, number in data.split.cells.items()]
    row_of = {group: row for row, group in enumerate(responses.groups)}
    oracle = RatioPredictor(data, lambda *group: responses.ratio[row_of[group]])
    for emitter in EMITTERS:
        path = folder / f"{emitter}.h5ad"
        with CountsFile(path, data.cells.genes, {}) as file:
            emit_groups(file, data, oracle, 1.0, groups, PredictConfig(emitter=emitter), 0)
        entries.append(Entry(emitter, "model", path))
    rounded(perturbed).write_h5ad(folder / "rounded.h5ad")
    entries.append(Entry(ROUNDED, "baseline", folder / "rounded.h5ad"))
    return score(folder / "truth.h5ad", entries, CONTROL, "vcc2026", folder / "cache")


def halves(cells: anndata.AnnData) -> tuple[anndata.AnnData, anndata.AnnData]:
    """Disjoint halves of every group of context, batch and perturbation, of the controls too."""
    order = np.random.default_rng(0).permutation(len(cells))
    place = cells.obs.iloc[order].groupby(["context", "batch", "perturbation"], observed=True).cumcount().to_numpy()
    first = np.zeros(len(cells), bool)
    first[order[place % 2 == 0]] = True
    return cells[first].copy(), cells[~first].copy()


def dataset_of(folder: Path, cells: anndata.AnnData) -> Dataset:
    """All that a run knows of ``cells``, every group of which trains."""
    folder.mkdir(parents=True)
    cells.write_h5ad(folder / "cells.h5ad")
    (folder / "proteins.fasta").write_text("".join(f">{gene}\nMKV\n" for gene in cells.var_names))
    source = {"name": "cells", "path": str(folder / "cells.h5ad"), "perturbation_column": "perturbation"}
    source |= {"control": CONTROL, "context_column": "context", "batch_column": "batch", "values": "counts"}
    recipe = Recipe.model_validate(
        {
            "name": "emission",
            "output": str(folder),
            "data": {"sources": [source]},
            "embed": {
                "cells": {"width": 4},
                "proteins": {"kmer": 1, "fasta": str(folder / "proteins.fasta"), "missing": "learned"},
            },
            "split": {"hold_out": "none", "validation": 0.0},
            "train": {"steps": 1},
            "predict": {"ask": [{"perturbations": [RESPONSIVE[0]]}]},
        }
    )
    for stage in stages_of(recipe)[:4]:
        run_stage(stage, recipe, QUIET)
    return load_dataset(recipe, 0)


def rounded(cells: anndata.AnnData) -> anndata.AnnData:
    """The same cells, each with the rounded mean counts of its group."""
    keys = cells.obs.groupby(["context", "perturbation"], observed=True).ngroup().to_numpy()
    sums = sp.csr_matrix((np.ones(len(keys)), (keys, np.arange(len(keys))))) @ cells.X
    means = np.rint(sums.toarray() / np.bincount(keys)[:, None])
    return anndata.AnnData(sp.csr_matrix(means[keys].astype(np.float32)), obs=cells.obs, var=cells.var)


def share_of_ceiling(table: ScoreTable) -> pd.DataFrame:
    """Scaled value of each entry by that of the first half's cells, [entries, members]: the lowest of all contexts."""
    scaled = table.rows.set_index(["context", "entry", "metric"])["unclamped"]
    ceiling = scaled.xs(CEILING, level="entry")
    shares = {
        entry: (scaled.xs(entry, level="entry") / ceiling).groupby("metric").mean() for entry in (*EMITTERS, ROUNDED)
    }
    return pd.DataFrame(shares).T


def show(name: str, table: ScoreTable, console: Console) -> None:
    """Print scaled values and what of the ceiling they are."""
    shares = share_of_ceiling(table)
    shown = Table(
        "cells", *table.labels.values(), title=f"{name}: scaled value as a share of the first half's own cells"
    )
    for entry in shares.index:
        shown.add_row(entry, *(f"{shares.loc[entry, metric]:.2f}" for metric in table.labels))
    console.print(shown)
    scaled = table.rows[table.rows["entry"] == CEILING].groupby("metric", sort=False)["unclamped"].mean()
    console.print(f"{CEILING}: " + ", ".join(f"{table.labels[m]} {value:.2f}" for m, value in scaled.items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
