"""Mixed models of portions of the perturbations: what belongs together stays together, and next to nothing is lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_mixed_model import drawn, features, noise_of, targets

from vcc_fm.responses.evidence import Evidence
from vcc_fm.responses.kernels import Kernels
from vcc_fm.responses.mixed_model import MixedModel
from vcc_fm.responses.portions import Portions

SINGLES = [(context, f"p{i}") for context in "HK" for i in range(12)]
COMBINED = [*SINGLES, ("H", "p0+p1"), ("K", "p2+p11")]


def portions_of(evidence: Evidence, largest: int) -> Portions:
    return Portions(evidence, Kernels(targets, [features(30)]), size=largest)


def close(found, expected, atol: float = 1e-6) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


def test_few_groups_are_one_portion_and_the_mixed_model_of_all():
    evidence = drawn(COMBINED)
    whole, found = MixedModel(evidence, Kernels(targets, [features(30)])), portions_of(evidence, 4000)
    assert len(found) == 1
    for asked in [("H", "p3"), ("new", "p30"), ("new", "p3+p4"), ("K", "p0+p1")]:
        close(found.predict(*asked), whole.predict(*asked))
    rows, left = found.left_out("p3", everywhere=False)
    np.testing.assert_array_equal(rows, np.arange(len(COMBINED)))
    close(left, whole.leave_one_out())
    rows, left = found.left_out("p3", everywhere=True)
    assert [COMBINED[row] for row in rows] == [("H", "p3"), ("K", "p3")]
    close(left, whole.leave_together_out(rows))
    np.testing.assert_array_equal(found.reliability, whole.reliability)


def test_each_perturbation_has_one_portion_with_all_its_groups():
    order = np.random.default_rng(0).permutation(len(SINGLES))
    evidence = drawn(SINGLES).of(order)
    found = portions_of(evidence, 8)
    assert len(found) == 3
    seen = []
    for label in {label for _, label in SINGLES}:
        rows, left = found.left_out(label, everywhere=False)
        mine = [evidence.groups[row] for row in rows]
        assert {context for context, one in mine if one == label} == {"H", "K"}
        model = found.model_of(label)
        assert sorted(model.evidence.groups) == sorted(mine)
        # The answers stand at the rows of their groups.
        close(left, model.leave_one_out(np.array([model.evidence.groups.index(group) for group in mine])))
        close(found.predict("new", label), model.predict("new", label))
        seen.append(tuple(rows))
    assert sorted(row for rows in set(seen) for row in rows) == list(range(len(SINGLES)))
    assert max(map(len, seen)) == 8


def test_a_combination_has_its_single_perturbations_beside_it():
    found = portions_of(drawn(COMBINED), 9)
    assert len(found) == 3
    for label in ("p0+p1", "p2+p11"):
        there = {one for _, one in found.model_of(label).evidence.groups}
        assert {label, *targets(label)} <= there
        # They are answered for where they belong.
        rows, _ = found.left_out(label, everywhere=False)
        assert all(found.model_of(COMBINED[row][1]) is found.model_of(label) for row in rows)


def common(groups, seed: int = 4) -> tuple[Evidence, np.ndarray]:
    """Responses of which a part is the same everywhere; that part."""
    shared = np.random.default_rng(seed).normal(0, 1, 400)
    evidence = drawn(groups, genes=400)
    return replace(evidence, ratio=(evidence.ratio + shared).astype(np.float32)), shared


def test_a_combination_of_two_portions_is_the_sum_of_its_genes():
    evidence, shared = common(SINGLES)
    found, whole = (Portions(evidence, Kernels(targets), size=size) for size in (12, 4000))
    apart, together = ("p0", "p1"), ("p0", "p10")
    assert found.model_of(apart[0]) is not found.model_of(apart[1])
    assert found.model_of(together[0]) is found.model_of(together[1])
    one, other = (found.predict("H", gene) for gene in apart)
    mean, deviation, amplitude = found.predict("H", "p0+p1")
    close([deviation], [np.hypot(one[1], other[1])])
    assert amplitude == pytest.approx(np.sqrt((one[2] ** 2 + other[2] ** 2) / 2))
    close(found.predict("H", "p0+p10"), found.model_of("p0").predict("H", "p0+p10"))
    # What all perturbations do is done once, as one model has it.
    wanted = whole.predict("H", "p0+p1")[0]
    slope = np.polyfit(shared, mean, 1)[0]
    assert slope == pytest.approx(np.polyfit(shared, wanted, 1)[0], abs=0.15)
    assert np.polyfit(shared, one[0] + other[0], 1)[0] > slope + 0.5
    assert np.corrcoef(mean, wanted)[0, 1] > 0.97
    assert np.isfinite(found.predict("H", "p0+p1+p99")[0]).all()


def test_a_gene_that_was_measured_in_combinations_alone_is_known_to_their_portions():
    groups = [(context, f"p{2 * i}+p{2 * i + 1}") for context in "HK" for i in range(6)]
    found = Portions(drawn(groups, genes=400), Kernels(targets), size=4)
    assert len(found) == 3
    for label in ("p2", "p3", "p2+p3"):
        close(found.predict("new", label), found.model_of("p2+p3").predict("new", label))
    assert found.model_of("p0+p1") is not found.model_of("p2+p3")
    # The genes of a new combination lie in two portions.
    mean, singles = found.predict("new", "p0+p2")[0], [found.predict("new", gene)[0] for gene in ("p0", "p2")]
    assert np.corrcoef(mean, sum(singles))[0, 1] > 0.95


def test_of_an_unknown_perturbation_all_portions_tell():
    found = portions_of(drawn(SINGLES), 12)
    assert len(found) == 2
    one, other = (found.model_of(label).predict("H", "p20") for label in ("p0", "p1"))
    assert np.abs(one[0] - other[0]).max() > 0.01
    mean, deviation, _ = found.predict("H", "p20")
    close([mean, deviation], [(one[0] + other[0]) / 2, np.sqrt((one[1] ** 2 + other[1] ** 2) / 2)])


def test_portions_lose_next_to_nothing():
    """Of the truth of 480 groups, a quarter a portion, beside one model of all and beside one portion."""
    rng, genes = np.random.default_rng(0), 300
    groups = [(context, f"p{i}") for context in "HKTU" for i in range(120)]
    own, slope = rng.normal(0, 0.3, (150, genes)), rng.normal(0, 0.2, (3, genes))
    known = features(150)
    signal = np.stack([own[int(label[1:])] + known[label] @ slope for _, label in groups])
    signal += rng.normal(0, 0.15, signal.shape)
    noise = noise_of(groups, genes, depth=3e3)
    evidence = replace(noise, ratio=(noise.ratio + signal).astype(np.float32))
    unseen = np.stack([known[f"p{i}"] @ slope for i in range(120, 150)])
    errors = []
    for largest in (4000, 120):
        found = Portions(evidence, Kernels(targets, [known]), size=largest)
        answers = np.empty_like(evidence.ratio)
        for label in ("p0", "p1", "p10", "p100")[: len(found)]:
            rows, left = found.left_out(label, everywhere=False)
            answers[rows] = left.mean
        told, alone = (
            np.stack([model.predict("H", f"p{i}")[0] for i in range(120, 150)])
            for model in (found, found.model_of("p0"))
        )
        errors.append([np.square(error).mean() for error in (answers - signal, told - unseen, alone - unseen)])
    assert len(found) == 4
    whole, parts = errors
    assert whole[0] < 0.6 * np.square(signal).mean()
    assert parts[0] < 1.06 * whole[0]
    assert whole[1] == whole[2] < 0.1 * np.square(unseen).mean()
    assert parts[1] < 2 * whole[1] < 0.7 * parts[2]
