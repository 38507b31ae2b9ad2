"""The mixed model beside dense textbook computations, and on responses drawn from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_screens import CONTROL, dataset_of, draw_counts, papalexi, screen, store_of

from vcc_fm.baselines.mixed_model import Mixed
from vcc_fm.responses.evidence import Evidence, evidence_of, noise_profile
from vcc_fm.responses.expected import Expected, likely_tables
from vcc_fm.responses.kernels import Kernels, co_response, coexpression, principal_axes, principal_features
from vcc_fm.responses.mixed_model import MixedModel

GENES = 60


def targets(label: str) -> list[str]:
    return label.split("+")


def features(number: int = 12, width: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    vectors = np.random.default_rng(seed).normal(0, 1, (number, width))
    return principal_features({f"p{i}": vector for i, vector in enumerate(vectors)}, width)


def noise_of(groups, genes: int = GENES, seed: int = 1, depth: float = 3e4, kinds: bool = True) -> Evidence:
    """Noise alone; its size differs by group, by gene, and by the kind of a gene in a context."""
    rng = np.random.default_rng(seed)
    contexts = sorted({context for context, _ in groups} | {"new"})
    factor = rng.uniform(0.3, 3.0, (len(contexts), 3)) if kinds else np.ones((len(contexts), 3))
    common = rng.uniform(50, 500, genes)
    unit = {context: common * row[np.arange(genes) % 3] for context, row in zip(contexts, factor, strict=True)}
    depths = rng.uniform(0.5, 2.0, len(groups)) * depth
    spread = np.stack([np.sqrt(unit[context] / n) for (context, _), n in zip(groups, depths, strict=True)])
    nothing = np.zeros((len(groups), genes), bool)
    ratio = (rng.normal(0, 1, spread.shape) * spread).astype(np.float32)
    return Evidence(groups, ratio, ~nothing, nothing, depths, dict.fromkeys(contexts, 1e6), unit)


GROUPS = [(context, f"p{i}") for context in ("H", "K", "T") for i in range(6) if (context, i) != ("T", 2)]
GROUPS.append(("K", "p0+p1"))


def drawn(
    groups=GROUPS, genes: int = GENES, seed: int = 2, inert: tuple[str, ...] = (), kinds: bool = True
) -> Evidence:
    """Responses with an effect of each target gene, one of its features, and one of context and perturbation."""
    rng, found, known = np.random.default_rng(seed), noise_of(groups, genes, kinds=kinds), features()
    own = {f"p{i}": rng.normal(0, 0.5, genes) for i in range(12)}
    slope = rng.normal(0, 0.4, (3, genes))
    signal = np.zeros((len(groups), genes))
    for row, (_, label) in enumerate(groups):
        if label not in inert:
            for gene in targets(label):
                signal[row] += own[gene] + known[gene] @ slope
            signal[row] += rng.normal(0, 0.3, genes)
    return replace(found, ratio=(found.ratio + signal).astype(np.float32))


def covariances(model: MixedModel, groups, weights) -> np.ndarray:
    """K between any groups, element by element from the definition; ``weights`` of each group's target genes."""
    tables = model.kernels.tables
    found = np.zeros((len(groups), len(groups)))
    for i, one in enumerate(weights):
        for j, other in enumerate(weights):
            sizes = [np.sqrt(np.mean(np.square(list(x.values())))) for x in (one, other)]
            constant = sizes[0] * sizes[1]
            terms = [constant, sum(one[g] * other[g] for g in one.keys() & other.keys())]
            if any("+" in label for _, label in model.evidence.groups):
                terms.append(constant * (len(one) > 1 and one.keys() == other.keys()))
            for table in tables:
                a, b = (sum(w * table.get(g, np.zeros(3)) for g, w in x.items()) for x in (one, other))
                terms.append(a @ b)
            here = float(groups[i][0] == groups[j][0])
            found[i, j] = sum((a + b * here) * x for (a, b), x in zip(model.components, terms, strict=True))
    return found


def joint(model: MixedModel, asked=None, weights=None) -> tuple[np.ndarray, np.ndarray]:
    """K of the training groups (and of ``asked``, last), and the noise R [n, n, G] of the responses."""
    e = model.evidence
    known = [dict.fromkeys(targets(label), a) for (_, label), a in zip(e.groups, model.amplitude, strict=True)]
    groups = [*e.groups, asked] if asked else e.groups
    k = covariances(model, groups, [*known, weights] if asked else known)
    unit = np.stack([e.unit[context] for context, _ in e.groups])
    same = np.array([[a == b for b, _ in e.groups] for a, _ in e.groups])
    each = np.eye(len(e.groups)) / e.depth[:, None] + same / np.array([[e.control_depth[c]] for c, _ in e.groups])
    return k, each[:, :, None] * unit[:, None]


def dense(model: MixedModel, asked, weights, without: int | np.ndarray = -1):
    """Mean and standard deviation [G] of the signal of one group, gene by gene."""
    e = model.evidence
    k, noise = joint(model, asked, weights)
    mean, deviation = np.zeros(e.ratio.shape[1]), np.zeros(e.ratio.shape[1])
    for g in range(len(mean)):
        rows = np.flatnonzero(e.measured[:, g] & ~e.own[:, g])
        rows = rows[~np.isin(rows, without)]
        s, square = model.scale[g], np.ix_(rows, rows)
        both, across = s * k[:-1, :-1][square] + noise[:, :, g][square], s * k[rows, -1]
        mean[g] = across @ np.linalg.solve(both, e.ratio[rows, g])
        deviation[g] = np.sqrt(max(s * k[-1, -1] - across @ np.linalg.solve(both, across), 0.0))
    return mean, deviation


def weights_of(model: MixedModel, label: str) -> dict[str, float]:
    known = {name: a for (_, name), a in zip(model.evidence.groups, model.amplitude, strict=True)}
    unknown = np.mean(list(known.values()))
    return {gene: known.get(label, known.get(gene, unknown)) for gene in targets(label)}


@pytest.fixture(scope="module")
def model() -> MixedModel:
    found = drawn()
    for row, (_, label) in enumerate(GROUPS):
        found.own[row, [int(gene[1:]) for gene in targets(label)]] = True
    found.ratio[found.own] = -3
    return MixedModel(found, Kernels(targets, [features()]))


@pytest.mark.parametrize(
    "asked", [("H", "p1"), ("T", "p2"), ("new", "p3"), ("new", "p9"), ("T", "p0+p1"), ("new", "p3+p9"), ("H", "other")]
)
def test_a_prediction_is_the_dense_one(model, asked):
    mean, deviation, amplitude = model.predict(*asked)
    weights = weights_of(model, asked[1])
    expected = dense(model, asked, weights)
    np.testing.assert_allclose(mean, expected[0], atol=5e-5)
    elsewhere = ~model.evidence.own.any(axis=0)
    np.testing.assert_allclose(deviation[elsewhere], expected[1][elsewhere], atol=1e-3)
    assert amplitude == pytest.approx(np.sqrt(np.mean(np.square(list(weights.values())))))


def test_noise_is_what_each_kind_of_gene_has_in_each_context(model):
    profile = noise_profile(model.evidence)
    for context in "HKT":
        np.testing.assert_allclose(
            profile.unit * profile.factor[context][profile.kind], model.evidence.unit[context], rtol=1e-6
        )


def test_leaving_one_out_is_fitting_without_it(model):
    rows = np.array([0, 7, len(GROUPS) - 1])
    found, elsewhere = model.leave_one_out(rows), ~model.evidence.own.any(axis=0)
    for place, row in enumerate(rows):
        weights = dict.fromkeys(targets(GROUPS[row][1]), found.amplitude[place])
        mean, deviation = dense(model, GROUPS[row], weights, without=row)
        np.testing.assert_allclose(found.mean[place][elsewhere], mean[elsewhere], atol=1e-4)
        # Where a target gene's own response is left out too, what stands in for it still knows the group.
        assert np.abs(found.mean[place] - mean).max() < 0.02
        np.testing.assert_allclose(found.deviation[place][elsewhere], deviation[elsewhere], atol=1e-3)
    np.testing.assert_allclose(model.leave_one_out().mean[rows], found.mean, atol=1e-5)


def test_leaving_a_perturbation_out_is_fitting_without_it(model):
    rows = np.array([row for row, (_, label) in enumerate(GROUPS) if label == "p1"])
    found, elsewhere = model.leave_together_out(rows), ~model.evidence.own.any(axis=0)
    weights = {"p1": model.mean_amplitude}
    for place, row in enumerate(rows):
        mean, deviation = dense(model, GROUPS[row], weights, without=rows)
        np.testing.assert_allclose(found.mean[place][elsewhere], mean[elsewhere], atol=1e-4)
        np.testing.assert_allclose(found.deviation[place][elsewhere], deviation[elsewhere], atol=1e-3)
    assert len(rows) == 3
    assert not np.allclose(found.mean[0], model.leave_one_out(rows[:1]).mean[0], atol=1e-2)


def test_an_amplitude_left_out_is_that_of_the_other_contexts():
    """A response made ten times as large moves its own leave-one-out amplitude only by what is known of all."""
    found, row = drawn(), GROUPS.index(("H", "p3"))
    ratio = found.ratio.copy()
    ratio[row] *= 10
    before, after = (MixedModel(x, Kernels(targets)) for x in (found, replace(found, ratio=ratio)))
    assert after.amplitude[row] / before.amplitude[row] > 1.5
    assert after.leave_one_out(np.array([row])).amplitude[0] < 1.2 * before.leave_one_out(np.array([row])).amplitude[0]
    alone = len(GROUPS) - 1
    assert before.leave_one_out(np.array([alone])).amplitude[0] == pytest.approx(before.mean_amplitude)


def test_the_density_is_that_of_each_response_given_the_others():
    model = MixedModel(drawn(), Kernels(targets, [features()]))
    e, total = model.evidence, np.zeros(len(GROUPS))
    k, noise = joint(model)
    for g in range(GENES):
        rows = np.flatnonzero(~e.own[:, g])
        square = np.ix_(rows, rows)
        both = model.scale[g] * k[square] + noise[:, :, g][square]
        precision = np.linalg.inv(both)
        residual, variance = precision @ e.ratio[rows, g] / np.diag(precision), 1 / np.diag(precision)
        total[rows] += -0.5 * (residual**2 / variance + np.log(2 * np.pi * variance))
    np.testing.assert_allclose(model.log_density, total / (~e.own).sum(axis=1), atol=1e-3)


def test_a_gene_counts_where_it_was_measured():
    found = drawn()
    found.measured[[context == "K" for context, _ in GROUPS], :20] = False
    found.measured[:, 5] = False
    found.ratio[~found.measured] = 0
    model = MixedModel(found, Kernels(targets, [features()]))
    mean, deviation, _ = model.predict("new", "p3")
    expected = dense(model, ("new", "p3"), weights_of(model, "p3"))
    np.testing.assert_allclose(mean, expected[0], atol=5e-5)
    np.testing.assert_allclose(deviation, expected[1], atol=1e-3)
    assert mean[5] == 0
    assert deviation[5] == deviation[model.scale == 1].max()
    row = GROUPS.index(("K", "p3"))
    left = model.leave_one_out(np.array([row]))
    weights = dict.fromkeys(["p3"], left.amplitude[0])
    np.testing.assert_allclose(left.mean[0], dense(model, GROUPS[row], weights, without=row)[0], atol=1e-4)


def test_components_of_responses_drawn_from_the_model_are_found():
    groups = [(context, f"p{i}") for context in "ABCDE" for i in range(12)]
    model = MixedModel(drawn(groups, genes=3000, kinds=False), Kernels(targets, [features()]))
    (constant, context), (shared, interaction), (alike, alike_here) = model.components  # no combinations
    # The same perturbation elsewhere 0.25, features 0.16 for each of three of mean square 1/3, the interaction 0.09.
    assert shared == pytest.approx(0.25, abs=0.06)
    assert alike == pytest.approx(0.16, abs=0.06)
    assert interaction == pytest.approx(0.09, abs=0.03)
    assert max(constant, context, alike_here) < 0.03


def test_an_inert_perturbation_stays_inert():
    model = MixedModel(drawn(genes=600, inert=("p4",)), Kernels(targets, [features()]))
    size = {label: np.sqrt((model.predict("new", label)[0] ** 2).mean()) for label in ("p1", "p3", "p4")}
    assert size["p4"] < 0.1 * min(size["p1"], size["p3"])
    assert model.predict("new", "p4")[2] < 0.2 < 0.8 < model.predict("new", "p3")[2]


def test_noise_alone_predicts_next_to_nothing():
    model = MixedModel(noise_of(GROUPS, 600), Kernels(targets, [features()]))
    noise = np.sqrt((model.evidence.ratio**2).mean())
    assert np.sqrt((model.predict("new", "p3")[0] ** 2).mean()) < 0.15 * noise


def test_the_order_of_groups_does_not_matter():
    found, order = drawn(), np.random.default_rng(5).permutation(len(GROUPS))
    one, other = (MixedModel(x, Kernels(targets, [features()])) for x in (found, found.of(order)))
    np.testing.assert_allclose(one.components, other.components, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(one.predict("new", "p3")[0], other.predict("new", "p3")[0], atol=1e-4)
    np.testing.assert_allclose(one.leave_one_out().mean[order], other.leave_one_out().mean, atol=1e-3)


@pytest.mark.parametrize(
    "groups",
    [
        [("H", f"p{i}") for i in range(6)],
        [(context, "p0") for context in "HKT"],
        [("H", "p0")],
        [("H", "p0+p1"), ("H", "p0"), ("H", "p1"), ("H", "p2")],
    ],
    ids=["one context", "one perturbation", "one group", "combinations"],
)
def test_few_groups_are_enough(groups):
    model = MixedModel(drawn(groups), Kernels(targets, [features()]))
    for asked in [*groups, ("new", "p0"), ("new", "p7"), ("H", "p1+p7")]:
        mean, deviation, _ = model.predict(*asked)
        assert np.isfinite(mean).all()
        assert np.isfinite(deviation).all()
    left = model.leave_one_out()
    assert np.isfinite(left.mean).all()
    assert np.isfinite(model.log_density).all()
    if len(groups) == 1:
        np.testing.assert_allclose(left.mean, 0, atol=1e-6)


def test_a_combination_is_the_sum_of_its_single_perturbations():
    groups = [("H", f"p{i}") for i in range(8)]
    evidence = drawn(groups, genes=400)
    evidence = replace(evidence, depth=evidence.depth * 1e4, control_depth=dict.fromkeys("H", 1e12))
    model = MixedModel(evidence, Kernels(targets))
    both, one, other = (model.predict("H", label)[0] for label in ("p1+p2", "p1", "p2"))
    assert np.corrcoef(both, one + other)[0, 1] > 0.98
    assert np.polyfit(one + other, both, 1)[0] == pytest.approx(1.0, abs=0.1)


def test_a_prediction_has_the_size_that_the_signal_is_expected_to_have():
    def in_size(mean, deviation, reliability=(1, 1, 1)):
        fields = mean, deviation, reliability[: len(mean)]
        return Expected(*(np.array(one, np.float32) for one in fields)).in_size

    # The target gene, whose deviation is 0, has its own size.
    np.testing.assert_allclose(in_size([3, 4, 9], [5, 5, 0]), [3 * 3**0.5, 4 * 3**0.5, 9], rtol=1e-6)
    np.testing.assert_allclose(in_size([3, 4], [50, 50]), [6, 8])
    np.testing.assert_array_equal(in_size([0, 0], [1, 1]), 0)
    np.testing.assert_allclose(in_size([3, 0], [1, 50], (1, 0)), [10**0.5, 0], rtol=1e-6)


def test_genes_that_are_hardly_counted_do_not_double_what_is_known_of_the_others():
    groups = [("H", f"p{i}") for i in range(8)]
    evidence = drawn(groups, genes=400)
    unit = np.where(np.arange(400) < 200, 1.0, 3e3) * evidence.unit["H"]
    noise = np.random.default_rng(5).normal(0, 1, (8, 400)) * np.sqrt(
        (unit - evidence.unit["H"]) / evidence.depth[:, None]
    )
    evidence = replace(evidence, ratio=(evidence.ratio + noise).astype(np.float32), unit={"H": unit})
    model = MixedModel(evidence, Kernels(targets))
    assert model.reliability[:200].min() > 0.9
    assert model.reliability[200:].max() < 0.2
    mean, deviation, _ = model.predict("H", "p1+p2")
    known = Expected(mean, deviation, model.reliability).in_size / mean
    assert known.max() < 1.1
    alike = Expected(mean, deviation, np.ones(400, np.float32)).in_size / mean
    assert alike.min() > 1.3
    measured = evidence.measured.copy()
    measured[:, :100], measured[:4, 100] = False, False
    part = MixedModel(replace(evidence, measured=measured), Kernels(targets)).reliability
    assert (part[:100] == 0).all()
    assert part[100] == pytest.approx(0.5 * part[101], rel=0.2)


def responding_alike() -> tuple[Evidence, np.ndarray]:
    """Knock-downs of the first 40 of 200 genes in two contexts; what ``p`` does to ``g`` is z_p W z_g."""
    rng = np.random.default_rng(7)
    z, turn = rng.normal(0, 1, (200, 3)), np.linalg.qr(rng.normal(0, 1, (3, 3)))[0]
    groups = [(context, f"p{i}") for context in ("H", "K") for i in range(40)]
    found = noise_of(groups, 200)
    at = np.tile(np.arange(40), 2)
    signal, own = 0.3 * z[at] @ turn @ z.T, np.zeros((80, 200), bool)
    own[np.arange(80), at] = True
    ratio = np.where(own, -3.0, found.ratio + signal)
    return replace(found, ratio=ratio.astype(np.float32), own=own), signal


def test_what_other_perturbations_do_to_a_target_tells_what_its_own_will_do():
    evidence, signal = responding_alike()
    genes = [f"p{i}" for i in range(200)]
    known = evidence.of(np.flatnonzero(np.arange(80) % 40 >= 5))
    table = co_response(known, genes, 16)
    assert table.keys() == set(genes)
    tables = likely_tables(known, targets, {"proteins": features(), "co-response": table})
    assert [one.keys() for one in tables] == [set(genes)]
    model = MixedModel(known, Kernels(targets, tables))
    for i in range(5):
        assert np.corrcoef(model.predict("H", f"p{i}")[0], signal[i])[0, 1] > 0.8
    # Nothing of a knock-down itself, nor of a gene that was not measured.
    other = replace(known, ratio=np.where(known.own, np.float32(9), known.ratio))
    assert all((vector == table[gene]).all() for gene, vector in co_response(other, genes, 16).items())
    measured = known.measured.copy()
    measured[:, 7] = False
    assert np.abs(co_response(replace(known, measured=measured), genes, 16)["p7"]).max() < 1e-4
    assert co_response(known.of(np.arange(1)), genes, 16) == {}


def test_genes_that_go_together_in_control_cells_are_alike(tmp_path):
    rng = np.random.default_rng(3)
    program = np.exp(0.6 * rng.standard_normal((600, 1)) * np.array([1] * 4 + [0] * 8))
    share = rng.dirichlet(np.full(12, 8.0)) * program
    counts = draw_counts(rng, share / share.sum(axis=1, keepdims=True), rng.uniform(500, 4000, 600), 0.05)
    data = dataset_of(store_of(tmp_path, screen(counts, "K", "1", [CONTROL] * 590 + ["a"] * 10)))
    loadings = principal_features(coexpression(data.cells, data.log_shares, data.dispersion, 3), 1)
    place = np.array([loadings[gene][0] for gene in data.cells.genes])
    assert (np.sign(place[:4]) == np.sign(place[0])).all()
    assert np.abs(place[:4]).min() > 3 * np.abs(place[4:] - np.median(place[4:])).max()


def test_variances_are_those_of_drawn_counts(tmp_path):
    rng = np.random.default_rng(1)
    groups, cells, genes = 40, 50, 30
    share = np.sort(rng.dirichlet(np.full(genes, 1.5)))
    labels = np.concatenate([np.repeat([f"P{i}" for i in range(groups)], cells), np.full(2500, CONTROL)])
    depth = 1000 * np.exp(0.4 * rng.standard_normal(len(labels)))
    counts = draw_counts(rng, share, depth, 0.3)
    data = dataset_of(store_of(tmp_path, screen(counts, "K", "1", labels, [f"g{i}" for i in range(genes)])))
    found = evidence_of(data.cells, data.responses, data.log_shares, data.dispersion)
    z = found.ratio / np.sqrt(found.unit["K"] * (1 / found.depth[:, None] + 1 / found.control_depth["K"]))
    well = found.unit["K"] / found.depth.mean() < 0.2
    assert well.sum() > 10
    assert (z[:, well] ** 2).mean() == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize(("shape", "number"), [((40, 30), 5), ((30, 40), 5), ((6, 30), 20), ((30, 1), 4)])
def test_axes_are_the_leading_ones_and_turned_one_way(shape, number):
    rng = np.random.default_rng(0)
    table = rng.normal(0, 1, shape) * np.geomspace(1, 20, shape[1])
    table -= table.mean(axis=0)
    values, axes = principal_axes(table, number)
    _, wanted, right = np.linalg.svd(table, full_matrices=False)
    kept = min(number, *shape)
    np.testing.assert_allclose(values, wanted[:kept], atol=1e-9)
    real = wanted[:kept] > 1e-9
    np.testing.assert_allclose(np.abs(axes[real]), np.abs(right[:kept][real]), atol=1e-7)
    assert (np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1) > 0).all()
    np.testing.assert_allclose(principal_axes(-table[::-1], number)[1][real], axes[real], atol=1e-7)


@pytest.mark.parametrize("table", [np.eye(4)[np.arange(16) % 4] - 0.25, np.array([[1.0, 2, 3], [3, 2, 1]]) - 2])
def test_centred_tables_have_axes(table):
    for number in (1, 2):
        values, axes = principal_axes(table.astype(np.float32), number)
        assert len(values) == len(axes) == number
        assert np.isfinite(axes).all()
    assert len(principal_axes(np.zeros((3, 4)), 2)[0]) == 0


@pytest.mark.slow
def test_papalexi_is_predicted_from_two_replicates(tmp_path, real_data):
    data = dataset_of(store_of(tmp_path, papalexi(real_data)))
    held = [group for group in data.responses.groups if group[0] == "rep_3"]
    split, truth = data.split, data.responses
    roles = {group: "test" if group in held else role for group, role in split.roles.items()}
    data = replace(data, split=replace(split, roles=roles))
    baseline = Mixed(data)
    scores = {"mixed": [], "elsewhere": []}
    for context, label in held:
        if label in {"IFNGR1", "IFNGR2", "JAK2", "STAT1", "IRF1", "SMAD4", "CUL3", "BRD4"}:
            measured = truth.ratio[truth.groups.index((context, label))]
            scores["mixed"].append(np.corrcoef(baseline.log_ratio(context, label), measured)[0, 1])
            scores["elsewhere"].append(np.corrcoef(data.responses.elsewhere(context, label), measured)[0, 1])
    assert np.mean(scores["mixed"]) > np.mean(scores["elsewhere"]) - 0.02
