"""Both splits of the spots, three seeds each: the tables of docs/results.md.

    VCC_FM_DATA=/path/to/data python benchmarks/_spots_splits.py FOLDER

Patient C to B: trains on C3 to C6, C2 chooses the checkpoint, B4 is predicted. Leave one section out: each of C's five
is predicted in turn, the next one chooses the checkpoint, the other three train. Differences are paired by spot: a
bootstrap over spots (one section) or over sections; seeds are added as in ``vcc_fm.scoring.compare``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from _spots import main as write_slides
from rich.console import Console
from scipy import stats

from vcc_fm.recipe.read import load_any
from vcc_fm.run.stages import run_stage, stages_of
from vcc_fm.scoring.compare import LEVEL, RESAMPLES, standard_error

SEEDS, ENTRIES = 3, ("model", "start", "colour-ridge", "mean")
SECTIONS = ["C2", "C3", "C4", "C5", "C6"]
SPLITS = {
    "patient C to B": [("B4", "C2")],
    "leave one section out": [(one, SECTIONS[(i + 1) % 5]) for i, one in enumerate(SECTIONS)],
}
RECIPE = Path(__file__).parents[1] / "recipes" / "her2st.yaml"


def run(folder: Path, test: str, validation: str, seed: int) -> tuple[pd.DataFrame, dict[str, dict[str, float]]]:
    """What each spot gives to each entry's Spearman, and each entry's scores."""
    split = [f"split.test=[{test}]", f"split.validation=[{validation}]"]
    # Patient B takes no part where sections of C are held out.
    path = f"{folder}/slides/{'*' if test == 'B4' else 'C*'}.zarr"
    names = [f"name={'all' if test == 'B4' else 'c'}", f"variant={test}", f"repeat={seed}", f"output={folder}"]
    recipe = load_any(RECIPE, [*split, *names, f"slides.path={path}"])
    for stage in stages_of(recipe):
        run_stage(stage, recipe, Console(stderr=True))
    scores = json.loads((recipe.run_folder / "scores.json").read_text())["entries"]
    return pd.read_csv(recipe.run_folder / "nuclei.csv"), {e: one["samples"]["ALL"] for e, one in scores.items()}


def difference(a: np.ndarray, b: np.ndarray, cluster: np.ndarray) -> str:
    """Mean of a - b, [seeds, n] each, over clusters, with its 95 % interval."""
    _, code = np.unique(cluster, return_inverse=True)
    number, apart = code.max() + 1, a - b
    size = np.bincount(code)
    means = np.array([np.bincount(code, one) / size for one in apart])
    drawn = np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), RESAMPLES)
    panel = np.array([(drawn @ means.mean(axis=0) / number).var()])
    error, df = standard_error(panel, number, [means.mean(axis=1)[:, None]])
    half = float(stats.t.ppf(0.5 + LEVEL / 2, df)[0] * error[0])
    return f"{means.mean():+.4f} ({means.mean() - half:+.4f} to {means.mean() + half:+.4f})"


def main(folder: Path) -> None:
    write_slides(folder / "slides")
    for name, parts in SPLITS.items():
        spots, scores = [], []
        for seed in range(SEEDS):
            found = [run(folder, test, validation, seed) for test, validation in parts]
            spots.append(pd.concat([one for one, _ in found], ignore_index=True))
            scores.append({e: pd.DataFrame([one[e] for _, one in found]).mean() for e in ENTRIES})
        cluster = spots[0]["sample"].to_numpy() if len(parts) > 1 else np.arange(len(spots[0]))
        print(f"\n{name}, {len(spots[0])} spots, {SEEDS} seeds\n")
        print("| entry | Spearman | gene correlation | MSE | model less it, Spearman |\n|---|---:|---:|---:|---:|")
        model = np.array([one["model"] for one in spots])
        for entry in ENTRIES:
            values = pd.DataFrame([one[entry] for one in scores])
            told = [f"{values[key].mean():.4f} ± {values[key].std():.4f}" for key in ("spearman", "genes", "mse")]
            less = "" if entry == "model" else difference(model, np.array([one[entry] for one in spots]), cluster)
            print(f"| {entry} | {' | '.join(told)} | {less} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
