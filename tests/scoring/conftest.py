"""A small screen with strong effects in two contexts, predictions of it, and their scores, made once."""

from dataclasses import dataclass, replace
from pathlib import Path

import anndata as ad
import pytest
from reported import HOSTILE, RECORD, Report
from scoring_screens import CONTROL, make_screen, perturbed

from vcc_fm.scoring.report.page import write_report
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


@pytest.fixture(scope="session")
def report(screen, table, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, table, screen.truth, screen.good, CONTROL, RECORD)
    return Report(path, path.read_text())


@pytest.fixture(scope="session")
def hostile(screen, table, tmp_path_factory):
    """The report of the same screen with labels that are code where they are not escaped."""
    folder = tmp_path_factory.mktemp("hostile")
    names = {**HOSTILE, "alpha": "alpha<b>\"'"}
    files = {}
    for name in ("truth", "good"):
        cells = ad.read_h5ad(getattr(screen, name))
        cells.obs = cells.obs.astype(str).replace(names)
        cells.var_names = [names.get(gene, gene) for gene in cells.var_names]
        files[name] = folder / f"{name}.h5ad"
        cells.write_h5ad(files[name])
    renamed = {
        name: getattr(table, name).replace({**names, "replica": "<i>replica</i>"})
        for name in ("rows", "means", "anchors", "values", "significant")
    }
    record = replace(RECORD, title=HOSTILE["G00"], notes=list(HOSTILE.values()), log=())
    path = folder / "report.html"
    write_report(path, replace(table, **renamed), files["truth"], files["good"], CONTROL, record)
    return Report(path, path.read_text())
