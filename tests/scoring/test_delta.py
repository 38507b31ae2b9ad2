"""The preset delta, beside a slow version of its own."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from scipy.stats import false_discovery_control, mannwhitneyu
from scoring_screens import CONTROL, make_screen, perturbed, value

from vcc_fm.scoring.presets.delta import Delta, correlation, responding
from vcc_fm.scoring.profiles import label_means, log_normalized
from vcc_fm.scoring.replicate import SEEDS, halves
from vcc_fm.scoring.score import score
from vcc_fm.scoring.table import Entry


@pytest.fixture(scope="module")
def deltas(screen):
    perturbed(ad.read_h5ad(screen.truth)).write_h5ad(screen.folder / "itself.h5ad")
    entries = [Entry("replica", "model", screen.good), Entry("no effect", "baseline", screen.bad)]
    entries.append(Entry("itself", "baseline", screen.folder / "itself.h5ad"))
    return score(screen.truth, entries, CONTROL, "delta", screen.folder / "cache")


def log_cells(path, context):
    """Log-normalised cells as a frame, their labels as the index."""
    cells = ad.read_h5ad(path)
    cells = cells[cells.obs["context"] == context].copy()
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    return pd.DataFrame(cells.X.toarray(), index=cells.obs["perturbation"].astype(str)).astype(np.float64)


def test_values_are_those_of_a_slow_version(deltas, screen):
    truth, good = (log_cells(path, "alpha") for path in (screen.truth, screen.good))
    real, predicted = truth.groupby(level=0).mean(), good.groupby(level=0).mean()
    labels = [label for label in real.index if label != CONTROL]
    references = {"control": real.loc[CONTROL], "mean": real.loc[labels].mean()}
    found = {metric: [] for metric in Delta.metrics}
    significant = {}
    for label in labels:
        p = np.array([mannwhitneyu(truth.loc[label, gene], truth.loc[CONTROL, gene]).pvalue for gene in truth])
        significant[label] = (false_discovery_control(p) < 0.05).sum()
        for suffix, genes in (("", slice(None)), ("_top20", np.argsort(p, kind="stable")[:20])):
            x, y = real.loc[label].iloc[genes], predicted.loc[label].iloc[genes]
            found[f"mse{suffix}"].append(((x - y) ** 2).mean())
            for name, reference in references.items():
                against = reference.iloc[genes]
                found[f"pearson_{name}{suffix}"].append(np.corrcoef(x - against, y - against)[0, 1])
    for metric, values in found.items():
        assert value(deltas, "replica", "alpha", metric, "raw") == pytest.approx(np.mean(values), rel=1e-5), metric
    counts = deltas.significant[deltas.significant["context"] == "alpha"]
    assert dict(zip(counts["perturbation"], counts["significant"], strict=True)) == significant


def test_a_replicate_takes_its_deltas_against_cells_of_its_own_half(deltas, screen):
    cells = ad.read_h5ad(screen.truth)
    cells = cells[cells.obs["context"] == "beta"].copy()
    found = {"control": [], "mean": []}
    for seed in SEEDS:
        truth, half = (label_means(log_normalized(part, 1e4)) for part in halves(cells, seed))
        real, ours = (means.drop(index=CONTROL) for means in (truth, half))
        for name, origins in (("control", (truth, half)), ("mean", (real, ours))):
            first, second = (one.loc[CONTROL] if name == "control" else one.mean() for one in origins)
            found[name].append(
                np.mean([np.corrcoef(real.loc[p] - first, ours.loc[p] - second)[0, 1] for p in real.index])
            )
    for name, values in found.items():
        assert value(deltas, Delta.ceiling, "beta", f"pearson_{name}", "raw") == pytest.approx(
            np.mean(values), rel=1e-6
        )


def test_the_truth_itself_is_beyond_a_replicate_and_cells_without_effect_below_the_mean_response(deltas):
    for metric, shown in Delta.metrics.items():
        assert value(deltas, "itself", "beta", metric, "raw") == pytest.approx(0 if shown.low_is_good else 1, abs=1e-6)
        assert value(deltas, "itself", "beta", metric) > 1 > value(deltas, "no effect", "beta", metric)
        assert value(deltas, Delta.low, "beta", metric) == 0
        assert value(deltas, Delta.ceiling, "beta", metric) == 1
    assert (
        abs(value(deltas, Delta.low, "beta", "pearson_mean", "raw"))
        < 0.2
        < value(deltas, Delta.low, "beta", "pearson_control", "raw")
    )


def test_the_mean_of_the_others_would_give_the_mean_response_a_correlation_of_one():
    means = np.random.default_rng(0).normal(size=(6, 50))
    for number, real in enumerate(means):
        others = np.delete(means, number, axis=0).mean(axis=0)
        assert correlation(real - others, means.mean(axis=0) - others) == pytest.approx(1)


def test_a_delta_that_does_not_vary_has_no_correlation_in_the_truth_and_none_to_it_in_a_prediction():
    varies, flat = np.arange(5.0), np.full(5, 2.0)
    assert np.isnan(correlation(flat, varies))
    assert correlation(varies, flat) == 0


def test_genes_whose_p_is_too_small_to_be_told_from_zero_are_ordered_by_how_well_they_part_the_cells():
    rng, cells = np.random.default_rng(0), 3000
    shift = np.array([0, 3.0, 9.0, 5.0, 7.0])
    values = np.concatenate([rng.normal(20, 1, (cells, 5)), rng.normal(20, 1, (cells, 5)) + shift]).astype(np.float32)
    obs = pd.DataFrame({"perturbation": [CONTROL] * cells + ["A"] * cells}, index=[f"c{i}" for i in range(2 * cells)])
    log = ad.AnnData(sp.csr_matrix(values / 10), obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(5)]))
    top, significant = responding(log, CONTROL)
    # Gene 0 does not move; 2 and 4 part all pairs of cells and stand in the order of the axis, or nearly all.
    assert top["A"][-1] == 0
    assert top["A"][3] == 1
    assert top["A"][2] == 3
    assert significant == {"A": 4}


def test_a_second_model_measures_neither_ends_nor_rank_tests_again(deltas, screen, monkeypatch):
    def refuse(*_):
        raise AssertionError("measured again")

    for name in ("responding", "mean_response"):
        monkeypatch.setattr(f"vcc_fm.scoring.presets.delta.{name}", refuse)
    again = score(screen.truth, [Entry("replica", "model", screen.good)], CONTROL, "delta", screen.folder / "cache")
    expected = deltas.rows[deltas.rows["entry"] == "replica"].reset_index(drop=True)
    pd.testing.assert_frame_equal(again.rows[again.rows["entry"] == "replica"].reset_index(drop=True), expected)


def test_a_single_perturbation_has_raw_values_and_no_scale(tmp_path):
    for name, draw in (("truth", 0), ("p", 1)):
        cells = make_screen(0, contexts=("P1",), draw=draw)
        cells = cells[cells.obs["perturbation"].isin(["G00", CONTROL])].copy()
        (cells if name == "truth" else perturbed(cells)).write_h5ad(tmp_path / f"{name}.h5ad")
    table = score(tmp_path / "truth.h5ad", [Entry("m", "model", tmp_path / "p.h5ad")], CONTROL, "delta", tmp_path)
    rows = table.rows[table.rows["entry"] == "m"].set_index("metric")
    assert rows["scaled"].isna().all()
    assert rows.loc["pearson_control", "raw"] > 0.9
    assert np.isnan(rows.loc["pearson_mean", "raw"])
    assert value(table, Delta.ceiling, "P1", "mse", "raw") > 0
