"""How often a comparison is wrong: runs that differ by their seed alone, and differences that were planted.

    python benchmarks/compare.py [--quick] [--worlds 20] [--processes 1] [--json FILE]

In each simulated world the demo is trained with fewer steps from the same cells and split, by three seeds and by three
others. The two are compared as `vcc-fm compare` does: no difference may be found in more than one of twenty worlds.
Then all values of one of them are moved by the smallest difference that the comparison says it could have shown, up in
one trial and down in another: it must be found in four of five. Printed, and claimed nothing of: how often the median
of what other worlds say is found, as one would plan, and how often a single seed beside another misleads, whose
interval is over perturbations alone.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from _measure import Claim, finish, new_parser
from rich.console import Console

from vcc_fm.recipe.read import load_recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.stages import run_stage, stages_of
from vcc_fm.scoring.compare import MEAN, Side, paired
from vcc_fm.scoring.score import score
from vcc_fm.scoring.table import Entry, ScoreTable

DEMO = Path(__file__).parents[1] / "recipes" / "demo.yaml"
SEEDS = 3
FIRST = 400
"""Seed of the first world; no setting was chosen on these."""


def main(arguments: list[str]) -> int:
    """Measure, print, write; the exit code."""
    parser = new_parser("errors of paired comparisons", "two worlds, which tell nothing but that it runs")
    parser.add_argument("--worlds", type=int, default=20, help="simulated worlds, two at least")
    parser.add_argument("--processes", type=int, default=1, help="worlds at a time")
    options = parser.parse_args(arguments)
    console, worlds = Console(width=140), 2 if options.quick else options.worlds
    halves, quiet, found, planned, misled = [], 0, 0, 0, 0
    with ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn")) as pool:
        for tables in pool.map(trained, range(FIRST, FIRST + worlds)):
            halves.append((tables[:SEEDS], tables[SEEDS:]))
            console.print(f"{len(halves)} of {worlds} worlds are trained", highlight=False)
    both = [compared(*half) for half in halves]
    for world, ((one, other), alike) in enumerate(zip(halves, both, strict=True)):
        size = alike["smallest"]
        up, down = (compared([shifted(table, by) for table in one], other) for by in (size, -size))
        seen = up["low"] > 0, down["high"] < 0
        others = float(np.median([rows["smallest"] for rows in both[:world] + both[world + 1 :]]))
        planned += int(alike["low"] + others > 0) + int(alike["high"] - others < 0)
        single = compared(one[:1], other[:1])
        misled += not single["low"] <= 0 <= single["high"]
        quiet += bool(alike["low"] <= 0 <= alike["high"])
        found += sum(map(bool, seen))
        interval = f"{alike['low']:+.3f} to {alike['high']:+.3f}"
        console.print(
            f"world {FIRST + world}: {alike['difference']:+.3f} ({interval}), smallest {alike['smallest']:.3f}; "
            f"planted: up {'found' if seen[0] else 'missed'}, down {'found' if seen[1] else 'missed'}",
            highlight=False,
        )
    console.print(f"what other worlds could show, in the median, is found in {planned} of {2 * worlds} trials")
    console.print(f"a single seed beside another: a difference is found in {misled} of {worlds} worlds")
    enough = None if options.quick else 1.0
    claims = [
        Claim(
            f"three seeds beside three others: no difference is found in 19 of 20 worlds ({quiet} of {worlds} here)",
            0.95,
            enough and quiet / worlds,
        ),
        Claim(
            f"a difference of the size that could be shown is found in 4 of 5 trials ({found} of {2 * worlds} here)",
            0.8,
            enough and found / worlds / 2,
        ),
    ]
    return finish("compare", ["vcc-fm", "cell-eval2", "scipy"], [], claims, options.json, console)


def trained(world: int) -> list[ScoreTable]:
    """Scores of the demo, trained with fewer steps, for each seed."""
    with tempfile.TemporaryDirectory() as folder:
        return [one_seed(folder, world, repeat) for repeat in range(2 * SEEDS)]


def one_seed(folder: str, world: int, repeat: int) -> ScoreTable:
    """Scores of one of them; no report is drawn."""
    shorter = [f"{phase}.{key}=60" for phase in ("pretrain", "train") for key in ("steps", "eval_every")]
    fixed = ["score.baselines=[control]", "predict.effect_scale=1.25", "train.tracker=none", "pretrain.tracker=none"]
    recipe = load_recipe(DEMO, [f"seed={world}", f"repeat={repeat}", f"output={folder}", *shorter, *fixed])
    for stage in stages_of(recipe):
        if stage.name != "score":
            run_stage(stage, recipe, Console(quiet=True))
    layout = Layout(recipe)
    entries = [Entry("model", "model", layout.prediction("model"))]
    return score(layout.truth, entries, "non-targeting", recipe.score.preset, layout.anchors)


def compared(one: list[ScoreTable], other: list[ScoreTable]) -> dict[str, float]:
    """The row of the scaled mean."""
    return dict(paired(Side("one", "model", one), Side("other", "model", other)).rows.loc[MEAN])


def shifted(table: ScoreTable, size: float) -> ScoreTable:
    """The table with every value of the model ``size`` higher on its scale."""
    anchors = table.anchors.set_index(["context", "metric"])
    length = (anchors["high"] - anchors["low"]).rename("length")
    values = table.values.join(length, on=["context", "metric"])
    model = values["entry"] == "model"
    moved = values["numerator"] + size * values["length"] * values["denominator"]
    values["numerator"] = values["numerator"].where(~model, moved)
    return replace(table, values=values.drop(columns="length"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
