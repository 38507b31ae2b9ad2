"""What a recipe can add to a simulated screen: each key does what it says, and truth is what endless cells show."""

from __future__ import annotations

import hashlib
from itertools import combinations
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

from vcc_fm.recipe.data import SimulateConfig
from vcc_fm.recipe.read import load_recipe
from vcc_fm.sources import measured_expression
from vcc_fm.sources.simulate import simulate
from vcc_fm.sources.truth import Truth, read_truth

RECIPES = Path(__file__).parents[2] / "recipes"
KEYS = {
    "combinations": {"combinations": 3, "interaction": 0.5},
    "expression": {"expression": "measured"},
    "programs": {"programs": 3},
    "depth_slope": {"depth_slope": 0.3},
}


def drawn(folder: Path, seed: int = 0, **keys: object) -> tuple[dict[str, NDArray], NDArray[np.float64], pd.DataFrame]:
    """Truth, counts and obs of the first context."""
    given = {"contexts": ["a", "b"], "perturbations": 6, "genes": 40, "cells": 8, "controls": 20, **keys}
    source = simulate(SimulateConfig(**given), seed, folder / "simulated")[0]
    data = anndata.read_h5ad(source.path)
    return dict(np.load(folder / "simulated/truth.npz")), data.X.toarray().astype(np.float64), data.obs


def test_the_demo_has_the_cells_that_it_always_had(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES / "demo.yaml")
    assert recipe.data.simulate is not None
    found = hashlib.sha256()
    alone = recipe.data.simulate.model_copy(update={"contexts": recipe.data.simulate.contexts[:1]})
    (source,) = simulate(alone, recipe.seed, tmp_path)  # other contexts change none of this one
    data = anndata.read_h5ad(source.path)
    found.update(data.X.toarray().astype(np.int32).tobytes())
    labels = data.obs["perturbation"].astype(str) + data.obs["batch"].astype(str) + data.obs_names
    found.update("".join(labels).encode())
    found.update((tmp_path / "proteins.fasta").read_bytes())
    assert found.hexdigest() == "10ebe89a1137be9d6be178e57b8f8dbd89d8ddddbcac658389182f532688d93d"


@pytest.mark.parametrize("key", KEYS)
def test_a_key_changes_what_it_says_and_nothing_else_of_the_truth(key: str, tmp_path: Path) -> None:
    before, counts, _ = drawn(tmp_path / "before")
    after, changed, _ = drawn(tmp_path / "after", **KEYS[key])
    assert changed.shape != counts.shape or (changed != counts).any()
    same = {name for name in before if np.array_equal(before[name], after[name])}
    always = {"contexts", "genes", "targets", "strength", "inert", "factors"}
    cells = {"shift", "depth", "efficiency", "cell_context"}
    assert always <= same
    assert (cells <= same) == (key != "combinations")
    np.testing.assert_array_equal(after["delta"][:, :6], before["delta"])


def test_the_share_of_inert_perturbations_is_as_asked(tmp_path: Path) -> None:
    truth, _, _ = drawn(tmp_path, perturbations=20, inert=0.6)
    assert truth["inert"].sum() == 12
    assert ((truth["delta"] != 0).any(axis=(0, 2)) == ~truth["inert"]).all()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_an_interaction_has_its_share_of_a_combinations_effect(share: float, tmp_path: Path) -> None:
    keys = {"perturbations": 20, "genes": 300, "combinations": 60, "interaction": share, "inert": 0.0}
    truth, _, obs = drawn(tmp_path, shared=0.5, **keys)
    genes = np.setdiff1d(np.arange(300), truth["targets"])
    singles, pairs = truth["delta"][0][:20, genes], truth["delta"][0][20:, genes]
    summed = np.clip(singles[truth["pairs"]].sum(axis=1), -3, 3)
    assert len(pairs) == 60
    explained = np.corrcoef(summed.ravel(), pairs.ravel())[0, 1] ** 2
    assert explained == pytest.approx(1 - share, abs=0.04)
    assert pairs.std() == pytest.approx(summed.std(), rel=0.1)  # no smaller, no larger
    if share:
        new = truth["delta"][:, 20:, genes] - np.sqrt(1 - share) * truth["delta"][:, truth["pairs"]][..., genes].sum(2)
        assert 0.2 < np.corrcoef(new[0].ravel(), new[1].ravel())[0, 1] < 0.55  # shared as other effects are
    symbols = truth["genes"][truth["targets"]]
    assert set(obs["perturbation"]) >= {"+".join(symbols[pair]) for pair in truth["pairs"]}


def test_both_genes_of_a_combination_go_down(tmp_path: Path) -> None:
    truth, counts, obs = drawn(tmp_path, cells=300, controls=600, combinations=2)
    depth = counts.sum(axis=1, keepdims=True)
    control = (counts / depth)[obs["perturbation"] == "non-targeting"].mean(axis=0)
    for pair in truth["pairs"]:
        both = truth["targets"][pair]
        here = (counts / depth)[obs["perturbation"] == "+".join(truth["genes"][both])].mean(axis=0)
        assert (here[both] / control[both] < 0.4).all()
        assert not truth["delta"][0][6 + int((truth["pairs"] == pair).all(1).argmax())][both].any()


def test_measured_expression_is_that_of_the_fit(tmp_path: Path) -> None:
    truth, _, _ = drawn(tmp_path, genes=6000, expression="measured")
    base, dispersion = truth["base"], np.log(truth["dispersion"])
    levels = stats.norm.cdf([-2, -1, 0, 1, 2])
    np.testing.assert_allclose(np.quantile(base, levels), measured_expression.KNOTS[1:-1], atol=0.25)
    assert np.corrcoef(base)[0, 1] == pytest.approx(0.43, abs=0.05)
    slope, level = np.polyfit(base.ravel(), dispersion.ravel(), 1)
    rest = dispersion - level - slope * base
    assert (slope, level) == (pytest.approx(0.08, abs=0.02), pytest.approx(-1.38, abs=0.03))
    assert rest.std() == pytest.approx(0.5, abs=0.02)
    assert np.corrcoef(rest)[0, 1] == pytest.approx(0.33, abs=0.04)


def test_the_fit_is_that_of_the_table(real_data: Path) -> None:
    table = pd.read_csv(real_data / "perturbation/perturbplan_baseline_nb_6contexts.csv.gz")
    share, size = (
        table.pivot(index="response_id", columns="context", values=name)
        for name in ("relative_expression", "expression_size")
    )
    share = share.dropna()
    share = share[share.mean(axis=1) > 3e-5]
    log_share = np.log(share) - np.log(share).mean()
    found = np.quantile(log_share, stats.norm.cdf(measured_expression.SCORES))
    np.testing.assert_allclose(found, measured_expression.KNOTS, atol=0.01)
    rank = np.mean([log_share[a].corr(log_share[b], "spearman") for a, b in combinations(share.columns, 2)])
    assert 2 * np.sin(np.pi * rank / 6) == pytest.approx(measured_expression.ALIKE, abs=0.01)
    log_alpha = -np.log(size.loc[share.index]).where(share > 3e-5)
    log_alpha += log_alpha.median().mean() - log_alpha.median()
    line = measured_expression.LEVEL + measured_expression.SLOPE * log_share
    rest = (log_alpha - line).to_numpy().ravel()
    rest = rest[np.isfinite(rest)]
    assert abs(np.median(rest)) < 0.05
    assert 1.4826 * np.median(np.abs(rest)) == pytest.approx(measured_expression.SPREAD, abs=0.06)


def test_counts_have_the_measured_means_and_variances(tmp_path: Path) -> None:
    truth, counts, obs = drawn(tmp_path, genes=150, controls=6000, batches=1, depth=20_000.0, expression="measured")
    cells = counts[obs["perturbation"] == "non-targeting"]
    depth = truth["depth"][truth["cell_context"] == 0][obs["perturbation"] == "non-targeting"]
    share = np.exp(truth["base"][0] + truth["shift"][0][0])
    mean = depth[:, None] * share / share.sum()
    expressed = mean.mean(axis=0) > 5
    alpha = ((cells - mean) ** 2 - mean).sum(axis=0) / (mean**2).sum(axis=0)
    ratio = np.log(alpha[expressed]) - np.log(truth["dispersion"][0][expressed])
    assert expressed.sum() > 50
    assert np.sqrt((ratio**2).mean()) < 0.15


def test_programs_make_genes_go_together_in_cells(tmp_path: Path) -> None:
    keys = {"genes": 60, "controls": 6000, "batches": 1, "depth": 60_000.0, "programs": 2, "program_sd": 0.4}
    truth, counts, obs = drawn(tmp_path, **keys)
    cells = counts[obs["perturbation"] == "non-targeting"]
    expressed = cells.mean(axis=0) > 100
    # Shares, not counts: a program that lifts what most counts are of lowers the rest.
    shares = cells / cells.sum(axis=1, keepdims=True)
    loadings = truth["loadings"] - (truth["loadings"] * shares.mean(axis=0)).sum(axis=1, keepdims=True)
    assert truth["loadings"].std() * np.sqrt(2) == pytest.approx(0.4, rel=0.2)
    found = np.cov((shares / shares.mean(axis=0))[:, expressed].T)
    expected = np.expm1(loadings.T @ loadings)[np.ix_(expressed, expressed)]
    off = ~np.eye(len(found), dtype=bool)
    assert np.corrcoef(found[off], expected[off])[0, 1] > 0.9
    assert np.polyfit(expected[off], found[off], 1)[0] == pytest.approx(1.0, abs=0.25)


def test_composition_follows_depth(tmp_path: Path) -> None:
    truth, counts, obs = drawn(tmp_path, controls=8000, batches=1, depth=20_000.0, depth_slope=0.5)
    control = (obs["perturbation"] == "non-targeting").to_numpy()
    depth, cells = truth["depth"][truth["cell_context"] == 0][control], counts[control]
    parts = np.array_split(np.argsort(depth), 6)
    shares = np.log([cells[part].sum(axis=0) / cells[part].sum() for part in parts])
    slope = np.polyfit(np.log([depth[part].mean() for part in parts]), shares, 1)[0]
    share = cells.sum(axis=0) / cells.sum()
    expressed = cells.mean(axis=0) > 30
    expected = truth["slope"] - (share * truth["slope"]).sum()
    assert np.corrcoef(slope[expressed], expected[expressed])[0, 1] > 0.97
    assert np.polyfit(expected[expressed], slope[expressed], 1)[0] == pytest.approx(1.0, abs=0.1)


def test_the_truth_is_what_many_cells_show(tmp_path: Path) -> None:
    """Every key at once; log ratios of shares of thousands of cells, but for one constant per perturbation."""
    every = {name: value for keys in KEYS.values() for name, value in keys.items()}
    _, counts, obs = drawn(tmp_path, 5, cells=2500, controls=5000, depth=20_000.0, **every | {"depth_slope": 0.15})
    truth = read_truth(tmp_path / "cells")
    labels = obs["perturbation"].astype(str)
    control = counts[labels == "non-targeting"].sum(axis=0)
    expressed = counts.mean(axis=0) > 3
    errors, sizes = [], []
    for label in truth.labels:
        here = counts[labels == label].sum(axis=0)
        measured = np.log(here / here.sum()) - np.log(control / control.sum())
        expected = truth.of("a", label)
        error = (measured - expected)[expressed]
        errors.append(error - np.median(error))
        sizes.append(expected[expressed])
    # The sampling error of a log ratio of 2,500 and 5,000 cells with a variance of about 0.6 of the squared mean.
    assert np.sqrt(np.mean(np.square(errors))) < 0.03
    assert np.sqrt(np.mean(np.square(sizes))) > 0.25


def test_the_truth_of_what_does_nothing_is_nothing(tmp_path: Path) -> None:
    drawn(tmp_path, inert=1.0)
    truth = read_truth(tmp_path / "cells")
    assert isinstance(truth, Truth)
    for label in truth.labels:
        ratio = truth.of("b", label).copy()
        target = truth.genes.index(label)
        # Seven of a hundred cells escape, the others keep a bit.
        assert ratio[target] == pytest.approx(np.log(0.07 + 0.93 * 0.15), abs=0.05)
        ratio[target] = 0.0
        assert not ratio.any()
