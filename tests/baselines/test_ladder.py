"""The rungs of the ladder, each against a plain computation on responses of known values."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge as PlainRidge
from tiny_screens import CONTROL, dataset_of, embedded, screen, store_of

from vcc_fm.baselines.expression_ridge import COMPONENTS, ExpressionRidge
from vcc_fm.baselines.knock_down import KnockDown
from vcc_fm.baselines.mean_response import MeanResponse
from vcc_fm.baselines.nearest import NEIGHBOURS, Nearest
from vcc_fm.baselines.other_contexts import OtherContexts
from vcc_fm.baselines.protein_ridge import ProteinRidge
from vcc_fm.baselines.similar_contexts import SimilarContexts
from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.responses.responses import Responses, own_genes

GENES = [f"g{i}" for i in range(30)]
CONTEXTS = ("H", "K", "T")


def known(raw: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """No shrinkage, so that averages can be told by hand."""
    return raw


@pytest.fixture
def data(tmp_path) -> Dataset:
    """Controls of three contexts, of which H and K are alike, and proteins of all genes but the last."""
    rng = np.random.default_rng(0)
    base = rng.lognormal(0, 1, len(GENES))
    profiles = np.stack([base, base * np.exp(rng.normal(0, 0.1, 30)), base * np.exp(rng.normal(0, 2.0, 30))])
    counts = rng.poisson(20 * np.repeat(profiles, 20, axis=0))
    store = store_of(tmp_path, screen(counts, np.repeat(CONTEXTS, 20), "1", CONTROL, GENES))
    vectors = rng.normal(0, 1, (29, 6)).astype(np.float32)
    found = dataset_of(store)
    return replace(found, protein_vectors=embedded(tmp_path / "known", GENES[:-1], vectors, "symbol"))


def with_responses(data: Dataset, groups: dict[tuple[str, str], np.ndarray], precision: float = 4.0) -> Dataset:
    ratio = np.stack(list(groups.values())).astype(np.float32)
    own = own_genes({label for _, label in groups}, "+", GENES)
    responses = Responses(list(groups), ratio, np.full_like(ratio, precision), own, shrink=known)
    return known_to(data, responses)


def known_to(data: Dataset, responses: Responses) -> Dataset:
    """The same data, but for its responses."""
    found = replace(data)
    found.__dict__["responses"] = responses
    return found


def test_the_knock_down_is_the_training_mean_at_the_target_and_nothing_else(data):
    ratios = {("H", "g0"): np.full(30, 0.3), ("K", "g1"): np.full(30, 0.2)}
    ratios["H", "g0"][0], ratios["K", "g1"][1] = -2.0, -1.0
    found = KnockDown(with_responses(data, ratios)).log_ratio("T", "g2+g5")
    assert found[[2, 5]].tolist() == [-1.5, -1.5]
    assert (np.delete(found, [2, 5]) == 0).all()
    assert (KnockDown(with_responses(data, ratios)).log_ratio("T", "elsewhere") == 0).all()


def test_similar_contexts_count_more_and_alone_they_are_other_contexts(data):
    rng = np.random.default_rng(1)
    ratios = {(context, "g3"): rng.normal(0, 1, 30) for context in ("K", "T")} | {("T", "g4"): rng.normal(0, 1, 30)}
    both = with_responses(data, ratios)
    found = SimilarContexts(both).log_ratio("H", "g3")
    profile = [both.log_shares[both.cells.batch[both.cells.rows(context)[0]]].astype(float) for context in CONTEXTS]
    squared = {(i, j): ((profile[i] - profile[j]) ** 2).sum() for i in range(3) for j in range(i)}
    near, far = (np.exp(-squared[pair] / np.mean(list(squared.values()))) for pair in ((1, 0), (2, 0)))
    expected = (near * ratios["K", "g3"] + far * ratios["T", "g3"]) / (near + far)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert near > 1.3 * far
    alone, elsewhere = (rung(both).log_ratio("H", "g4") for rung in (SimilarContexts, OtherContexts))
    np.testing.assert_allclose(alone, elsewhere, rtol=1e-6)
    np.testing.assert_array_equal(SimilarContexts(both).log_ratio("H", "g9"), MeanResponse(both).log_ratio("H", "g9"))


def test_a_linear_effect_of_proteins_is_found(data):
    rng = np.random.default_rng(2)
    weights = rng.normal(0, 1, (6, 30))
    vectors = np.asarray(data.protein_vectors.vectors)
    labels = [f"g{i}" for i in range(26)]
    truth = {label: vectors[i] @ weights + 0.5 for i, label in enumerate(labels)}
    held = labels[:3]
    ratios = {("K", label): truth[label] + rng.normal(0, 0.05, 30) for label in labels[3:]}
    ridge = ProteinRidge(with_responses(data, ratios))
    for label in held:
        assert np.abs(ridge.log_ratio("T", label) - truth[label]).max() < 0.3
        assert np.abs(MeanResponse(ridge.data).log_ratio("T", label) - truth[label]).max() > 1.0
    pair = ridge.log_ratio("T", "g0+g1")
    np.testing.assert_allclose(pair, (ridge.log_ratio("T", "g0") + ridge.log_ratio("T", "g1")) / 2, atol=0.1)
    # Without a vector it is the mean response; with two perturbations there is nothing to fit.
    np.testing.assert_array_equal(ridge.log_ratio("T", "g29"), MeanResponse(ridge.data).log_ratio("T", "g29"))
    few = with_responses(data, dict(list(ratios.items())[:2]))
    np.testing.assert_array_equal(ProteinRidge(few).log_ratio("T", "g0"), MeanResponse(few).log_ratio("T", "g0"))


def test_the_regression_is_sklearns_at_the_chosen_penalty(data):
    rng = np.random.default_rng(3)
    labels = [f"g{i}" for i in range(12)]
    responses = with_responses(data, {("K", label): rng.normal(0, 1, 30) for label in labels}).responses
    ridge = ProteinRidge(known_to(data, responses))
    found = ridge.log_ratio("K", "g20")
    x = np.asarray(data.protein_vectors.vectors)[:12].astype(float)
    scale = np.sqrt(x.var(axis=0).mean())
    beyond = responses.ratio - responses.ratio.mean(axis=0)
    plain = PlainRidge(alpha=ridge._fitted[0].alpha_).fit((x - x.mean(axis=0)) / scale, beyond)
    asked = (np.asarray(data.protein_vectors.vectors)[20] - x.mean(axis=0)) / scale
    expected = responses.ratio.mean(axis=0) + plain.predict(asked[None])[0]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_loadings_are_principal_components_and_a_target_off_the_axis_has_none(data):
    rng = np.random.default_rng(4)
    labels = [f"g{i}" for i in range(20)]
    ridge = ExpressionRidge(with_responses(data, {("K", label): rng.normal(0, 1, 30) for label in labels}))
    ratio = ridge.data.responses.ratio.astype(float)
    _, _, components = np.linalg.svd(ratio - ratio.mean(axis=0), full_matrices=False)
    loadings = np.stack([ridge.features(gene) for gene in GENES])
    assert loadings.shape == (30, COMPONENTS)
    np.testing.assert_allclose(np.abs((loadings * components[:COMPONENTS].T).sum(axis=0)), 1.0, atol=1e-6)
    assert ridge.features("elsewhere") is None
    np.testing.assert_array_equal(
        ridge.log_ratio("K", "elsewhere"), MeanResponse(ridge.data).log_ratio("K", "elsewhere")
    )


def test_neighbours_are_the_most_alike_and_never_the_perturbation_itself(data):
    rng = np.random.default_rng(5)
    labels = [f"g{i}" for i in range(12)]
    ratios = {("K", label): rng.normal(0, 1, 30) for label in labels} | {("H", "g1"): rng.normal(0, 1, 30)}
    found = Nearest(with_responses(data, ratios)).log_ratio("K", "g0")
    vectors = np.asarray(data.protein_vectors.vectors).astype(float)
    unit = vectors - vectors.mean(axis=0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    nearest = np.argsort(-(unit[1:12] @ unit[0]))[:NEIGHBOURS] + 1
    np.testing.assert_allclose(found, np.mean([ratios["K", f"g{i}"] for i in nearest], axis=0), atol=1e-6)
    unknown = Nearest(with_responses(data, ratios))
    np.testing.assert_array_equal(unknown.log_ratio("K", "g29"), MeanResponse(unknown.data).log_ratio("K", "g29"))
