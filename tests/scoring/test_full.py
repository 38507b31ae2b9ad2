"""The preset full: all metrics of cell-eval2, equal to its own run, and readable."""

import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scoring_screens import CONTROL, make_screen, perturbed, value

from vcc_fm.scoring.anchors import quiet, scorer_config
from vcc_fm.scoring.presets.full import TOGETHER, UNDIRECTED, Full
from vcc_fm.scoring.presets.vcc2026 import Vcc2026
from vcc_fm.scoring.score import score
from vcc_fm.scoring.table import Entry, read_table


@pytest.fixture(scope="module")
def full(screen):
    entries = [Entry("replica", "model", screen.good), Entry("no effect", "baseline", screen.bad)]
    return score(screen.truth, entries, CONTROL, "full", screen.folder / "cache")


def test_raw_values_are_those_of_cell_eval2_run(full, screen, monkeypatch, tmp_path):
    from cell_eval2.cli import main

    truth, good = (cells[cells.obs["context"] == "alpha"] for cells in map(ad.read_h5ad, (screen.truth, screen.good)))
    truth.write_h5ad(tmp_path / "truth.h5ad")
    ad.concat([good, truth[truth.obs["perturbation"] == CONTROL]], index_unique="-").write_h5ad(tmp_path / "good.h5ad")
    given = ("--preset", "vcc2026", "--profile", "full", "--pert-col", "perturbation", "--set", "de.backend=pdex")
    files = ("-ap", tmp_path / "good.h5ad", "-ar", tmp_path / "truth.h5ad", "-o", tmp_path)
    monkeypatch.setattr(sys, "argv", ["cell-eval2", "run", *map(str, files), *given])
    main()
    theirs = pd.read_csv(tmp_path / "agg_results.csv").set_index("statistic").loc["mean"].astype(float)
    assert set(theirs.index) == set(Full.metrics)
    for metric, expected in theirs.items():
        found = value(full, "replica", "alpha", metric, "raw")
        assert found == pytest.approx(expected, abs=1e-6, nan_ok=True), metric


def test_the_mean_response_is_the_scorers_own(full, screen):
    from cell_eval2 import aggregate_metrics, build_generic_baseline

    truth = ad.read_h5ad(screen.truth)
    config = scorer_config("vcc2026", list(Full.metrics), CONTROL)
    with quiet():
        built = build_generic_baseline(
            truth[truth.obs["context"] == "beta"].copy(), config=config, allow_degenerate=True
        )
    theirs = aggregate_metrics(built.results, metrics=list(Full.metrics))
    for metric, expected in zip(theirs["metric"], theirs["mean"], strict=True):
        found = value(full, Full.low, "beta", metric, "raw")
        assert found == pytest.approx(expected, abs=1e-9, nan_ok=True), metric


def test_the_six_of_2026_have_the_same_ends(full, table):
    ends = ["low", "high", "ceiling_sd", "ceiling_lowest", "ceiling_highest", "ceiling_perturbations"]
    ours, theirs = (one.anchors.set_index(["context", "metric"])[ends] for one in (full, table))
    pd.testing.assert_frame_equal(ours.loc[theirs.index], theirs, rtol=1e-9)
    assert full.anchors[["floor", "cap"]].isna().all(axis=None)
    for metric in Vcc2026.metrics:
        found, expected = (value(one, "replica", "beta", metric, "raw") for one in (full, table))
        assert found == pytest.approx(expected, rel=1e-12), metric  # the scorer sums in parallel, in any order


def test_metrics_without_a_better_end_are_raw_only(full):
    rows = full.rows.set_index("metric")
    assert rows.loc[sorted(UNDIRECTED), "scaled"].isna().all()
    assert rows.loc[sorted(UNDIRECTED), "raw"].notna().all()
    assert (
        rows.loc[sorted(UNDIRECTED), "reason"] == "neither a high nor a low value is better; raw values only"
    ).all()
    counted = full.rows[(full.rows["metric"] == "expr_mae") & (full.rows["kind"] != "ceiling")]
    assert (counted["perturbations"] == 6).all()


def test_a_raw_value_is_what_its_perturbations_sum_to_but_for_one_correlation_over_all(full):
    sums = full.values.groupby(["entry", "context", "metric"])[["numerator", "denominator"]].sum()
    found = (sums["numerator"] / sums["denominator"]).sort_index()
    measured = full.rows.set_index(["entry", "context", "metric"])["raw"]
    np.testing.assert_allclose(found, measured.loc[found.index], rtol=1e-9, atol=1e-12)
    assert TOGETHER not in set(full.values["metric"])
    assert len(set(full.values["metric"])) == len(Full.metrics) - 1


def test_the_printed_table_has_a_row_for_each_metric_and_fits_a_terminal(full, capsys):
    for width in (80, 140):
        full.print(Console(width=width))
        printed = capsys.readouterr().out.splitlines()
        table = printed[: next(i for i, line in enumerate(printed) if "mean over contexts" in line)]
        assert max(map(len, table)) <= width
        for label in full.labels.values():
            assert sum(line.strip().startswith(label + " ") for line in table) >= 2, label
    shown = next(line for line in table if line.strip().startswith("Expression MAE ")).split()
    raw = value(full, "replica", "alpha", "expr_mae", "raw")
    assert shown[2:4] == [f"{value(full, 'replica', 'alpha', 'expr_mae'):.3f}", f"{raw:.3f}"]


def test_the_table_is_read_back(full, tmp_path):
    full.write_json(tmp_path / "scores.json")
    pd.testing.assert_frame_equal(read_table(tmp_path / "scores.json").rows, full.rows)


def test_a_truth_without_effect_and_a_single_perturbation_are_scored_as_far_as_they_go(tmp_path):
    made = {"weak": {"effect": 0.0, "depth": 400.0}, "alone": {}}
    for context, given in made.items():
        for name, draw in (("truth", 0), ("p", 1)):
            cells = make_screen(3, contexts=(context,), draw=draw, **given)
            if context == "alone":
                cells = cells[cells.obs["perturbation"].isin(["G00", CONTROL])].copy()
            (cells if name == "truth" else perturbed(cells)).write_h5ad(tmp_path / f"{name}-{context}.h5ad")
        entry = Entry("m", "model", tmp_path / f"p-{context}.h5ad")
        made[context] = score(tmp_path / f"truth-{context}.h5ad", [entry], CONTROL, "full", tmp_path)
    assert "no effect beyond the noise" in value(made["weak"], "m", "weak", "expr_mse_unbiased_capped_norm", "reason")
    assert value(made["weak"], "m", "weak", "expr_mae", "raw") > 0
    alone = made["alone"].rows.set_index(["entry", "metric"])
    assert alone["scaled"].isna().all()
    assert np.isnan(alone.loc[("m", "pds_cosine"), "raw"])
    assert alone.loc[("m", "de_wilcoxon_overlap"), "raw"] > 0.5
