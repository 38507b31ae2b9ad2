"""Responses: log ratios by hand, against known effects, and what they must not know."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_screens import CONTROL, dataset_of, draw_counts, papalexi, screen, store_of

from vcc_fm.baselines.additive import Additive
from vcc_fm.responses.dispersion import control_dispersion
from vcc_fm.responses.expected_file import load_expected, save_expected
from vcc_fm.responses.profiles import BATCH_PRIOR, control_log_shares, with_unmeasured
from vcc_fm.responses.responses import TARGETS_BESIDE, Responses, estimate_responses, own_genes
from vcc_fm.splits.split import Split


def split_of(store, **roles) -> Split:
    groups = {group: n for group, n in store.group_cells.items() if group[1] != CONTROL}
    return Split("perturbations", 0, 1, 0, {group: roles.get(group[1], "train") for group in groups}, groups, [])


def test_a_ratio_and_its_precision_by_hand(tmp_path):
    counts = np.array([[5, 5, 0], [4, 6, 0], [30, 0, 10], [1, 1, 1]])
    store = store_of(tmp_path, screen(counts, "K", ["1", "1", "2", "2"], [CONTROL, "A", "A", CONTROL]))
    log_shares = np.log(np.array([[0.5, 0.3, 0.2], [0.25, 0.5, 0.25]], np.float32))
    alpha = np.array([0.2, 0.5, 1.0])
    found = estimate_responses(store, split_of(store), log_shares, alpha, {})
    assert found.groups == [("K", "A")]
    # Depths 10 (batch 1) and 40 (batch 2); expected 15, 23, 12; observed 34, 6, 10.
    observed, expected = np.array([34.5, 6.5, 10.5]), np.array([15.5, 23.5, 12.5])
    squares = np.array([5.0**2 + 10.0**2, 3.0**2 + 20.0**2, 2.0**2 + 10.0**2])
    variance = (observed + alpha * squares * (observed / expected) ** 2) / observed**2
    # Controls: 10 UMI in batch 1, 3 in batch 2. Nearly all of both profiles is the context's, so that 13 UMI stand for
    # 50, and their noise is magnified by as much.
    share = np.exp(log_shares.astype(np.float64))
    controls = np.array([[10.0], [3.0]]) * share + alpha * np.array([[100.0], [9.0]]) * share**2
    own = np.array([10 / (10 + BATCH_PRIOR), 40 / (3 + BATCH_PRIOR)])
    weight = own + BATCH_PRIOR * own.sum() / 13
    variance += weight**2 @ controls / expected**2
    np.testing.assert_allclose(found.ratio[0], np.log(observed / expected), rtol=1e-5)
    np.testing.assert_allclose(found.precision[0], 1 / variance, rtol=1e-5)


def test_genes_count_where_they_were_measured(tmp_path):
    labels = [CONTROL, "A"]
    first = screen(np.array([[50, 50], [30, 10]]), "K", "1", labels, ["a", "b"])
    second = screen(np.array([[50, 50], [20, 20]]), "K", "1", labels, ["b", "c"])
    third = screen(np.array([[50, 50], [20, 20]]), "H", "1", labels, ["a", "c"])
    store = store_of(tmp_path, first, second, third)
    found = estimate_responses(store, split_of(store), control_log_shares(store), np.full(3, 0.1), {})
    h, k = found.ratio
    np.testing.assert_array_equal(found.precision > 0, [[True, False, True], [True, True, True]])
    np.testing.assert_allclose(h, 0.0, atol=1e-3)
    # Gene a is 30 of the 40 counts of the one batch that measured it, and half of its controls.
    assert k[0] == pytest.approx(np.log(30.5 / 20.5), rel=0.02)


def test_an_unmeasured_gene_is_unchanged_where_it_is_given_a_share(tmp_path):
    labels = [CONTROL, "A"]
    first = screen(np.array([[60, 40], [30, 10]]), "K", "1", labels, ["a", "b"])
    second = screen(np.array([[50, 50], [20, 20]]), "K", "2", labels, ["b", "c"])
    third = screen(np.array([[50, 50], [20, 20]]), "H", "1", labels, ["a", "c"])
    store = store_of(tmp_path, first, second, third)
    log_shares, alpha = control_log_shares(store), np.full(3, 0.1)
    filled = with_unmeasured(log_shares)
    np.testing.assert_array_equal(filled[store.measured], log_shares[store.measured])
    found = estimate_responses(store, split_of(store), filled, alpha, {})
    a, b, share = store.genes.index("a"), store.genes.index("b"), np.exp(log_shares.astype(float))
    # H did not measure gene b: 40 counts of its mean share in the batches of K are expected, and taken for observed.
    h, k = found.ratio
    typical = share[store.measured[:, b], b].mean()
    assert h[b] == pytest.approx(0, abs=1e-6)
    counts = 40 * typical + 0.5
    noise = counts + 0.1 * (40 * typical) ** 2 + 0.4**2 * (100 * typical + 0.1 * (100 * typical) ** 2)
    assert found.precision[0][b] == pytest.approx(counts**2 / noise, rel=1e-5)
    # In K one batch of 40 counts measured gene a; the other adds the same to both sides.
    there = store.measured[:, a]
    inside = np.flatnonzero(there & store.measured[:, b])[0]
    more = 40 * share[there, a].mean() + 0.5
    assert k[a] == pytest.approx(np.log((30 + more) / (40 * share[inside, a] + more)), rel=1e-5)
    assert abs(k[a]) < abs(estimate_responses(store, split_of(store), log_shares, alpha, {}).ratio[1][a])


def test_a_saved_model_keeps_what_it_took_unmeasured_genes_for(tmp_path):
    counts = np.random.default_rng(0).poisson(20, (40, 12))
    genes, labels = [f"g{i:02}" for i in range(12)], np.repeat([CONTROL, "A", "B", "C"], 10)
    screens = screen(counts, "K", "1", labels, genes), screen(counts[:, :11], "H", list("12") * 20, labels, genes[:11])
    store = store_of(tmp_path, *screens)
    data = dataset_of(store)
    for way, known in (("missing", False), ("unchanged", True)):
        expected = replace(data, unmeasured=way).expected
        save_expected(tmp_path / way, expected)
        found = replace(data, saved=load_expected(tmp_path / way, store.genes, "+"))
        np.testing.assert_array_equal(found.responses.precision, expected.responses.precision)
        evidence, unit = found.expected.evidence, found.expected.evidence.unit["H"]
        assert evidence.measured[evidence.groups.index(("H", "A")), 11] == known
        # Where it counts, it is as noisy as other genes of its share.
        assert (unit[11] == pytest.approx(unit[0], rel=0.3)) == known


def test_known_effects_are_recovered(tmp_path):
    rng = np.random.default_rng(0)
    genes, cells = 20, 1500
    share = rng.dirichlet(np.full(genes, 5.0))
    effect = np.where(np.arange(genes) % 4 == 0, rng.choice([-1.0, 1.0], genes), 0.0)
    changed = share * np.exp(effect)
    changed /= changed.sum()
    depth = rng.uniform(500, 3000, 2 * cells)
    perturbed = np.arange(2 * cells) >= cells
    counts = draw_counts(rng, np.where(perturbed[:, None], changed, share), depth, 0.3)
    store = store_of(
        tmp_path, screen(counts, "K", "1", np.where(perturbed, "A", CONTROL), [f"g{i}" for i in range(genes)])
    )
    data = dataset_of(store)
    np.testing.assert_allclose(data.responses.ratio[0], np.log(changed / share), atol=0.12)
    # With so many cells, shrinking takes next to nothing away.
    np.testing.assert_allclose(data.responses.elsewhere("another", "A"), np.log(changed / share), atol=0.13)


def test_precision_is_a_calibrated_inverse_variance(tmp_path):
    rng = np.random.default_rng(1)
    genes, groups, cells = 40, 30, 50
    share = np.sort(rng.dirichlet(np.full(genes, 1.5)))[None] * np.exp(0.2 * rng.standard_normal((2, genes)))
    share /= share.sum(axis=1, keepdims=True)
    labels = np.concatenate([np.repeat([f"P{i}" for i in range(groups)], cells), np.full(2500, CONTROL)])
    batch = np.arange(len(labels)) % 2
    alpha = 0.3 * np.exp(0.3 * rng.standard_normal(genes))
    depth = 1000 * np.exp(0.4 * rng.standard_normal(len(labels)))
    counts = draw_counts(rng, share[batch], depth, alpha)
    store = store_of(tmp_path, screen(counts, "K", batch.astype(str), labels, [f"g{i}" for i in range(genes)]))
    log_shares = control_log_shares(store)
    found = estimate_responses(store, split_of(store), log_shares, control_dispersion(store, log_shares), {})
    z = found.ratio * np.sqrt(found.precision)
    assert 0.8 < z.std() < 1.25
    assert abs(z.mean()) < 0.15
    # Neither rare nor common genes are off: thirds of the genes by expression.
    for part in np.array_split(np.argsort(log_shares[0]), 3):
        assert 0.75 < z[:, part].std() < 1.3


def test_pooling_weighs_by_precision_and_shrinks_each_kind_of_gene_by_its_like():
    groups = [("K", "A"), ("H", "A"), ("T", "A"), ("K", "B")]
    ratio = np.array([[9, 9, -2, 9], [1.0, 2.0, -1.0, 0.0], [3.0, 0.0, -2.0, 0.0], [5, 5, 5, -1]], np.float32)
    precision = np.array([[1, 1, 9, 1], [30.0, 10.0, 3.0, 0.0], [10.0, 0.0, 1.0, 0.0], [1, 1, 1, 9]], np.float32)
    seen = []

    def half(effect, variance):
        seen.append((effect, variance))
        return effect / 2

    own = {"A": np.array([2]), "B": np.array([3])}
    found = Responses(groups, ratio, precision, own, half)
    # Gene 2 is A's target: it is judged beside the target genes of all groups; gene 3 was not measured elsewhere.
    np.testing.assert_allclose(found.elsewhere("K", "A"), [0.75, 1.0, -0.625, 0.0], rtol=1e-6)
    (others, noise), (targets, target_noise) = seen
    np.testing.assert_allclose([others, noise], [[1.5, 2.0], [1 / 40, 1 / 10]], rtol=1e-6)
    np.testing.assert_allclose(targets, [-2, -1, -2, -1, -1.25], rtol=1e-6)
    np.testing.assert_allclose(target_noise, [1 / 9, 1 / 3, 1, 1 / 9, 1 / 4], rtol=1e-6)
    assert found.elsewhere("K", "C") is None
    assert found.elsewhere("K", "B") is None


@pytest.mark.parametrize("groups", [40, 2 * TARGETS_BESIDE])
def test_target_genes_alone_get_what_they_get_beside_all_others(groups):
    rng, genes = np.random.default_rng(4), 30
    labels = [f"g{i % 10}" for i in range(groups - 2)] + ["g0+g20"] * 2
    named = [(f"c{i // 10}", label) for i, label in enumerate(labels[:-2])] + [("c0", labels[-1]), ("c1", labels[-1])]
    ratio = rng.normal(0, 0.5, (groups, genes)).astype(np.float32)
    precision = rng.uniform(0.5, 40.0, (groups, genes)).astype(np.float32)
    precision[:, 7] = 0.0  # a gene that nobody measured
    ratio[:, 7] = 0.0
    own = own_genes(labels, "+", [f"g{i}" for i in range(genes)])
    found = Responses(named, ratio, precision, own)
    for label, places in own.items():
        for place in places:
            for context in ("c0", "c1", "new"):
                one = found.target_elsewhere(context, label, place)
                assert one == pytest.approx(found.elsewhere(context, label)[place], rel=1e-4)
                one = found.target_here_or_elsewhere(context, label, place)
                assert one == pytest.approx(found.here_or_elsewhere(context, label)[place], rel=1e-4)
            assert (found.target_elsewhere("new", label, place) == 0) == (place == 7)
    assert found.target_elsewhere("c0", "g25", 25) is None


def test_a_knock_down_among_silent_genes_arrives_elsewhere_as_it_was_measured(tmp_path):
    # A gene at a tenth in one lane, 12 standard errors, everything else unchanged: it must not be drawn to the rest.
    rng = np.random.default_rng(2)
    cells, genes = 400, 300
    share = rng.dirichlet(np.full(genes, 0.8))
    labels = np.array([CONTROL] * 300 + ["g7"] * 60 + ["other"] * 40)
    effect = np.where((labels == "g7")[:, None] & (np.arange(genes) == 7), np.log(0.1), 0.0)
    effect[labels == "g7", 11] = np.log(3.0)
    lanes = [draw_counts(rng, share * np.exp(effect), np.full(cells, 3000.0), 0.1) for _ in range(2)]
    names = [f"g{i}" for i in range(genes)]
    store = store_of(
        tmp_path, *(screen(counts, lane, lane, labels, names) for counts, lane in zip(lanes, "KH", strict=True))
    )
    responses = dataset_of(store).responses
    row = responses.groups.index(("H", "g7"))
    moved, error = responses.elsewhere("K", "g7"), 1 / np.sqrt(responses.precision[row])
    for gene in (7, 11):
        assert abs(moved[gene] - responses.ratio[row, gene]) < 2 * error[gene]
    silent = np.delete(np.arange(genes), [7, 11])
    assert (moved[silent] ** 2).mean() < 0.05 * (responses.ratio[row, silent] ** 2).mean()


def test_papalexi_responses_are_worth_more_elsewhere_shrunken_than_as_they_are(tmp_path, real_data):
    responsive = {"IFNGR1", "IFNGR2", "JAK2", "STAT1", "IRF1", "SMAD4", "CUL3", "BRD4"}
    responses = dataset_of(store_of(tmp_path, papalexi(real_data))).responses
    plain = replace(responses, shrink=lambda effect, _: effect)
    for held_out in ("rep_1", "rep_2", "rep_3"):
        correlations, squares = [], []
        for row, (context, label) in enumerate(responses.groups):
            if context != held_out:
                continue
            others = np.delete(np.arange(responses.ratio.shape[1]), responses.own[label])
            measured = responses.ratio[row, others]
            moved = [one.elsewhere(context, label)[others] for one in (responses, plain)]
            if label in responsive:
                correlations.append([np.corrcoef(one, measured)[0, 1] for one in moved])
            else:
                squares.append(np.square(moved[0]).mean())
        shrunken, as_they_are = np.median(correlations, axis=0)
        assert shrunken >= as_they_are
        # What a normal prior made of the inert ones, with the noise of the controls left out.
        assert np.mean(squares) < 0.0004


def test_noise_of_few_controls_is_no_effect(tmp_path):
    # Twelve control cells: what their profile has by chance, every perturbation of the context seems to undo.
    rng = np.random.default_rng(3)
    genes, labels = 200, np.array([CONTROL] * 12 + ["A"] * 300)
    counts = draw_counts(rng, np.tile(rng.dirichlet(np.full(genes, 1.0)), (312, 1)), np.full(312, 1000.0), 0.3)
    names = [f"g{i}" for i in range(genes)]
    data = dataset_of(store_of(tmp_path, screen(counts, "K", "1", labels, names)))
    z = data.responses.ratio[0] * np.sqrt(data.responses.precision[0])
    assert 0.8 < z.std() < 1.2


def test_noise_alone_is_shrunken_to_almost_nothing():
    rng = np.random.default_rng(0)
    ratio = rng.standard_normal((1, 2000)).astype(np.float32) * 0.3
    found = Responses([("H", "A")], ratio, np.full((1, 2000), 1 / 0.09, np.float32)).elsewhere("K", "A")
    assert np.abs(found).mean() < 0.15 * np.abs(ratio).mean()


def three_contexts(change: str | None = None, perturbation: str = "A"):
    """Cells of A, B and A+B in three contexts; those of one context and perturbation may be others."""
    rng = np.random.default_rng(5)
    row = np.arange(240)
    context = np.array(["H", "K", "T"])[row % 3]
    label = np.array([CONTROL, "A", "B", "A+B"])[row // 3 % 4]
    counts = rng.poisson(rng.gamma(2.0, 2.0, 6), (240, 6))
    counts[(context == change) & (label == perturbation), 0] += 50
    return screen(counts, context, "1", label)


def test_leave_one_context_out_leaves_it_out(tmp_path):
    data = [dataset_of(store_of(tmp_path / str(i), three_contexts(change))) for i, change in enumerate((None, "K"))]
    before, after = (one.responses for one in data)
    np.testing.assert_array_equal(before.elsewhere("K", "A"), after.elsewhere("K", "A"))
    assert after.elsewhere("H", "A")[0] > before.elsewhere("H", "A")[0] + 0.1
    for other in ("B", "A+B"):
        np.testing.assert_array_equal(before.elsewhere("H", other), after.elsewhere("H", other))


def test_a_combination_is_a_perturbation_of_its_own(tmp_path):
    plain = dataset_of(store_of(tmp_path / "a", three_contexts()))
    changed = dataset_of(store_of(tmp_path / "b", three_contexts("H", "A+B")))
    assert plain.targets("A+B") == ["A", "B"]
    assert plain.responses.groups == [(c, p) for c in "HKT" for p in ("A", "A+B", "B")]
    np.testing.assert_array_equal(plain.responses.elsewhere("K", "A"), changed.responses.elsewhere("K", "A"))
    assert (plain.responses.elsewhere("K", "A+B") != changed.responses.elsewhere("K", "A+B")).any()


def test_only_training_groups_are_estimated(tmp_path):
    store = store_of(tmp_path, three_contexts())
    roles = {("K", "A"): "test", ("H", "A"): "validation", ("T", "A"): "unused"}
    responses = dataset_of(store, roles).responses
    assert {context for context, perturbation in responses.groups if perturbation == "A"} == set()
    assert responses.elsewhere("K", "A") is None


def test_the_mean_response_is_over_what_was_measured():
    groups = [("K", "A"), ("K", "B"), ("H", "A"), ("H", "C")]
    ratio = np.array([[1.0, 4.0], [3.0, 0.0], [5.0, 5.0], [7.0, 9.0]], np.float32)
    precision = np.array([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]], np.float32)
    found = Responses(groups, ratio, precision)
    # B did not measure the second gene: the mean over K is of A alone there.
    np.testing.assert_allclose(found.mean_response("K", "C"), [2.0, 4.0])
    np.testing.assert_allclose(found.mean_response("K", "B"), [1.0, 4.0])
    np.testing.assert_allclose(found.mean_response("T", "A"), [5.0, 9.0])
    np.testing.assert_array_equal(Responses(groups[:1], ratio[:1], precision[:1]).mean_response("T", "A"), [0.0, 0.0])


def random_groups(genes: int = 30) -> Responses:
    """Groups in no order, A in four contexts, others in fewer; each measured two thirds of the genes."""
    rng = np.random.default_rng(7)
    groups = [tuple(name) for name in rng.permutation("HA HB HC HD KA KB KE TA TC LA MG".split())]
    precision = rng.uniform(0.5, 40.0, (len(groups), genes)) * (rng.random((len(groups), genes)) < 2 / 3)
    ratio = rng.standard_normal(precision.shape) * (precision > 0)
    return Responses(
        groups, ratio.astype(np.float32), precision.astype(np.float32), shrink=lambda effect, variance: effect
    )


@pytest.mark.parametrize("context", ["H", "K", "T", "L", "M", "elsewhere"])
def test_every_answer_is_its_plain_definition(context):
    found = random_groups()
    ratio, precision = found.ratio.astype(np.float64), found.precision.astype(np.float64)

    def pooled(chosen: list[bool]) -> np.ndarray | None:
        if not any(chosen):
            return None
        weight = precision[chosen].sum(axis=0)
        return (ratio[chosen] * precision[chosen]).sum(axis=0) / np.where(weight > 0, weight, 1.0)

    def single(gene: str) -> np.ndarray | None:
        there = pooled([group == (context, gene) for group in found.groups])
        return pooled([label == gene for _, label in found.groups]) if there is None else there

    for label in [*"ABCDEG", "never measured"]:
        # L has no group but that of A, M none but that of G: without it, the mean is over the other contexts.
        chosen = [group[0] == context and group[1] != label for group in found.groups]
        chosen = chosen if any(chosen) else [group[1] != label for group in found.groups]
        mean = ratio[chosen].sum(axis=0) / np.maximum((precision[chosen] > 0).sum(axis=0), 1)
        answer = found.mean_response(context, without=label)
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, mean, rtol=1e-6, atol=1e-7)
        expected = pooled([group[0] != context and group[1] == label for group in found.groups])
        answer = found.elsewhere(context, label)
        assert (answer is None) == (expected is None) == (not found.is_known(context, label))
        if answer is not None:
            np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-6)
        parts = [part for part in map(single, ["A", label]) if part is not None]
        np.testing.assert_allclose(found.additive(context, ["A", label]), sum(parts), rtol=1e-5, atol=1e-6)


def test_subtracting_leaves_no_rounding():
    groups = [("T", "A"), ("K", "B"), ("H", "B"), ("T", "B"), ("K", "C")]
    # As float64, (1 + 1e-20) - 1 is not 1e-20 + (1 - 1): of the first gene, which B alone measured, something is left
    # where summing has another order than subtracting. Of the second a ten-thousandth is left.
    ratio = np.array([[0, 1e-4], [1, 8.1], [1e-20, 0.3], [-1, 3.7], [0, 3e-4]], np.float32)
    found = Responses(groups, ratio, (ratio != 0).astype(np.float32))
    for context, rows in (("T", [0]), ("K", [4]), ("H", [0, 4]), ("elsewhere", [0, 4])):
        mean = found.mean_response(context, without="B")
        assert mean[0] == 0
        assert mean[1] == pytest.approx(ratio[rows, 1].mean(), rel=1e-6)
    alone = Responses([("K", "A")], np.full((1, 2), 0.3, np.float32), np.ones((1, 2), np.float32))
    np.testing.assert_array_equal(alone.mean_response("K", without="A"), [0.0, 0.0])


def test_a_pool_is_shrunken_once_and_nobody_can_change_it():
    calls = []

    def counted(effect, variance):
        calls.append(effect)
        return effect

    found = replace(random_groups(), shrink=counted)
    first = found.additive("elsewhere", ["A", "B"])
    assert len(calls) == 2
    np.testing.assert_array_equal(found.additive("elsewhere", ["B", "A"]), first)
    known = found.elsewhere("elsewhere", "A")
    assert len(calls) == 2
    with pytest.raises(ValueError, match="read-only"):
        known[0] = 1.0
    # Another shrinkage starts anew.
    assert (replace(found, shrink=lambda effect, _: effect / 2).elsewhere("elsewhere", "A") == known / 2).all()


def test_a_combination_is_the_sum_of_its_singles():
    groups = [("K", "A"), ("K", "B"), ("H", "A"), ("H", "C")]
    ratio = np.array([[1.0, 2.0], [-2.0, 1.0], [3.0, 3.0], [0.5, -4.0]], np.float32)
    known = Responses(groups, ratio, np.full((4, 2), 1e6, np.float32))
    # Measured in the context, that counts; else elsewhere; never, it adds nothing.
    np.testing.assert_allclose(known.additive("K", ["A", "B"]), [-1.0, 3.0], rtol=1e-4)
    np.testing.assert_allclose(known.additive("K", ["A", "C"]), [1.5, -2.0], rtol=1e-4)
    np.testing.assert_allclose(known.additive("H", ["B", "X"]), [-2.0, 1.0], rtol=1e-4)
    assert known.additive("K", ["X", "Y"]) is None


def test_the_baseline_knows_a_combination_by_its_singles(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.array([CONTROL, "A", "B", "A+B"])[np.arange(80) % 4]
    store = store_of(tmp_path, screen(rng.poisson(9.0, (80, 4)), "K", "1", labels, ["A", "B", "C", "D"]))
    data = dataset_of(store, {("K", "A+B"): "test"})
    expected = data.responses.additive("K", ["A", "B"])
    np.testing.assert_array_equal(Additive(data).log_ratio("K", "A+B"), expected)
    np.testing.assert_array_equal(Additive(data).log_ratio("K", "A"), data.responses.mean_response("K", "A"))
