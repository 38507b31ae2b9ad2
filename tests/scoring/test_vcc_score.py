import os
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numba
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from program import forks
from scoring_screens import CONTROL, make_screen, perturbed, value

from vcc_fm.ground.errors import UserError
from vcc_fm.scoring.anchors import quiet, scale_of
from vcc_fm.scoring.means import ALL
from vcc_fm.scoring.presets.vcc2026 import Vcc2026
from vcc_fm.scoring.score import FOLDS, score, within
from vcc_fm.scoring.table import Entry


def test_rank_tests_are_compiled_once_a_machine(table):
    from numba_mwu import mannwhitneyu_sparse

    functions = [one for one in mannwhitneyu_sparse.__globals__.values() if hasattr(one, "stats")]
    assert functions
    assert all(one.stats.cache_path for one in functions)
    assert any(one.stats.cache_hits or one.stats.cache_misses for one in functions)


def score_with_one_thread(truth, entry, folder):
    torch.set_num_threads(1)
    score(truth, [entry], CONTROL, "vcc2026", folder / "cache")
    (folder / "threads").write_text(f"{torch.get_num_threads()} of {numba.threading_layer()}")


def test_training_after_a_score_has_the_threads_that_it_had_before(screen, tmp_path):
    # In a process of its own: numba sets them once, where it starts its own.
    one = Entry("replica", "model", screen.good)
    process = forks().Process(target=score_with_one_thread, args=(screen.truth, one, tmp_path))
    process.start()
    process.join(120)
    assert (tmp_path / "threads").read_text().startswith("1 of ")


def test_equals_the_scorers_own_path_through_a_real_bundle(screen, table, tmp_path):
    from cell_eval2 import EvalConfig, aggregate_metrics_wide, build_generic_baseline, compute_metrics, score_metrics
    from cell_eval2.baseline import build_run_meta
    from cell_eval2.real_bundle import build_real_bundle
    from cell_eval2.run import metric_output_names

    truth, good = ad.read_h5ad(screen.truth), ad.read_h5ad(screen.good)
    real, part = truth[truth.obs["context"] == "alpha"].copy(), good[good.obs["context"] == "alpha"]
    submission = ad.concat([part, real[real.obs["perturbation"] == CONTROL]], index_unique="-")
    # The competition's preset as it stands, but for the name of the column.
    config = replace(EvalConfig.from_preset("vcc2026"), pert_col="perturbation", num_threads=1)
    with quiet():
        build_generic_baseline(real, config=config, save_pred=str(tmp_path / "baseline.h5ad"))
        real.write_h5ad(tmp_path / "real.h5ad")
        manifest = build_real_bundle(
            str(tmp_path / "real.h5ad"),
            str(tmp_path / "baseline.h5ad"),
            config=config,
            outdir=str(tmp_path / "bundle"),
            bundle_id="test",
        )
        wide = aggregate_metrics_wide(
            compute_metrics(submission, real, config=config), metrics=metric_output_names(config)
        )
        official = score_metrics(
            wide, real_bundle=str(tmp_path / "bundle"), user_meta=build_run_meta(config, real, submission)
        )
    assert manifest["rule_digest"] is not None, manifest["rule_mismatches"]
    theirs = dict(zip(official["metric"], official["from_replicate"], strict=True))
    for metric in Vcc2026.metrics:
        assert value(table, "replica", "alpha", metric) == pytest.approx(theirs[metric], abs=1e-9), metric
    assert table.mean("replica", "alpha") == pytest.approx(theirs["avg_score"], abs=1e-9)


def test_ends_of_the_scale_are_rows_at_zero_and_one(table):
    for context in ("alpha", "beta"):
        assert table.mean(Vcc2026.low, context) == pytest.approx(0.0, abs=1e-12)
        assert table.mean(Vcc2026.ceiling, context) == pytest.approx(1.0, abs=1e-12)
    kinds = dict(zip(table.rows["entry"], table.rows["kind"], strict=True))
    assert kinds[Vcc2026.low] == "baseline"
    assert kinds[Vcc2026.ceiling] == "ceiling"


def test_the_line_and_its_limits_are_the_scorers_own_scale():
    from cell_eval2.catalog import CATALOG
    from cell_eval2.scoring import score_one

    for metric, shown in Vcc2026.metrics.items():
        low, high = (0.9, 0.3) if shown.low_is_good else (0.1, 0.7)
        scale = scale_of(metric, low, high)
        policy = replace(CATALOG[metric].scoring, anchor=high, allow_negative_baseline=False)
        for raw in (-1.0, 0.0, 0.1, 0.5, 0.95, 1.4, 9.0):
            ours = within((raw - low) / (high - low), scale)
            assert ours == pytest.approx(score_one(raw, low, policy), abs=1e-12), (metric, raw)
        assert scale.missing == score_one(None, low, policy)
        assert scale_of(metric, low, low).reason


@pytest.mark.parametrize("metric", [name for name, shown in Vcc2026.metrics.items() if not shown.low_is_good])
def test_a_replicate_at_the_worst_value_gives_no_scale(metric):
    # Halves of a sparse screen may agree in no significant gene; the scorer raises an error for such an anchor.
    for low in (0.0, 0.3):
        assert "a replicate (0.000) is no better" in scale_of(metric, low, 0.0).reason


def test_how_many_perturbations_respond_at_all_is_said(table):
    counts = table.significant.groupby("context")["significant"].agg(lambda one: (one > 0).sum())
    for context, number in counts.items():
        assert f"{context}: {number} of 6 perturbations have a significant gene in the truth" in table.notes


def test_a_raw_value_is_what_its_perturbations_sum_to(table):
    sums = table.values.groupby(["entry", "context", "metric"])[["numerator", "denominator"]].sum()
    found = sums["numerator"] / sums["denominator"]
    measured = table.rows[table.rows["kind"] != "ceiling"].set_index(["entry", "context", "metric"])
    assert len(found) == len(measured) == 3 * 2 * 6
    pd.testing.assert_series_equal(found.sort_index(), measured["raw"].sort_index(), check_names=False, rtol=1e-12)
    sizes = table.values.groupby(["entry", "context", "metric"]).size()
    assert (sizes == measured["perturbations"].reindex(sizes.index)).all()


def test_values_without_limits_stand_beside_limited_ones(table):
    rows = table.rows.set_index(["entry", "metric", "context"]).sort_index()
    capped = rows.loc[("no effect", "expr_mse_unbiased_capped_norm")]
    assert (capped["scaled"] == 0).all()
    assert (capped["unclamped"] < 0).all()
    same = rows.drop("expr_mse_unbiased_capped_norm", level="metric")
    np.testing.assert_allclose(same["scaled"], same["unclamped"], rtol=1e-12)
    assert list(table.more_means()) == ["without limits"]


def test_a_second_draw_of_the_screen_is_far_better_than_cells_without_effect(table):
    assert table.mean("replica") > 0.8
    assert table.mean("no effect") < 0.2
    assert value(table, "replica", "beta", "pds_cosine", "raw") > 0.95


def test_overall_is_the_mean_of_the_contexts(table):
    mean = np.mean([table.mean("replica", context) for context in ("alpha", "beta")])
    assert table.mean("replica") == pytest.approx(mean)
    overall = table.means[(table.means["entry"] == "replica") & (table.means["context"] == ALL)]
    assert overall["present"].item() == overall["members"].item() == 12


def test_the_measured_cells_themselves_are_perfect_in_the_raw_metrics(screen, tmp_path):
    truth = ad.read_h5ad(screen.truth)
    perturbed(truth).write_h5ad(tmp_path / "copy.h5ad")
    table = score(screen.truth, [Entry("copy", "model", tmp_path / "copy.h5ad")], CONTROL, "vcc2026",
                  screen.folder / "cache")  # fmt: skip
    for metric, best in (("pds_cosine", 1), ("de_wilcoxon_lfc_nmae", 0), ("de_wilcoxon_sig_jaccard", 1)):
        assert value(table, "copy", "alpha", metric, "raw") == pytest.approx(best), metric


def test_anchors_are_cached_by_the_truths_content(screen, table, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr("vcc_fm.scoring.presets.vcc2026.measure_anchors", refuse)
    entries = [Entry("replica", "model", screen.good), Entry("no effect", "baseline", screen.bad)]
    again = score(screen.truth, entries, CONTROL, "vcc2026", screen.folder / "cache")
    pd.testing.assert_frame_equal(again.rows, table.rows)
    pd.testing.assert_frame_equal(again.anchors, table.anchors)
    changed = ad.read_h5ad(screen.truth)
    changed.X[0, changed.X[0].indices[0]] += 1
    changed.write_h5ad(tmp_path / "changed.h5ad")
    with pytest.raises(AssertionError, match="measured again"):
        score(tmp_path / "changed.h5ad", entries, CONTROL, "vcc2026", screen.folder / "cache")


def test_members_that_a_weak_truth_cannot_give_are_missing_and_named(tmp_path, capsys):
    make_screen(3, effect=0.25, contexts=("weak",), depth=400).write_h5ad(tmp_path / "truth.h5ad")
    perturbed(make_screen(3, effect=0.25, contexts=("weak",), depth=400, draw=1)).write_h5ad(tmp_path / "p.h5ad")
    table = score(tmp_path / "truth.h5ad", [Entry("m", "model", tmp_path / "p.h5ad")], CONTROL, "vcc2026", tmp_path)
    assert np.isnan(value(table, "m", "weak", "de_wilcoxon_lfc_nmae"))
    assert "10 significant genes" in value(table, "m", "weak", "de_wilcoxon_lfc_nmae", "reason")
    assert value(table, "m", "weak", "de_wilcoxon_lfc_nmae", "perturbations") == 0
    rows = table.rows[table.rows["entry"] == "m"]
    present = rows["scaled"].notna()
    assert 0 < present.sum() < 6
    table.print()
    printed = " ".join(capsys.readouterr().out.split())
    assert f"({present.sum()} of 6)" in printed
    assert "missing weak, NMAE, every entry: no perturbation has 10 significant genes" in printed


def test_a_single_perturbation_has_raw_values_beside_a_replicate_and_no_scale(tmp_path, capsys):
    for name, draw in (("truth", 0), ("p", 1)):
        cells = make_screen(0, contexts=("P1",), draw=draw)
        cells = cells[cells.obs["perturbation"].isin(["G00", CONTROL])].copy()
        (cells if name == "truth" else perturbed(cells)).write_h5ad(tmp_path / f"{name}.h5ad")
    table = score(tmp_path / "truth.h5ad", [Entry("m", "model", tmp_path / "p.h5ad")], CONTROL, "vcc2026", tmp_path)
    rows = table.rows.set_index(["entry", "metric"])
    assert rows["scaled"].isna().all()
    for metric in Vcc2026.metrics:
        raw = rows.loc[[("m", metric), (Vcc2026.ceiling, metric)], "raw"]
        assert raw.isna().all() if metric == "pds_cosine" else raw.notna().all(), metric
    # A second draw of the same cells is about as good as a replicate.
    assert rows.loc[("m", "de_wilcoxon_sig_jaccard"), "raw"] > 0.6
    assert table.significant["significant"].tolist()[0] > 10
    table.print()
    printed = " ".join(capsys.readouterr().out.split())
    assert "missing P1, PDS, every entry: there is one perturbation, and no other to tell it from" in printed
    assert "missing P1, MSE, NMAE, fidelity, reach, Jaccard, every entry: there is one perturbation" in printed
    assert "missing P1, scaled mean: 0 of 6 metrics have a scale, a mean needs 4" in printed


def test_an_error_of_the_scorer_is_not_taken_for_a_weak_truth(screen, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise ValueError("no such engine")

    monkeypatch.setattr("cell_eval2.build_generic_baseline", fail)
    with pytest.raises(ValueError, match="no such engine"):
        score(screen.truth, [], CONTROL, "vcc2026", tmp_path)
    assert not list(tmp_path.rglob("anchors.json"))


def test_a_screen_whose_targets_are_not_measured_is_scored_with_a_note(tmp_path):
    truth, other = make_screen(0, contexts=("c",)), perturbed(make_screen(0, contexts=("c",), draw=1))
    for cells, name in ((truth, "truth.h5ad"), (other, "p.h5ad")):
        labels = cells.obs["perturbation"].astype(str)
        cells.obs["perturbation"] = labels.where(labels == CONTROL, labels + "+other")
        cells.write_h5ad(tmp_path / name)
    table = score(tmp_path / "truth.h5ad", [Entry("m", "model", tmp_path / "p.h5ad")], CONTROL, "vcc2026", tmp_path)
    assert table.mean("m") > 0.8
    assert any("no target gene is left out" in note for note in table.notes)


def test_unknown_presets_and_repeated_names_are_refused(screen, tmp_path):
    with pytest.raises(UserError, match=r"score\.preset: 'v1' is no preset"):
        score(screen.truth, [], CONTROL, "v1", tmp_path)
    with pytest.raises(UserError, match="'a' is used twice"):
        score(screen.truth, [Entry("a", "model", screen.good)] * 2, CONTROL, "vcc2026", tmp_path)


@pytest.mark.slow
@pytest.mark.skipif("VCC_FM_DATA" not in os.environ, reason="needs VCC_FM_DATA, the folder with the Papalexi screen")
def test_papalexi_separates_the_mean_of_the_others_from_the_true_means(tmp_path):
    folder = Path(os.environ["VCC_FM_DATA"]) / "perturbation"
    cells = ad.read_h5ad(folder / "papalexi2021_thp1_crisprko_20729x299_counts.h5ad")
    cells = cells[cells.obs["assigned"].astype(bool)]
    labels, counts = cells.obs["target_gene"].astype(str).to_numpy(), sp.csr_matrix(cells.X, dtype=np.float32)
    obs = pd.DataFrame({"context": "THP-1_IFNg", "perturbation": labels}, index=cells.obs_names)
    ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=cells.var_names)).write_h5ad(tmp_path / "truth.h5ad")
    means = pd.DataFrame({p: counts[labels == p].mean(axis=0).A1 for p in sorted(set(labels) - {CONTROL})})
    generic = pd.DataFrame({p: means.drop(columns=p).mean(axis=1) for p in means})
    rng, keep = np.random.default_rng(0), labels != CONTROL
    depth = counts[keep].sum(axis=1).A1
    for name, profiles in (("others", generic), ("oracle", means)):
        share = (profiles / profiles.sum())[labels[keep]].to_numpy().T
        drawn = sp.csr_matrix(rng.poisson(depth[:, None] * share).astype(np.float32))
        prediction = ad.AnnData(drawn, obs=obs[keep], var=pd.DataFrame(index=cells.var_names))
        prediction.write_h5ad(tmp_path / f"{name}.h5ad")
    entries = [Entry(name, "baseline", tmp_path / f"{name}.h5ad") for name in ("others", "oracle")]
    table = score(tmp_path / "truth.h5ad", entries, CONTROL, "vcc2026", tmp_path / "cache")
    raw = table.rows.pivot_table(index="entry", columns="metric", values="raw")
    assert raw.loc["others", "pds_cosine"] == pytest.approx(0.5, abs=0.05)
    assert raw.loc["oracle", "pds_cosine"] == 1.0
    assert raw.loc["oracle", "de_wilcoxon_direction_reach_raw"] > 0.95
    assert raw.loc["others", "de_wilcoxon_lfc_nmae"] > 0.85 > 0.4 > raw.loc["oracle", "de_wilcoxon_lfc_nmae"]
    assert table.mean("oracle") > 1.0 > 0.2 > table.mean("others")


def test_folds_over_perturbations_have_no_discrimination(screen, table):
    """Each trained on what the others predict, so that its own is told from them worse than by chance."""
    entries = [Entry("replica", "model", screen.good), Entry("no effect", "baseline", screen.bad)]
    folds = score(screen.truth, entries, CONTROL, "vcc2026", screen.folder / "cache", folds=True)
    rows, whole = (
        one.rows.set_index(["entry", "context", "metric"])[["raw", "scaled", "reason"]] for one in (folds, table)
    )
    among = rows.index.get_level_values("metric") == "pds_cosine"
    assert (rows.loc[among, "reason"] == FOLDS).all()
    assert rows.loc[among, ["raw", "scaled"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(rows[~among], whole[~among])
    assert "pds_cosine" not in set(folds.values["metric"])
    assert folds.mean("replica", "alpha") == pytest.approx(whole[~among].loc[("replica", "alpha"), "scaled"].mean())
    assert any(FOLDS in line for line in folds.missing())
