"""What two more screens add to Myllia's score, and what becomes of the genes that they did not measure.

    python benchmarks/myllia.py [--quick] [--json FILE] [--worlds 3] [--folder FOLDER]

A simulated panel in the form of "Echoes of Silenced Genes": 200 perturbations in one line, of which 80 train and 120
are held out and scored; a screen of 60 of them that measured 95 of 100 genes, and one of all that measured 75. A small
model of `recipes/myllia.yaml` is trained on the line alone, with both screens where what they did not measure is
missing, and where it is taken for unchanged. The peers are the rungs of the ladder. A world has cells, split and
weights of its own; values are means over worlds, differences are within worlds, with Student's 95 % interval.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from _measure import Claim, finish, new_parser
from rich.console import Console

from vcc_fm.recipe.data import SimulateConfig
from vcc_fm.recipe.read import load_recipe
from vcc_fm.run.stages import run_stage, stages_of
from vcc_fm.scoring.worlds import interval
from vcc_fm.sources.simulate import CONTROL, simulate

RECIPE = Path(__file__).parents[1] / "recipes" / "myllia.yaml"
MEASURED = {"line": 1.0, "H1": 0.95, "K562": 0.75}
"""Screen -> share of the genes that it measured."""
ALONE, MISSING, UNCHANGED = "line alone", "both screens, missing", "both screens, unchanged"
WAYS = {
    ALONE: (["line"], "missing"),
    MISSING: (["line", "H1", "K562"], "missing"),
    UNCHANGED: (["line", "H1", "K562"], "unchanged"),
}
SMALLER = [
    "data.names.symbols=null", "predict.ask=[{}]", "embed.cells.width=16", "decoder.gene_rank=24", "train.steps=60",
    "decoder.backbone={model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, "
    "num_attention_heads: 4, vocab_size: 1}",
    "train.set_size=24", "train.batch_sets=8", "train.lr=3e-3", "train.precision=fp32", "train.eval_every=30",
    "train.checkpoint_every=60",
]  # fmt: skip
METRICS = ["score", "gain", "cosine"]


def main(arguments: list[str]) -> int:
    """Measure, print, write; the exit code."""
    parser = new_parser(__doc__.splitlines()[0], "two worlds of 25 perturbations, 20 training steps: claims nothing")
    parser.add_argument("--worlds", type=int, default=3, help="how many are drawn (default: 3)")
    parser.add_argument("--folder", type=Path, help="keep the runs there")
    options = parser.parse_args(arguments)
    console = Console(width=140)
    with tempfile.TemporaryDirectory(prefix="myllia-") as room:
        folder = options.folder or Path(room)
        worlds = range(2 if options.quick else options.worlds)
        found = pd.concat([world(folder / f"world-{seed}", seed, options.quick) for seed in worlds])
    values = found.set_index(["way", "entry", "seed"])[METRICS].sort_index()
    console.print("\n".join(table(values)), markup=False, highlight=False, soft_wrap=True)
    score = values["score"]
    ahead = {
        "both screens raise the model's score": score[MISSING, "model"] - score[ALONE, "model"],
        "the model is ahead of the mean response": score[MISSING, "model"] - score[MISSING, "mean-response"],
        "what was not measured is better missing than unchanged": score[MISSING, "model"] - score[UNCHANGED, "model"],
    }
    claims = [
        Claim(
            f"{claim}, by the low end of the interval", 0.0, None if options.quick else interval(values.to_numpy()).low
        )
        for claim, values in ahead.items()
    ]
    return finish("myllia", ["vcc-fm", "numpy", "torch"], [], claims, options.json, console)


def world(folder: Path, seed: int, quick: bool) -> pd.DataFrame:
    """Draw one, train and score in each way: columns way, entry, seed and the metrics."""
    perturbations, held_out, in_h1 = (25, 15, 8) if quick else (200, 120, 60)
    genes, cells = (100, 20) if quick else (300, 24)
    size = {"perturbations": perturbations, "genes": genes, "cells": cells, "controls": 10 * cells}
    config = SimulateConfig(contexts=list(MEASURED), depth=2000.0, **size)
    sources = {source.name: source.model_dump(mode="json") for source in simulate(config, seed, folder)}
    rng = np.random.default_rng([seed, 1])
    labels = sorted(set(anndata.read_h5ad(folder / "line.h5ad").obs["perturbation"]) - {CONTROL})
    for name, share in MEASURED.items():
        data = anndata.read_h5ad(folder / f"{name}.h5ad")
        there = rng.choice(labels, in_h1, replace=False) if name == "H1" else labels
        measured = np.sort(rng.permutation(genes)[: round(share * genes)])
        data[data.obs["perturbation"].isin([CONTROL, *there]).to_numpy(), measured].write_h5ad(folder / f"{name}.h5ad")
    held = sorted(rng.choice(labels, held_out, replace=False).tolist())
    proteins = {"encoder": "composition", "kmer": 1, "fasta": str(folder / "proteins.fasta"), "missing": "learned"}
    found = []
    for number, (way, (screens, unmeasured)) in enumerate(WAYS.items()):
        given = [*SMALLER, f"seed={seed}", f"name=way-{number}", f"output={folder}", f"split.test={json.dumps(held)}"]
        given += [f"embed.proteins={json.dumps(proteins)}", f"decoder.unmeasured={unmeasured}", "data.minimum_cells=5"]
        given += ["train.steps=20", "train.eval_every=10", "train.checkpoint_every=20"] * quick
        recipe = load_recipe(RECIPE, [*given, f"data.sources={json.dumps([sources[name] for name in screens])}"])
        for stage in stages_of(recipe):
            run_stage(stage, recipe, Console(quiet=True))
        rows = pd.read_csv(recipe.run_folder / "scores.csv").pivot(index="entry", columns="metric", values="raw")
        found.append(rows.reset_index().assign(way=way, seed=seed))
    return pd.concat(found)


def table(values: pd.DataFrame) -> list[str]:
    """Markdown: mean scores of all entries, and how far the models are ahead, best first.

    Args:
        values: metrics, by way, entry and world.
    """
    score = values["score"]
    means = score.groupby(["entry", "way"]).mean().unstack().sort_values(MISSING, ascending=False)
    lines = [f"| entry, score | {' | '.join(WAYS)} | model less it ({MISSING}) |", "|---|---:|---:|---:|---:|"]
    for entry, row in means.iterrows():
        cells = ["–" if np.isnan(row[way]) else f"{row[way]:.1f}" for way in WAYS]
        ahead = "" if entry == "model" else signed(score[MISSING, "model"] - score[MISSING, entry])
        lines.append(f"| {entry} | {' | '.join(cells)} | {ahead} |")
    lines += [
        "",
        f"| model | gain | cosine | score | less {ALONE} | less {UNCHANGED} |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for way in WAYS:
        gain, cosine, total = (values.loc[(way, "model"), name].mean() for name in ("gain", "cosine", "score"))
        less = [
            "" if way == other else signed(score[way, "model"] - score[other, "model"]) for other in (ALONE, UNCHANGED)
        ]
        lines.append(f"| {way} | {gain:.3f} | {cosine:.3f} | {total:.1f} | {' | '.join(less)} |")
    return lines


def signed(values: pd.Series) -> str:
    """Mean of differences over worlds and its interval."""
    found = interval(values.to_numpy())
    return f"{found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f})"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
