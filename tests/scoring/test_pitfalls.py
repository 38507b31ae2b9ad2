"""Where the contest of 2025, its program of today and the contest of 2026 part, and on which side each preset is."""

import importlib.util
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp
from pdex import pdex
from scipy.stats import false_discovery_control
from scoring_screens import CONTROL, make_screen, perturbed

from vcc_fm.ground.errors import UserError
from vcc_fm.scoring.anchors import quiet
from vcc_fm.scoring.preset import Measured
from vcc_fm.scoring.presets.vcc2025 import COUNT, Vcc2025, _config
from vcc_fm.scoring.presets.vcc2025_today import Vcc2025Today
from vcc_fm.scoring.presets.vcc2026 import Vcc2026
from vcc_fm.scoring.profiles import label_means, log_normalized
from vcc_fm.scoring.score import score
from vcc_fm.scoring.table import Entry

THERE = importlib.util.find_spec("cell_eval") is not None
needs_cell_eval = pytest.mark.skipif(not THERE, reason="needs cell-eval: pip install -e '.[submit]'")
TODAY = pytest.param(Vcc2025Today, marks=needs_cell_eval)
BOTH = pytest.mark.parametrize("preset", [Vcc2025, TODAY])


def screen_of(draw=0, **given):
    """Cells of one context with controls, raw counts."""
    return make_screen(0, contexts=("c",), draw=draw, **given)


def compared(preset, predicted, truth):
    """Raw values of 2025 of cells with controls, raw counts."""
    with quiet():
        return preset().compare(log_normalized(predicted), log_normalized(truth), CONTROL, 1)


def measured(preset, predicted, truth, folder):
    """Raw values of cells with controls, raw counts; a prediction's controls are dropped."""
    scorer = preset().open(truth, "c", CONTROL, folder, "digest")
    return scorer.measure(perturbed(predicted))


def rank_tests(truth):
    """The rank tests of a truth: one row for each perturbation and gene."""
    return pdex(log_normalized(truth), groupby="perturbation", reference=CONTROL, is_log1p=True, as_pandas=True)


def numbers(one):
    """Perturbation -> its value."""
    return {label: value for label, (value, _) in one.parts.items()}


@needs_cell_eval
def test_1_significance_is_pooled_in_the_contest_and_within_a_perturbation_today():
    truth, other = screen_of(effect=0.3), screen_of(draw=1, effect=0.3)
    tests = rank_tests(truth)
    pooled = tests.assign(fdr=false_discovery_control(tests["p_value"]))
    found = {}
    for preset, table in ((Vcc2025, pooled), (Vcc2025Today, tests)):
        found[preset] = compared(preset, other, truth)
        assert numbers(found[preset][COUNT]) == (table["fdr"] < 0.05).groupby(table["target"]).sum().to_dict()
    assert numbers(found[Vcc2025][COUNT]) != numbers(found[Vcc2025Today][COUNT])
    assert found[Vcc2025]["overlap_at_N"].value != found[Vcc2025Today]["overlap_at_N"].value
    for metric in ("discrimination_score_l1", "mae"):
        assert found[Vcc2025][metric].value == pytest.approx(found[Vcc2025Today][metric].value, abs=1e-7)


@BOTH
def test_2_a_submissions_own_controls_change_pds_and_des_but_no_prediction_has_any(preset, tmp_path):
    truth, other = screen_of(), screen_of(draw=1, effect=0.5)
    control = truth[truth.obs["perturbation"] == CONTROL]
    distorted = control.copy()
    distorted.X = sp.csr_matrix(control.X[:, np.random.default_rng(0).permutation(control.n_vars)])
    # Depths stay, so each file is scaled as the other.
    honest, crooked = (
        compared(preset, ad.concat([perturbed(other), cells], index_unique="-"), truth)
        for cells in (control, distorted)
    )
    assert crooked["mae"].value == pytest.approx(honest["mae"].value, abs=1e-9)
    for metric in ("discrimination_score_l1", "overlap_at_N"):
        assert crooked[metric].value != honest[metric].value, metric
    truth.write_h5ad(tmp_path / "truth.h5ad")
    other.write_h5ad(tmp_path / "p.h5ad")
    with pytest.raises(UserError, match=r"80 control cells .* drop them, the truth's controls are used"):
        score(tmp_path / "truth.h5ad", [Entry("m", "model", tmp_path / "p.h5ad")], CONTROL, "vcc2025", tmp_path)
    with quiet():
        ours = measured(preset, other, truth, tmp_path)
    assert {name: one.value for name, one in ours.items()} == {name: honest[name].value for name in preset.metrics}


@needs_cell_eval
def test_3_a_fold_change_is_a_ratio_of_expressions_and_never_one_of_logs(tmp_path):
    from cell_eval2 import compute_metrics

    truth = screen_of()
    log = log_normalized(truth)
    means = label_means(log)
    expected = np.log2(np.expm1(means) / np.expm1(means.loc[CONTROL])).astype(np.float64)
    with quiet():
        compute_metrics(log, log, config=replace(_config(), outdir=str(tmp_path)), write_de=True)
        Vcc2025Today().compare(log, log, CONTROL, 1, kept=tmp_path)
    tables = [pl.read_parquet(tmp_path / "de_real.parquet"), pl.read_csv(tmp_path / "real_de.csv")]
    for table in tables:
        found = table.to_pandas().pivot(index="target", columns="feature", values="log2_fold_change")
        assert np.isfinite(found).all(axis=None)
        # The 2025 convention lets no fold change leave the range of 1/20 to 20.
        limited = expected.loc[found.index, found.columns].clip(np.log2(1 / 20), np.log2(20))
        np.testing.assert_allclose(found.clip(np.log2(1 / 20), np.log2(20)), limited, atol=2e-4)
    logs = np.log2(means / means.loc[CONTROL]).loc[found.index, found.columns]
    assert (found - logs).abs().max(axis=None) > 1


@BOTH
def test_4_depth_of_predicted_counts_moves_mae_in_2025_and_nothing_in_2026(preset, tmp_path):
    truth, other = screen_of(), screen_of(draw=1)
    deep = other.copy()
    deep.X = other.X * 2
    once, twice = (measured(preset, cells, truth, tmp_path) for cells in (other, deep))
    assert twice["mae"].value > once["mae"].value + 0.1
    once, twice = (measured(Vcc2026, cells, truth, tmp_path) for cells in (other, deep))
    for metric in Vcc2026.metrics:
        assert twice[metric].value == pytest.approx(once[metric].value, abs=1e-6), metric


def of_ones():
    """Cells in which every count is 0 or 1."""
    whole = screen_of(depth=3.0)
    counts = np.minimum(whole.X.toarray(), 1)
    counts[:, 0] = 1
    whole.X = sp.csr_matrix(counts)
    return whole


def test_5_cells_are_counts_by_rule_and_no_guess_is_made_of_their_values(tmp_path):
    from cell_eval2.norm import guess_is_lognorm

    whole = of_ones()
    assert guess_is_lognorm(log_normalized(whole))  # all-integer counts, once they are normalised, are taken for it
    rounded = log_normalized(whole)
    rounded.X = rounded.X.rint()
    assert not guess_is_lognorm(rounded)  # a log-normalised file without decimals would be taken for counts
    truth, p = screen_of(), log_normalized(perturbed(screen_of(draw=1)))
    truth.write_h5ad(tmp_path / "truth.h5ad")
    p.write_h5ad(tmp_path / "p.h5ad")
    with pytest.raises(UserError, match=r"fractional values .* the scorer needs raw counts"):
        score(tmp_path / "truth.h5ad", [Entry("m", "model", tmp_path / "p.h5ad")], CONTROL, "vcc2025", tmp_path)


@needs_cell_eval
def test_5_cell_evals_guess_agrees_with_the_rule():
    from cell_eval.utils import guess_is_lognorm

    whole = of_ones()
    assert guess_is_lognorm(log_normalized(whole))
    assert not guess_is_lognorm(whole)


@BOTH
def test_6_a_rank_is_over_n_and_one_of_a_tie_comes_first_in_2025(preset, tmp_path):
    truth = screen_of()
    labels = truth.obs["perturbation"].astype(str)
    twin = truth[labels == "G02"].copy()
    twin.obs["perturbation"] = "G03"
    twin.obs_names = [f"twin-{name}" for name in twin.obs_names]
    truth = ad.concat([truth[labels != "G03"], twin])
    # Their own target genes are left out in 2025, which would tell the two apart.
    truth.var_names = [name.replace("G", "H") for name in truth.var_names]
    found = numbers(compared(preset, truth, truth)["discrimination_score_l1"])
    # Which of the two is first is the sorting routine's choice, which differs between processors.
    assert sorted((found["G02"], found["G03"])) == pytest.approx([1 - 1 / 6, 1])
    assert [found[label] for label in ("G00", "G01", "G04", "G05")] == [1, 1, 1, 1]
    found = numbers(measured(Vcc2026, truth, truth, tmp_path)["pds_cosine"])
    assert (found["G02"], found["G03"]) == pytest.approx((1 - 0.5 / 5, 1 - 0.5 / 5))


@BOTH
def test_6_the_same_cells_for_every_perturbation_score_above_a_half_in_2025_and_a_half_in_2026(preset, tmp_path):
    truth = screen_of()
    truth.var_names = [name.replace("G", "H") for name in truth.var_names]
    labels = truth.obs["perturbation"].astype(str)
    same = truth.copy()
    block = truth.X[(labels == "G00").to_numpy()]
    same.X = sp.vstack([block] * 6 + [truth.X[(labels == CONTROL).to_numpy()]], format="csr")
    order = [*np.repeat(sorted(set(labels) - {CONTROL}), 24), *[CONTROL] * 80]
    same.obs = pd.DataFrame({"perturbation": order}, index=truth.obs_names)
    assert compared(preset, same, truth)["discrimination_score_l1"].value == pytest.approx(0.5 + 1 / 12)
    assert measured(Vcc2026, same, truth, tmp_path)["pds_cosine"].value == pytest.approx(0.5)


def knocked_down(draw):
    """A screen in which a perturbation silences its target and does nothing else."""
    cells = make_screen(0, effect=0.0, contexts=("c",), draw=draw)
    counts = cells.X.toarray()
    for column, gene in enumerate(cells.var_names[:6]):
        counts[cells.obs["perturbation"] == gene, column] = 0
    cells.X = sp.csr_matrix(counts)
    return cells


def test_7_the_target_gene_is_a_hit_in_2025_and_left_out_in_2026(tmp_path):
    truth, other = knocked_down(0), knocked_down(1)
    found = compared(Vcc2025, other, truth)
    assert set(numbers(found[COUNT]).values()) == {1}
    assert found["overlap_at_N"].value == 1
    assert compared(Vcc2025, screen_of(draw=1, effect=0.0), truth)["overlap_at_N"].value == 0
    scorer = Vcc2026().open(truth, "c", CONTROL, tmp_path, "digest")
    assert "no perturbation has a significant gene" in scorer.scales["de_wilcoxon_direction_reach_raw"].reason


@BOTH
def test_7_des_asks_for_no_sign(preset):
    rng = np.random.default_rng(0)
    labels = np.repeat([CONTROL, "A", "B"], 60)
    obs = pd.DataFrame({"perturbation": labels}, index=[f"c{i}" for i in range(180)])
    made = []
    for change in (3.0, 1 / 3):
        means = np.full((180, 40), 50.0)
        # In turn half of the changed genes go the other way, so that depths stay.
        means[labels == "A", :10] *= np.where(np.arange(10) % 2, change, 1 / change)
        means[labels == "B", 10:20] *= np.where(np.arange(10) % 2, change, 1 / change)
        counts = sp.csr_matrix(rng.poisson(means).astype(np.float32))
        made.append(ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(40)])))
    assert compared(preset, made[1], made[0])["overlap_at_N"].value > 0.8


@BOTH
def test_8_a_perturbation_without_a_significant_gene_scores_zero_and_stays_in_the_mean(preset):
    truth = screen_of()
    labels = truth.obs["perturbation"].astype(str).to_numpy()
    # One perturbation does nothing: its cells are control cells.
    counts = truth.X.toarray()
    counts[labels == "G05"] = counts[labels == CONTROL][:24]
    truth.X = sp.csr_matrix(counts)
    found = compared(preset, truth, truth)
    assert numbers(found[COUNT])["G05"] == 0
    assert numbers(found["overlap_at_N"]) == {f"G0{i}": float(i < 5) for i in range(6)}
    assert found["overlap_at_N"].value == pytest.approx(5 / 6)


def test_8_a_mean_leaves_out_what_has_no_value_and_says_over_how_many_it_is_taken():
    one = Measured.mean({"A": 1.0, "B": np.nan, "C": 0.5})
    assert (one.value, one.perturbations) == (0.75, 2)
    of_contest = pl.DataFrame({"m": [1.0, np.nan, 0.5]}).describe()
    assert np.isnan(of_contest.filter(pl.col("statistic") == "mean")["m"].item())


@needs_cell_eval
def test_8_a_metric_that_fails_is_no_gap_in_the_mean(monkeypatch):
    from cell_eval.metrics import metrics_registry

    compute = metrics_registry.compute

    def fail(name, *given, **more):
        if name == "mae":
            raise RuntimeError("mae failed")
        return compute(name, *given, **more)

    monkeypatch.setattr(metrics_registry, "compute", fail)
    with pytest.raises(RuntimeError, match="mae failed"):
        compared(Vcc2025Today, screen_of(draw=1), screen_of())


@BOTH
@pytest.mark.parametrize("named", [True, False])
def test_9_pds_leaves_out_the_own_target_where_the_axis_has_it_and_nothing_elsewhere(preset, named):
    truth, other = knocked_down(0), knocked_down(1)
    if not named:
        for cells in (truth, other):
            labels = cells.obs["perturbation"].astype(str)
            cells.obs["perturbation"] = labels.where(labels == CONTROL, labels + "+x")
    real, predicted = (label_means(log_normalized(cells)) for cells in (truth, other))
    real, predicted = ((means - means.loc[CONTROL]).drop(index=CONTROL) for means in (real, predicted))
    expected = {}
    for label in real.index:
        genes = real.columns != label
        distance = (real.loc[:, genes] - predicted.loc[label, genes]).abs().sum(axis=1)
        expected[label] = 1 - (distance < distance[label]).sum() / len(real)
    found = numbers(compared(preset, other, truth)["discrimination_score_l1"])
    assert found == pytest.approx(expected)
    # What a perturbation does here is to silence its target, and nothing else tells it from the others.
    assert (np.mean(list(found.values())) == 1) is not named
