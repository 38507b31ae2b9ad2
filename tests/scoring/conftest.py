"""A small screen with strong effects in two contexts, predictions of it, and their scores, made once."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from scoring_screens import CONTROL, make_screen, perturbed

from vcc_fm.scoring.score import score
from vcc_fm.scoring.table import Entry


@dataclass(frozen=True)
class Screen:
    folder: Path
    truth: Path
    good: Path
    bad: Path


@pytest.fixture(scope="session")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Screen:
    folder = tmp_path_factory.mktemp("screen")
    files = Screen(folder, folder / "truth.h5ad", folder / "good.h5ad", folder / "bad.h5ad")
    make_screen(0).write_h5ad(files.truth)
    perturbed(make_screen(0, draw=1)).write_h5ad(files.good)
    perturbed(make_screen(0, effect=0.0, draw=2)).write_h5ad(files.bad)
    return files


@pytest.fixture(scope="session")
def table(screen: Screen):
    entries = [Entry("replica", "model", screen.good), Entry("no effect", "baseline", screen.bad)]
    return score(screen.truth, entries, CONTROL, "vcc2026", screen.folder / "cache")
