"""A simulated panel in the form of "Echoes of Silenced Genes", scored by `recipes/myllia.yaml` in three ways.

    python benchmarks/_myllia.py FOLDER [SEED ...] [--genes 800] [--cells 60]

200 perturbations in one line, of which 80 train and 120 are held out and scored; two more screens, H1 with 60 of the
perturbations and K562 with all, which measured 95 and 75 of 100 genes. The recipe runs on the line alone, with the two
screens where what they did not measure is missing, and where it is taken for unchanged. Writes FOLDER/results.md, a
table of means over the seeds; a seed is a world, with cells, split and weights of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from rich.console import Console

from vcc_fm.recipe.data import SimulateConfig
from vcc_fm.recipe.read import load_recipe
from vcc_fm.run.stages import run_stage, stages_of
from vcc_fm.sources.simulate import simulate

RECIPE = Path(__file__).parents[1] / "recipes" / "myllia.yaml"
PERTURBATIONS, HELD_OUT, IN_H1 = 200, 120, 60
MEASURED = {"line": 1.0, "H1": 0.95, "K562": 0.75}
WAYS = {
    "line alone": ["data.sources=[SOURCE]"],
    "with both screens, missing": ["data.sources=[SOURCE,H1,K562]"],
    "with both screens, unchanged": ["data.sources=[SOURCE,H1,K562]", "decoder.unmeasured=unchanged"],
}
SMALLER = [
    "data.names.symbols=null", "data.minimum_cells=5", "score.options={}", "predict.ask=[{}]", "embed.cells.width=16",
    "decoder.backbone={model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 2, "
    "num_attention_heads: 4, vocab_size: 1}", "decoder.gene_rank=24",
    "train.steps=300", "train.set_size=32", "train.batch_sets=8", "train.lr=3e-3", "train.precision=fp32",
    "train.eval_every=50", "train.checkpoint_every=300",
]  # fmt: skip


def write_panel(folder: Path, genes: int, cells: int, seed: int) -> tuple[dict[str, str], list[str]]:
    """Write the screens; a source of each, as YAML, and the held-out perturbations of the line."""
    rng = np.random.default_rng([seed, 1])
    config = SimulateConfig(
        contexts=list(MEASURED), perturbations=PERTURBATIONS, genes=genes, cells=cells, controls=10 * cells
    )
    simulate(config, seed, folder)
    sources, labels = {}, list[str]()
    for name, share in MEASURED.items():
        data = anndata.read_h5ad(folder / f"{name}.h5ad")
        found = data.obs["perturbation"].astype(str)
        labels = labels or sorted(set(found) - {"non-targeting"})
        keep = found.isin(["non-targeting", *(rng.choice(labels, IN_H1, False) if name == "H1" else labels)])
        data[keep.to_numpy(), np.sort(rng.permutation(genes)[: round(share * genes)])].write_h5ad(
            folder / f"{name}.h5ad"
        )
        sources[name] = json.dumps(
            {"name": name, "path": str(folder / f"{name}.h5ad"), "values": "counts", "context": name}
            | {"perturbation_column": "perturbation", "batch_column": "batch"}
        )
    return sources, sorted(rng.choice(labels, HELD_OUT, False).tolist())


def run(folder: Path, seed: int, genes: int, cells: int) -> pd.DataFrame:
    """Scores of one world, columns way, entry, kind, context, metric, raw, scaled."""
    sources, held = write_panel(folder, genes, cells, seed)
    proteins = (
        f"embed.proteins={{encoder: composition, kmer: 1, fasta: {folder / 'proteins.fasta'}, missing: learned}}"
    )
    found = []
    for number, (way, overrides) in enumerate(WAYS.items()):
        for name, source in sources.items():
            overrides = [one.replace("SOURCE" if name == "line" else name, source, 1) for one in overrides]
        given = [*SMALLER, proteins, *overrides, f"split.test={json.dumps(held)}", f"seed={seed}"]
        recipe = load_recipe(RECIPE, [*given, f"name=way-{number}", f"output={folder}"])
        for stage in stages_of(recipe):
            run_stage(stage, recipe, Console())
        found.append(pd.read_csv(recipe.run_folder / "scores.csv").assign(way=way, seed=seed))
    return pd.concat(found)


def main(arguments: list[str]) -> int:
    """Run all worlds, print the table; 0."""
    parser = argparse.ArgumentParser(prog="python benchmarks/_myllia.py", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--genes", type=int, default=800)
    parser.add_argument("--cells", type=int, default=60)
    options = parser.parse_args(arguments)
    rows = []
    for seed in options.seeds:
        folder = options.folder / f"world-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        rows.append(run(folder, seed, options.genes, options.cells))
    table = pd.concat(rows).pivot_table(
        index=["way", "entry"], columns="metric", values="raw", aggfunc=["mean", "std"]
    )
    table = table.sort_values(("mean", "score"), ascending=False).sort_index(level="way", sort_remaining=False)
    lines = ["| sources | entry | score | gain | cosine |", "|---|---|---:|---:|---:|"]
    for (way, entry), row in table.iterrows():
        shown = (f"{row['mean', name]:.3f} ± {row['std', name]:.3f}" for name in ("score", "gain", "cosine"))
        lines.append(f"| {way} | {entry} | {' | '.join(shown)} |")
    (options.folder / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
