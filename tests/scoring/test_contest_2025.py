"""The 2025 presets: equal to the programs that they stand for, on the contest's scale."""

import importlib.util
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scoring_screens import CONTROL, make_screen, perturbed, value

from vcc_fm.ground.errors import UserError
from vcc_fm.scoring.presets.vcc2025 import Contest2025, cell_mean
from vcc_fm.scoring.replicate import SEEDS, halves
from vcc_fm.scoring.score import score
from vcc_fm.scoring.table import Entry

TODAY = pytest.param(
    "vcc2025-today",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("cell_eval") is None, reason="needs cell-eval: pip install -e '.[submit]'"
    ),
)
BOTH = pytest.mark.parametrize("preset", ["vcc2025", TODAY])


@pytest.fixture(scope="module")
def tables(screen):
    """Preset -> its table of the screen, made once."""
    perturbed(ad.read_h5ad(screen.truth)).write_h5ad(screen.folder / "copy.h5ad")
    entries = [Entry("replica", "model", screen.good), Entry("no effect", "baseline", screen.bad)]
    entries.append(Entry("copy", "baseline", screen.folder / "copy.h5ad"))
    made = {}

    def table(preset):
        if preset not in made:
            made[preset] = score(screen.truth, entries, CONTROL, preset, screen.folder / "cache")
        return made[preset]

    return table


@pytest.fixture(scope="module")
def files(screen, tmp_path_factory):
    """What a contestant would hand in of one context: counts with controls, and the same log-normalised by scanpy."""
    folder = tmp_path_factory.mktemp("files")
    truth, good = (cells[cells.obs["context"] == "alpha"] for cells in map(ad.read_h5ad, (screen.truth, screen.good)))
    controls = truth[truth.obs["perturbation"] == CONTROL]
    for name, cells in (("truth", truth.copy()), ("good", ad.concat([good, controls], index_unique="-"))):
        cells.write_h5ad(folder / f"{name}.h5ad")
        sc.pp.normalize_total(cells)
        sc.pp.log1p(cells)
        del cells.uns["log1p"]
        cells.write_h5ad(folder / f"{name}-log.h5ad")
    return folder


def run(monkeypatch, program, *arguments):
    monkeypatch.setattr(sys, "argv", [program, *map(str, arguments)])
    if program == "cell-eval":
        from cell_eval.__main__ import main
    else:
        from cell_eval2.cli import main
    main()


def aggregate(folder: Path) -> pd.Series:
    return pd.read_csv(folder / "agg_results.csv").set_index("statistic").loc["mean"].astype(float)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_contests_numbers_are_those_of_cell_eval2_run_with_preset_v1(tables, files, monkeypatch, tmp_path):
    from cell_eval2.compat import score_agg_metrics

    truth = ad.read_h5ad(files / "truth-log.h5ad")
    cell_mean(truth, CONTROL).write_h5ad(tmp_path / "base.h5ad")
    common = ("--preset", "v1", "--profile", "vcc", "--pert-col", "perturbation", "--set", "de.backend=pdex")
    for name, path in (("good", files / "good-log.h5ad"), ("base", tmp_path / "base.h5ad")):
        run(
            monkeypatch,
            "cell-eval2",
            "run",
            "-ap",
            path,
            "-ar",
            files / "truth-log.h5ad",
            "-o",
            tmp_path / name,
            *common,
        )
    check(tables("vcc2025"), tmp_path, score_agg_metrics)


def test_the_numbers_of_today_are_those_of_cell_eval_run_and_score(tables, files, monkeypatch, tmp_path):
    cell_eval = pytest.importorskip("cell_eval", reason="needs cell-eval: pip install -e '.[submit]'")
    column = ("--pert-col", "perturbation")
    run(
        monkeypatch,
        "cell-eval",
        "baseline",
        "-a",
        files / "truth.h5ad",
        "-o",
        tmp_path / "base.h5ad",
        "--skip-de",
        *column,
    )
    for name, path in (("good", files / "good.h5ad"), ("base", tmp_path / "base.h5ad")):
        given = ("-ap", path, "-ar", files / "truth.h5ad", "-o", tmp_path / name, "--profile", "vcc")
        run(monkeypatch, "cell-eval", "run", *given, *column)
    check(tables("vcc2025-today"), tmp_path, cell_eval.score_agg_metrics)


def check(table, folder, score_agg_metrics):
    """Raw values, the contest's baseline and the overall score are those that a program wrote."""
    for name, entry in (("good", "replica"), ("base", Contest2025.low)):
        theirs = aggregate(folder / name)
        for metric in Contest2025.metrics:
            assert value(table, entry, "alpha", metric, "raw") == pytest.approx(theirs[metric], abs=1e-6), (
                name,
                metric,
            )
    scored = score_agg_metrics(*(str(folder / name / "agg_results.csv") for name in ("good", "base")))
    scored = dict(zip(scored["metric"], scored["from_baseline"], strict=True))
    assert table.mean("replica", "alpha") == pytest.approx(scored.pop("avg_score"), abs=1e-6)
    for metric, scaled in scored.items():
        assert value(table, "replica", "alpha", metric) == pytest.approx(scaled, abs=1e-6), metric


def test_the_baseline_is_that_of_the_contest(files):
    cell_eval = pytest.importorskip("cell_eval", reason="needs cell-eval: pip install -e '.[submit]'")
    truth = ad.read_h5ad(files / "truth-log.h5ad")
    theirs = cell_eval.build_base_mean_adata(truth.copy(), pert_col="perturbation")
    ours = cell_mean(truth, CONTROL)
    for label in truth.obs["perturbation"].unique():
        tiled, expected = (cells.X[(cells.obs["perturbation"] == label).to_numpy()] for cells in (ours, theirs))
        np.testing.assert_allclose(tiled, expected.toarray(), rtol=1e-6)


@BOTH
def test_the_truth_itself_scores_one_and_cells_without_effect_zero(tables, preset):
    table = tables(preset)
    for context in ("alpha", "beta"):
        assert [value(table, "copy", context, metric, "raw") for metric in Contest2025.metrics] == [1, 1, 0]
        assert table.mean("copy", context) == 1.0
        assert table.mean("no effect", context) == table.mean(Contest2025.low, context) == 0.0
    worse = table.rows[(table.rows["entry"] == "no effect") & (table.rows["metric"] == "mae")]
    assert (worse["unclamped"] < 0).all()
    assert list(table.more_means()) == ["without limits"]


@BOTH
def test_a_replicate_is_half_of_the_cells_against_the_other_half_and_ends_no_scale(tables, preset):
    table = tables(preset)
    of_it = table.rows[table.rows["kind"] == "ceiling"].set_index(["context", "metric"])["scaled"]
    assert ((0 < of_it) & (of_it <= 1)).all()
    assert (of_it < 1).any()
    assert (table.anchors["ceiling_sd"] >= 0).all()
    assert not any("uncertain" in note for note in table.notes)


@BOTH
def test_a_second_model_of_the_same_truth_measures_no_end_again(tables, screen, preset, monkeypatch):
    first = tables(preset)

    def refuse(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr("vcc_fm.scoring.presets.vcc2025.cell_mean", refuse)
    again = score(screen.truth, [Entry("replica", "model", screen.good)], CONTROL, preset, screen.folder / "cache")
    kept = first.rows[first.rows["entry"] == "replica"].reset_index(drop=True)
    pd.testing.assert_frame_equal(again.rows[again.rows["entry"] == "replica"].reset_index(drop=True), kept)
    assert again.parameters == first.parameters


def test_halves_are_those_of_cell_eval2(files):
    from cell_eval2.anchor import _derive_seeds
    from cell_eval2.ceiling import _disjoint_halves

    truth = ad.read_h5ad(files / "truth.h5ad")[3:].copy()
    assert _derive_seeds(0, 5) == SEEDS
    for ours, theirs in zip(halves(truth, 7), _disjoint_halves(truth, "perturbation", CONTROL, 7), strict=True):
        assert ours.obs_names.tolist() == theirs.obs_names.tolist()


@BOTH
def test_one_perturbation_is_told_from_no_other(tmp_path, preset):
    for name, draw in (("truth", 0), ("p", 1)):
        cells = make_screen(0, contexts=("P1",), draw=draw)
        cells = cells[cells.obs["perturbation"].isin(["G00", CONTROL])].copy()
        (cells if name == "truth" else perturbed(cells)).write_h5ad(tmp_path / f"{name}.h5ad")
    table = score(tmp_path / "truth.h5ad", [Entry("m", "model", tmp_path / "p.h5ad")], CONTROL, preset, tmp_path)
    assert np.isnan(table.mean("m"))
    assert value(table, "m", "P1", "mae") > 0
    assert table.missing()[0] == "P1, PDS, every entry: there is one perturbation, and no other to tell it from"


def test_a_scorer_that_is_not_installed_is_named_with_its_command(screen, tmp_path, monkeypatch):
    monkeypatch.setattr("vcc_fm.scoring.presets.vcc2025_today.Vcc2025Today.scorer", "cell-eval-of-nobody")
    with pytest.raises(UserError, match="vcc2025-today: its scorer is not installed: pip install cell-eval-of-nobody"):
        score(screen.truth, [], CONTROL, "vcc2025-today", tmp_path)
