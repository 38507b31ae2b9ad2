"""Our demo beside `state tx train` on the same cells, by the scores of the Virtual Cell Challenge 2026.

    python benchmarks/state_tx.py [--quick] [--worlds 3] [--json FILE]

In each simulated world the demo's recipe is trained. State is given the cells of the same training groups, the same
validation groups to choose its checkpoint by, and the same vectors of proteins beside a one-hot of the trained
perturbations: one that was never trained has its protein alone. It trains for at least as many seconds of one
processor as ours, which is claimed, and for about five minutes; starting the program is not counted. Control cells of
the target context and the labels that are asked for then go through `state tx infer`. What comes back is scored twice:

- its own cells, from logarithms back to integers at the depth of control cells;
- what it changes on average, as log ratios through our emitter, with an effect scale that validation chooses, as for
  every other predictor. It is the mean of its answers less the mean of what it makes of control cells.

Its settings were the best of a few in world 200, which is none of those scored.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import ClassVar

import _state as state
import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from _measure import Claim, finish, new_parser
from rich.console import Console

from vcc_fm.baselines.baseline import Baseline
from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.decoder.load import load_decoder
from vcc_fm.prediction.emission import write_measured
from vcc_fm.recipe.parts import BASELINES
from vcc_fm.recipe.read import load_recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.load import load_dataset
from vcc_fm.run.stages import run_stage, stages_of
from vcc_fm.scoring.compare import MEAN
from vcc_fm.scoring.score import score
from vcc_fm.scoring.table import Entry, ScoreTable
from vcc_fm.scoring.worlds import over_worlds
from vcc_fm.splits.split import Group, assert_no_leak
from vcc_fm.store.counts_file import CountsFile
from vcc_fm.training.accelerator import count_parameters

DEMO = Path(__file__).parents[1] / "recipes" / "demo.yaml"
FIRST = 300
"""Seed of the first world; no setting was chosen on these."""
RUNS = {"state-400-steps": 400, "state-2400-steps": 2400}
"""Steps of State: on two cores of an EPYC as long as ours, with a margin, and five minutes."""
BACKBONE = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
BACKBONE |= {"num_key_value_heads": 4, "head_dim": 32}
SETTINGS = {f"model.kwargs.transformer_backbone_kwargs.{key}": size for key, size in BACKBONE.items()} | {
    "model": "state",
    "model.kwargs.hidden_dim": 128,
    "model.kwargs.cell_set_len": 32,
    "training.batch_size": 8,
    "training.lr": 1e-3,
    "data.kwargs.embed_key": "X_hvg",
    "data.kwargs.output_space": "gene",
    "data.kwargs.use_consecutive_loading": "true",
}
LEAST = 0.05
"""Added to both means of a log ratio, which may be 0: a twentieth of a count in a cell of median depth."""


class Deltas(Baseline):
    """What State changes, as one more predictor: ``found`` holds the log ratios [G] of the groups asked for."""

    found: ClassVar[dict[Group, np.ndarray]]

    def log_ratio(self, context: str, perturbation: str) -> np.ndarray:
        """Of that group, [G] float32."""
        return self.found[context, perturbation]


def main(arguments: list[str]) -> int:
    """Measure, print, write; the exit code."""
    parser = new_parser("scores beside State's", "one world and a few steps, which tell nothing but that it runs")
    parser.add_argument("--worlds", type=int, default=3, help="simulated worlds, two at least")
    options = parser.parse_args(arguments)
    console, tables, longer = Console(width=200), {}, []
    worlds, runs = (1, {"state-4-steps": 4}) if options.quick else (options.worlds, RUNS)
    if not state.INSTALLED:
        console.print("skipped: state is not installed (pip install -e '.[peers]')", markup=False)
    for seed in range(FIRST, FIRST + worlds) if state.INSTALLED else []:
        with tempfile.TemporaryDirectory(prefix="state-") as folder:
            tables[str(seed)], ratio = scored(Path(folder), seed, runs, options.quick, console)
        longer.append(ratio)
    ahead, least = (show(tables, console), min(longer)) if len(tables) > 1 else ({}, None)
    claims = [Claim("State trains as many seconds of a processor as ours, or more: the least ratio", 1.0, least)]
    claims += [
        Claim(f"the model is ahead of {entry}: lower end of the 95 % interval over worlds", 0.0, ahead.get(entry))
        for name in runs
        for entry in (name, f"{name}, own cells")
    ]
    libraries = ["vcc-fm", "cell-eval2", "arc-state", "cell-load", "torch"]
    return finish("state_tx", libraries, [], claims, options.json, console)


def scored(folder: Path, seed: int, runs: dict[str, int], quick: bool, console: Console) -> tuple[ScoreTable, float]:
    """One world, trained and predicted by all: the scores, and the least ratio of State's seconds to ours."""
    for name in runs:
        BASELINES.register(name, type(name, (Deltas,), {"found": {}}))
    keys = [f"score.baselines=[other-contexts,mixed-model,{','.join(runs)}]", f"seed={seed}", f"output={folder}"]
    keys += [f"{phase}.tracker=none" for phase in ("pretrain", "train")]
    if quick:
        keys += [f"{phase}.{key}=4" for phase in ("pretrain", "train") for key in ("steps", "eval_every")]
    recipe = load_recipe(DEMO, [*keys, f"name=demo-world-{seed}"])
    layout, entries, ratio = Layout(recipe), [], 0.0
    for stage in stages_of(recipe):
        if stage.name == "score":
            break
        clock, begin = time.perf_counter(), time.process_time()
        run_stage(stage, recipe, Console(quiet=True))
        clock, seconds = time.perf_counter() - clock, time.process_time() - begin
        if stage.name == "train":
            total, _ = count_parameters(load_decoder(layout.decoder(0, "train").require()))
            say = f"ours {seconds:.0f} s of the processor ({clock:.0f} of the clock), {total:,} parameters"
            console.print(f"world {seed}: {say}", highlight=False, soft_wrap=True)
            entries, shortest = beside(load_dataset(recipe, 0), folder, runs, console)
            ratio = shortest / seconds
    entries += [Entry(name, "baseline", layout.prediction(name)) for name in recipe.score.baselines]
    entries.insert(0, Entry("model", "model", layout.prediction("model")))
    control = load_dataset(recipe, 0).cells.control
    table = score(layout.truth, entries, control, recipe.score.preset, layout.anchors)
    console.print("; ".join(f"{one.name} {table.mean(one.name):.3f}" for one in entries), highlight=False)
    return table, ratio


def beside(data: Dataset, folder: Path, runs: dict[str, int], console: Console) -> tuple[list[Entry], float]:
    """Train State, put its log ratios where the stages find them, and write its own cells of the test groups.

    Returns:
        Entries of its own cells, and the seconds of a processor that the shortest run trained.
    """
    control, entries, trained = data.cells.control, [], []
    hand_over(data, folder)
    start = train(folder, "start", 1, control).processor
    for name, steps in runs.items():
        ran = train(folder, name, steps, control)
        trained.append(ran.processor - start)
        say = f"{name} {trained[-1]:.0f} s of the processor ({ran.seconds:.0f} of the clock with its start), "
        console.print(say + " ".join(ran.lines("trainable params")), highlight=False, soft_wrap=True)
        cells = infer(folder, name, control)
        BASELINES[name].found.update(log_ratios(cells, control))
        entries.append(Entry(f"{name}, own cells", "model", folder / f"{name}-cells.h5ad"))
        test = cells[cells.obs["perturbation"].isin([label for _, label in data.split.groups("test")])]
        with CountsFile(entries[-1].path, data.cells.genes, {"predictor": name}) as file:
            file.append(integers(test), test.obs[["context", "perturbation", "batch"]])
    return entries, min(trained)


def log_ratios(cells: anndata.AnnData, control: str) -> dict[Group, np.ndarray]:
    """Log ratio [G] of each group to the controls: of means of logarithms, brought back, as scanpy takes it."""
    labels = pd.MultiIndex.from_frame(cells.obs[["context", "perturbation"]].astype(str))
    means = pd.DataFrame(cells.obsm["X_hvg"], labels).groupby(level=[0, 1]).mean()
    logs = np.log(np.expm1(means) + LEAST)
    return {key: (row - logs.loc[(key[0], control), :]).to_numpy(np.float32) for key, row in logs.iterrows()}


def integers(cells: anndata.AnnData) -> sp.csr_matrix:
    """Counts [n, G] int32: shares of what is brought back from logarithms, times ``obs["depth"]``, rounded."""
    values = np.expm1(np.maximum(cells.obsm["X_hvg"], 0.0))
    counts = np.rint(values / values.sum(1, keepdims=True) * cells.obs[["depth"]].to_numpy())
    return sp.csr_matrix(counts.astype(np.int32))


def hand_over(data: Dataset, folder: Path) -> None:
    """Write what State reads: training and validation cells, the split, vectors, and controls to predict from.

    Cells are log1p of counts at the median depth; ``obs["depth"]`` is their own.
    """
    cells, split, validation = data.cells, data.split, data.split.groups("validation")
    seen = split.groups("train") + validation
    assert_no_leak(split, seen, cells.control, "State's cells", ("train", "validation"))
    write_measured(folder / "seen.h5ad", cells, seen, {})
    screen = anndata.read_h5ad(folder / "seen.h5ad")
    screen.var.index.name = None  # under another name cell-load does not find the genes
    counts = screen.X.toarray()
    depth = screen.obs["depth"] = counts.sum(1)
    screen.X = screen.obsm["X_hvg"] = np.log1p(counts * (np.median(depth) / depth)[:, None]).astype(np.float32)
    screen.write_h5ad(folder / "seen.h5ad")
    (context,) = {context for context, _ in validation + split.groups("test")}
    controls = (screen.obs["context"] == context) & (screen.obs["perturbation"] == cells.control)
    screen[controls].write_h5ad(folder / "controls.h5ad")
    asked = {label: split.cells[context, label] for _, label in validation + split.groups("test")}
    pd.Series(asked, name="num_cells").rename_axis("perturbation").to_csv(folder / "asked.tsv", sep="\t")
    (folder / "split.toml").write_text(
        f'[datasets]\nscreen = "{folder}/seen.h5ad"\n[training]\nscreen = "train"\n[zeroshot]\n'
        f'[fewshot."screen.{context}"]\nval = {[label for _, label in validation]}\ntest = []\n'
    )
    hot = np.array(cells.labels)[:, None] == np.array(sorted({label for _, label in split.groups("train")}))
    proteins = data.protein_vectors.vectors[[data.protein_rows[label] for label in cells.labels]]
    proteins = (proteins - proteins.mean(0)) / np.maximum(proteins.std(0), 1e-6) / np.sqrt(proteins.shape[1])
    vectors = torch.tensor(np.hstack([hot, proteins]), dtype=torch.float32)
    torch.save({label: row.clone() for label, row in zip(cells.labels, vectors, strict=True)}, folder / "vectors.pt")


def train(folder: Path, name: str, steps: int, control: str) -> state.Ran:
    """Train State for so many steps, with eight looks at the validation groups."""
    keys = SETTINGS | {"training.max_steps": steps, "training.val_freq": max(1, steps // 8)}
    return state.train(folder, name, control, keys | {"data.kwargs.perturbation_features_file": folder / "vectors.pt"})


def infer(folder: Path, name: str, control: str) -> anndata.AnnData:
    """What State makes of control cells, and of copies of them under the labels asked for."""
    run, output = folder / name, folder / f"{name}.h5ad"
    given = {"model-dir": run, "checkpoint": run / "checkpoints" / "best.ckpt", "output": output}
    given |= {"adata": folder / "controls.h5ad", "tsv": folder / "asked.tsv", "control-pert": control}
    given |= {"pert-col": "perturbation", "celltype-col": "context", "embed-key": "X_hvg"}
    state.run("infer", [str(part) for key, value in given.items() for part in (f"--{key}", value)])
    return anndata.read_h5ad(output)


def show(tables: dict[str, ScoreTable], console: Console) -> dict[str, float]:
    """Print the table as Markdown; entry -> lower end of how far the model is ahead."""
    worlds = over_worlds(tables, against=[*dict.fromkeys(next(iter(tables.values())).rows["entry"])])
    heads = ["entry", *(f"world {name}" for name in tables), "mean", "model ahead by", *worlds.labels.values()]
    lines, ahead = [heads, ["---", *["---:"] * (len(heads) - 1)]], worlds.entries["model"].ahead
    for entry, one in worlds.entries.items():
        line = [entry, *(f"{table.mean(entry):.3f}" for table in tables.values()), f"{one.scaled[MEAN].mean:.3f}"]
        lead = ahead[entry][MEAN] if entry in ahead else None
        line.append(f"{lead.mean:+.3f} [{lead.low:+.3f}, {lead.high:+.3f}]" if lead else "")
        lines.append(line + [f"{one.scaled[metric].mean:.2f}" for metric in worlds.labels])
    for line in lines:
        console.print(f"| {' | '.join(line)} |", highlight=False, markup=False, soft_wrap=True)
    return {entry: lead[MEAN].low for entry, lead in ahead.items()}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
