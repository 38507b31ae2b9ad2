"""Small slides in the challenge's form: the colour of a nucleus says its type, and its type what it expresses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from _spots import write_slide

GENES = [f"GENE{number}" for number in range(12)]
HEIGHT, WIDTH, STEP, RADIUS = 360, 480, 24, 5
STAINS = np.array([[120, 60, 160], [200, 90, 120], [90, 110, 190]])


def slide(path: Path, seed: int, groups: bool = True, **changes: Any) -> pd.DataFrame:
    """Write a slide; its nuclei: cell_id, y, x, type, group, measured.

    The right quarter is test, the one before it validation, its lowest row 4 (no transcripts); the rest trains.
    """
    rng = np.random.default_rng(seed)
    y, x = (axis.ravel() for axis in np.mgrid[STEP // 2 : HEIGHT : STEP, STEP // 2 : WIDTH : STEP])
    nuclei = pd.DataFrame({"cell_id": rng.permutation(len(y)) + 1, "y": y, "x": x})
    nuclei["type"] = (y // 120 + x // 160 + rng.integers(0, 2, len(y))) % 3
    image = np.full((3, HEIGHT, WIDTH), 240, np.uint8)
    image -= rng.integers(0, 10, image.shape, dtype=np.uint8)
    mask = np.zeros((HEIGHT, WIDTH), np.uint32)
    disc = np.argwhere(np.hypot(*np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1]) <= RADIUS) - RADIUS
    for cell, row, column, kind in nuclei[["cell_id", "y", "x", "type"]].to_numpy():
        place = row + disc[:, 0], column + disc[:, 1]
        image[:, place[0], place[1]] = (STAINS[kind] + rng.integers(-8, 8, 3))[:, None]
        mask[place] = cell
    nuclei["group"] = "train"
    if groups:
        nuclei.loc[x >= 240, "group"] = "validation"
        nuclei.loc[x >= 360, "group"] = "test"
        nuclei.loc[(x < 240) & (y > 330), "group"] = "No_transcript-train"
    nuclei["measured"] = nuclei["group"] == "train"
    rate = np.random.default_rng(7).gamma(0.5, 4.0, (3, len(GENES)))[nuclei["type"]]
    counts = rng.poisson(rate * rng.gamma(5, 0.4, (len(y), 1)))
    nuclei["counts"] = list(counts)
    keys = {"image": image, "mask": mask, "counts": counts[nuclei["measured"]].astype(np.float32), "genes": GENES}
    write_slide(path, **(keys | {"groups": nuclei[["cell_id", "group", "measured"]]} | changes))
    return nuclei
