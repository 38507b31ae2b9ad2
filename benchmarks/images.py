"""How fast patches of nuclei are cut out of a slide, and in what memory, beside a window opened for each nucleus.

    python benchmarks/images.py [--quick] [--json FILE]

The slide is made here: noise over discs, RGB, chunks of 1,024 pixels, compressed as zarr does by default, and a mask.
Both sides cut two patches of a nucleus, of 32 and of 128 pixels, and add up their pixels; the sums must be the same.
The peer's nuclei are a sample: all would take an hour. Ours includes finding the nuclei in the mask. Each runs in a
process of its own; memory is its largest resident set.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import zarr
from _measure import Claim, Row, compare, finish, new_parser
from _spots import write_slide
from rich.console import Console

SIDE, NUCLEI, QUICK = 10_000, 100_000, (2_000, 4_000)
SAMPLE, SIZES = 300, (32, 128)
MEMORY_MB, ROUNDS = 4_000, 3
PEER = "zarr, a window for each nucleus"


def main(arguments: list[str]) -> int:
    """Measure, print, write; the exit code."""
    parser = new_parser("patches of nuclei of a slide: nuclei per second, and memory", "a smaller slide, one round")
    parser.add_argument("--part", nargs=2, metavar=("PART", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part is not None:
        print(json.dumps(_part(options.part[0], Path(options.part[1]))))
        return 0
    (side, nuclei), rounds = (QUICK, 1) if options.quick else ((SIDE, NUCLEI), ROUNDS)
    with tempfile.TemporaryDirectory(prefix="images-") as folder:
        path = Path(folder) / "slide.zarr"
        write(path, side, nuclei)
        found = {part: [_child(part, path) for _ in range(rounds)] for part in ("ours", "theirs")}
    ours, theirs = (np.array([one["rate"] for one in found[part]]) for part in ("ours", "theirs"))
    sums = found["ours"][0]["sums"]
    assert all(sums[cell] == value for cell, value in found["theirs"][0]["sums"].items()), "other patches"
    assert found["ours"][0]["nuclei"] == nuclei
    what = f"{nuclei:,} nuclei of {side:,} x {side:,} pixels, patches of {SIZES[0]} and {SIZES[1]}"
    rate = compare(f"patches cut ({what})", ours, theirs, PEER, "nuclei/s")
    peak, their_peak = (max(one["peak"] for one in found[part]) for part in ("ours", "theirs"))
    rows = [rate, Row("largest resident set", peak, their_peak, PEER, "MB", peak / their_peak)]
    claims = [
        Claim("patches are cut at least 10 times as fast as by a window for each nucleus", 10, rate.ratio),
        Claim(f"a slide is cut in at most {MEMORY_MB:,} MB of memory", 1, MEMORY_MB / peak),
    ]
    return finish("images", ["vcc-fm", "zarr", "numpy"], rows, claims, options.json, Console())


def write(path: Path, side: int, nuclei: int) -> None:
    """A slide of ``nuclei`` discs on a jittered grid; a few overlap."""
    rng = np.random.default_rng(0)
    image = rng.integers(150, 250, (3, side, side), dtype=np.uint8)
    mask = np.zeros((side, side), np.uint32)
    across = int(np.ceil(np.sqrt(nuclei)))
    place = (np.stack(np.divmod(np.arange(nuclei), across)) + 0.5) * side / across + rng.integers(-4, 5, (2, nuclei))
    disc = np.argwhere(np.hypot(*np.mgrid[-6:7, -6:7]) <= 6) - 6
    y, x = (place[:, :, None].astype(int) + disc.T[:, None]).clip(0, side - 1)
    mask[y, x] = np.arange(1, nuclei + 1)[:, None]
    image[:, y, x] -= 100
    groups = pd.DataFrame({"cell_id": np.arange(1, nuclei + 1), "group": "train", "measured": False})
    groups.loc[0, "measured"] = True
    write_slide(path, image, mask, np.ones((1, 1), np.float32), ["GENE"], groups)


def _child(part: str, path: Path) -> dict[str, object]:
    command = [sys.executable, __file__, "--part", part, str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def _part(part: str, path: Path) -> dict[str, object]:
    from vcc_fm.encoders.images.embed import strips_of
    from vcc_fm.encoders.images.slide import Slide
    from vcc_fm.recipe.slides import SlidesConfig

    sums: dict[str, int] = {}
    if part == "ours":
        start = time.perf_counter()
        slide = Slide(path, SlidesConfig(path=str(path)))
        for strip in strips_of([slide], SIZES[-1]):
            done = 0
            for patches in strip.patches(SIZES):
                total = sum(one.sum(axis=(1, 2, 3), dtype=np.int64) for one in patches)
                cells = slide.nuclei.index[strip.nuclei[done : done + len(total)]]
                sums.update(zip(map(str, cells), total.tolist(), strict=True))
                done += len(total)
        number = len(sums)
    else:
        nuclei = Slide(path, SlidesConfig(path=str(path))).nuclei.dropna()
        inside = nuclei[
            (nuclei[["y", "x"]].min(axis=1) > SIZES[-1])
            & (nuclei[["y", "x"]].max(axis=1) < nuclei["y"].max() - SIZES[-1])
        ]
        image = zarr.open_group(path, mode="r")["images/HE_original/0"]
        chosen = inside.iloc[np.random.default_rng(1).permutation(len(inside))[:SAMPLE]]
        start = time.perf_counter()
        for cell, y, x in zip(chosen.index, chosen["y"].round(), chosen["x"].round(), strict=True):
            corners = [(int(y) - size // 2, int(x) - size // 2, size) for size in SIZES]
            windows = [image[:, top : top + size, left : left + size] for top, left, size in corners]
            sums[str(cell)] = sum(int(window.sum(dtype=np.int64)) for window in windows)
        number = len(chosen)
    seconds = time.perf_counter() - start
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
    return {"rate": number / seconds, "peak": peak, "nuclei": number, "sums": sums}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
