"""The mixed model beside dense textbook computations, and on responses drawn from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vcc_fm.cellsets.mixed_model import Evidence, Kernels, MixedModel, principal_features

GENES = 60


def targets(label: str) -> list[str]:
    return label.split("+")


def features(number: int = 12, width: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    vectors = np.random.default_rng(seed).normal(0, 1, (number, width))
    return principal_features({f"p{i}": vector for i, vector in enumerate(vectors)}, width)


def evidence(groups, genes: int = GENES, seed: int = 1, depth: float = 3e4) -> Evidence:
    """Noise alone; its size differs by group and gene."""
    rng = np.random.default_rng(seed)
    unit = rng.uniform(50, 500, genes)
    depths = rng.uniform(0.5, 2.0, len(groups)) * depth
    ratio = rng.normal(0, 1, (len(groups), genes)) * np.sqrt(unit / depths[:, None])
    nothing = np.zeros((len(groups), genes), bool)
    contexts = {context for context, _ in groups} | {"new"}
    return Evidence(groups, ratio.astype(np.float32), ~nothing, nothing, depths, dict.fromkeys(contexts, 1e6), unit)


def covariances(model: MixedModel, groups, amplitude: np.ndarray) -> np.ndarray:
    """K between any groups, element by element from the definition."""
    known, k = model.kernels.features, np.append(model.components, [0, 0])
    found = np.zeros((len(groups), len(groups)))
    for i, (context, label) in enumerate(groups):
        for j, (other, other_label) in enumerate(groups):
            here = float(context == other)
            shared = sum(a == b for a in targets(label) for b in targets(other_label))
            nothing = np.zeros(3)
            one, two = (sum((known.get(g, nothing) for g in targets(x)), nothing) for x in (label, other_label))
            terms = (1.0, here, shared, here * shared, one @ two, here * (one @ two))
            found[i, j] = amplitude[i] * amplitude[j] * sum(a * b for a, b in zip(k, terms, strict=False))
    return found


def dense(model: MixedModel, asked, without: int | None = None, genes: int = GENES):
    """Mean and standard deviation [G] of the signal of one group, gene by gene."""
    e = model.evidence
    groups = [*e.groups, asked]
    amplitude = np.append(model.amplitude, model.amplitude_of(asked[1]))
    k = covariances(model, groups, amplitude)
    noise = np.diag(1 / e.depth)
    noise += [[(a == b) / e.control_depth[a] for b, _ in e.groups] for a, _ in e.groups]
    mean, deviation = np.zeros(genes), np.zeros(genes)
    for g in range(genes):
        rows = np.flatnonzero(e.measured[:, g])
        rows = rows[rows != without]
        s, u = model.scale[g], e.unit[g]
        joint = s * k[np.ix_(rows, rows)] + u * noise[np.ix_(rows, rows)]
        across = s * k[rows, -1]
        y = np.where(e.own[rows, g], 0.0, e.ratio[rows, g])
        mean[g] = across @ np.linalg.solve(joint, y)
        deviation[g] = np.sqrt(max(s * k[-1, -1] - across @ np.linalg.solve(joint, across), 0.0))
    return mean, deviation


GROUPS = [(context, f"p{i}") for context in ("H", "K", "T") for i in range(6) if (context, i) != ("T", 2)]
GROUPS.append(("K", "p0+p1"))


def drawn(groups=GROUPS, genes: int = GENES, seed: int = 2, inert: tuple[str, ...] = (), known=None) -> Evidence:
    """Responses with a shared effect of each perturbation, one of proteins, and one of context and perturbation."""
    rng, found = np.random.default_rng(seed), evidence(groups, genes)
    known = features() if known is None else known
    own = {f"p{i}": rng.normal(0, 0.5, genes) for i in range(12)}
    slope = rng.normal(0, 0.4, (3, genes))
    signal = np.zeros((len(groups), genes))
    for row, (_, label) in enumerate(groups):
        if label not in inert:
            for gene in targets(label):
                signal[row] += own[gene] + known[gene] @ slope
            signal[row] += rng.normal(0, 0.3, genes)
    return replace(found, ratio=(found.ratio + signal).astype(np.float32))


@pytest.fixture(scope="module")
def model() -> MixedModel:
    found = drawn()
    found.own[np.arange(len(GROUPS)), np.arange(len(GROUPS))] = True
    return MixedModel(found, Kernels(targets, features()))


@pytest.mark.parametrize(
    "asked", [("H", "p1"), ("T", "p2"), ("new", "p3"), ("new", "p9"), ("T", "p0+p1"), ("new", "p3+p9"), ("H", "other")]
)
def test_a_prediction_is_the_dense_one(model, asked):
    mean, deviation = model.predict(*asked)
    expected = dense(model, asked)
    np.testing.assert_allclose(mean, expected[0], atol=2e-5)
    np.testing.assert_allclose(deviation, expected[1], atol=2e-4)


def test_leaving_one_out_is_fitting_without_it(model):
    for row in (0, 7, len(GROUPS) - 1):
        mean, _ = dense(model, GROUPS[row], without=row)
        np.testing.assert_allclose(model.leave_one_out(row), mean, atol=2e-5)


def test_the_likelihood_is_that_of_each_response_given_the_others(model):
    e, total = model.evidence, []
    k = covariances(model, GROUPS, model.amplitude)
    noise = np.diag(1 / e.depth) + [[(a == b) / e.control_depth[a] for b, _ in GROUPS] for a, _ in GROUPS]
    for g in range(GENES):
        joint = model.scale[g] * k + e.unit[g] * noise
        y = np.where(e.own[:, g], 0.0, e.ratio[:, g])
        for i in np.flatnonzero(~e.own[:, g]):
            rest = np.delete(np.arange(len(y)), i)
            weights = np.linalg.solve(joint[np.ix_(rest, rest)], joint[rest, i])
            variance = joint[i, i] - weights @ joint[rest, i]
            total.append(-0.5 * ((y[i] - weights @ y[rest]) ** 2 / variance + np.log(2 * np.pi * variance)))
    assert model.log_likelihood == pytest.approx(np.mean(total), abs=1e-4)


def test_a_gene_counts_where_it_was_measured():
    found = drawn()
    found.measured[[context == "K" for context, _ in GROUPS], :20] = False
    found.ratio[~found.measured] = 0
    found.measured[:, 5] = False
    found.ratio[:, 5] = 0
    model = MixedModel(found, Kernels(targets, features()))
    mean, deviation = model.predict("new", "p3")
    expected = dense(model, ("new", "p3"))
    np.testing.assert_allclose(mean, expected[0], atol=2e-5)
    assert mean[5] == 0
    assert deviation[5] == deviation.max()


def test_components_of_responses_drawn_from_the_model_are_found():
    groups = [(context, f"p{i}") for context in "ABCDE" for i in range(12)]
    model = MixedModel(drawn(groups, genes=3000, known=features()), Kernels(targets, features()))
    constant, context, shared, interaction, alike, alike_here = model.components
    # The same perturbation elsewhere 0.25, proteins 0.16 for each of three features of mean square 1/3, own 0.09.
    assert shared == pytest.approx(0.25, abs=0.06)
    assert alike == pytest.approx(0.16, abs=0.06)
    assert interaction == pytest.approx(0.09, abs=0.03)
    assert max(constant, context, alike_here) < 0.03


def test_a_perturbation_without_an_effect_stays_near_zero():
    groups = [(context, f"p{i}") for context in "ABC" for i in range(10)]
    model = MixedModel(drawn(groups, genes=400, inert=("p3",)), Kernels(targets, features()))
    assert model.amplitude_of("p3") < 0.25 < 0.7 < model.amplitude_of("p4")
    inert, active = (np.sqrt((model.predict("new", label)[0] ** 2).mean()) for label in ("p3", "p4"))
    assert inert < 0.1 * active


def test_the_order_of_groups_means_nothing():
    found = drawn()
    order = np.random.default_rng(0).permutation(len(GROUPS))
    one, other = (MixedModel(e, Kernels(targets, features())) for e in (found, found.of(order)))
    for asked in (("T", "p2"), ("new", "p9")):
        for first, second in zip(one.predict(*asked), other.predict(*asked), strict=True):
            np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("groups", [[("K", "p1")], [("K", "p1"), ("K", "p2")], [("K", "p1"), ("H", "p1")]])
@pytest.mark.parametrize("known", [{}, features()])
def test_few_groups_and_no_proteins_give_finite_predictions(groups, known):
    model = MixedModel(evidence(groups), Kernels(targets, known))
    for asked in (groups[0], ("new", "p1"), ("new", "p7")):
        mean, deviation = model.predict(*asked)
        assert np.isfinite(mean).all()
        assert np.isfinite(deviation).all()


def test_a_combination_does_what_its_single_perturbations_do():
    groups = [("K", f"p{i}") for i in range(12)]
    found = drawn(groups, genes=300)
    model = MixedModel(found, Kernels(targets, features()))
    both, one, two = (model.predict("K", label)[0] for label in ("p2+p5", "p2", "p5"))
    assert np.corrcoef(both, one + two)[0, 1] > 0.95
    assert both.std() > 0.7 * (one + two).std()
