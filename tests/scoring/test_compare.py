"""Paired comparisons: the error is the one of statistics, intervals cover, and what could be shown is shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scoring_screens import table_of

from vcc_fm.ground.errors import UserError
from vcc_fm.scoring.compare import MEAN, SECOND, UNLIMITED, Side, paired
from vcc_fm.scoring.means import scaled_means
from vcc_fm.scoring.preset import Metric
from vcc_fm.scoring.table import VALUES, ScoreTable

METRICS = {"m": Metric("M"), "r": Metric("R")}


def made(values: dict[str, np.ndarray], floor: float = np.nan, **given) -> ScoreTable:
    """Scores of entries: [contexts, n, 2] values of the mean ``m`` (scale 0 to 2), and numerators of the ratio ``r``.

    The denominators of ``r`` are 1 for even perturbations, and 3 for odd ones; its scale goes from 1 to 0.
    """
    rows, parts = [], []
    for entry, array in values.items():
        for c, here in enumerate(array):
            weight = np.where(np.arange(len(here)) % 2 == 0, 1.0, 3.0)
            raw = {"m": here[:, 0].mean(), "r": here[:, 1].sum() / weight.sum()}
            for metric, scaled in (("m", raw["m"] / 2), ("r", 1 - raw["r"])):
                one = {"entry": entry, "kind": "model", "context": f"c{c}", "metric": metric, "raw": raw[metric]}
                rows.append(one | {"scaled": np.fmax(scaled, floor), "unclamped": scaled})
            for p, (m, r) in enumerate(here):
                parts += [(entry, f"c{c}", "m", f"p{p}", m, 1.0), (entry, f"c{c}", "r", f"p{p}", r, weight[p])]
    contexts = range(len(next(iter(values.values()))))
    anchors = pd.DataFrame(
        [
            {"context": f"c{c}", "metric": metric, "low": low, "high": high, "floor": floor, "cap": np.nan}
            for c in contexts
            for metric, low, high in (("m", 0.0, 2.0), ("r", 1.0, 0.0))
        ]
    ).assign(missing=np.nan, ceiling=0.9, ceiling_sd=0.01, reason="")
    panel = range(len(next(iter(values.values()))[0]))
    significant = [{"perturbation": f"p{p}", "significant": 1, "context": f"c{c}"} for c in contexts for p in panel]
    return table_of(
        rows=pd.DataFrame(rows).assign(perturbations=1, reason="", scorer="s", version="1"),
        anchors=anchors,
        values=pd.DataFrame(parts, columns=list(VALUES)),
        significant=pd.DataFrame(significant),
        metrics=METRICS,
        needed=1,
        **given,
    )


def draw(rng, n=24, contexts=2, shift=0.0, sd=0.2):
    """A predictor whose perturbations all differ, most of it in all contexts alike."""
    common = rng.normal(0, sd, (1, n, 2)) + rng.normal(0, sd / 3, (contexts, n, 2))
    return np.array([1.0, 0.8]) + common + np.array([shift, 0.0])


def against(a: ScoreTable | list[ScoreTable], b: ScoreTable | list[ScoreTable], **keys):
    left, right = ([one] if isinstance(one, ScoreTable) else one for one in (a, b))
    return paired(Side("a", "x", left), Side("b", "x", right), **keys)


def test_values_are_those_of_the_table_and_the_error_is_that_of_a_paired_mean():
    rng = np.random.default_rng(0)
    one, other = draw(rng), draw(rng)
    a, b = made({"x": one}, members=["r"]), made({"x": other}, members=["r"])
    found = against(a, b, resamples=20_000).rows
    (mean_a, _), (_, second_b) = (
        scaled_means(t.rows, t.anchors, 1, t.members)[["scaled", "second"]].iloc[-1] for t in (a, b)
    )
    assert found.loc[MEAN, "a"] == pytest.approx(mean_a, abs=1e-12)
    assert found.loc[SECOND, "b"] == pytest.approx(second_b, abs=1e-12)
    assert UNLIMITED not in found.index
    by_perturbation = ((one - other)[:, :, 0] / 2).mean(axis=0)
    assert found.loc["m", "difference"] == pytest.approx(by_perturbation.mean(), abs=1e-12)
    assert found.loc["m", "error"] == pytest.approx(by_perturbation.std(ddof=1) / np.sqrt(24), rel=0.02)
    # The delta method for a ratio of sums whose denominators are 1 and 3.
    weight = np.where(np.arange(24) % 2 == 0, 1.0, 3.0)
    residual = sum(
        -(part - weight * part.sum() / weight.sum()) / weight.mean() * sign
        for part, sign in ((one[:, :, 1].mean(axis=0), 1), (other[:, :, 1].mean(axis=0), -1))
    )
    assert found.loc["r", "error"] == pytest.approx(residual.std(ddof=1) / np.sqrt(24), rel=0.03)


def test_what_both_have_alike_is_no_uncertainty():
    rng = np.random.default_rng(1)
    one = draw(rng, sd=1.0)
    found = against(made({"x": one + 0.1}), made({"x": one})).rows
    assert found.loc["m", "difference"] == pytest.approx(0.05)
    assert np.isnan(found.loc["m", "error"]) or found.loc["m", "error"] < 1e-9


def few(table: ScoreTable, m: int) -> ScoreTable:
    """Scores in which ``m`` perturbations have the ratio ``r``, as with a metric of clear responses."""
    values = table.values
    return replace(
        table, values=values[(values["metric"] != "r") | values["perturbation"].isin([f"p{p}" for p in range(m)])]
    )


def test_a_metric_that_few_perturbations_have_knows_its_error_from_these_alone():
    rng = np.random.default_rng(9)
    a, b = made({"x": draw(rng)}, floor=-6.0), made({"x": draw(rng)}, floor=-6.0)
    found, whole = against(few(a, 4), few(b, 4)).rows, against(a, b).rows
    pd.testing.assert_series_equal(found.loc["m"], whole.loc["m"])
    half = found["high"] - found["difference"]
    assert (half / found["error"])["r"] == pytest.approx(3.182, abs=1e-3)  # t of three degrees of freedom
    assert 2.07 < (half / found["error"])[MEAN] < 3.18
    # One perturbation tells nothing of another, and a mean with its metric neither.
    compared = against(few(a, 1), few(b, 1))
    alone = compared.rows
    assert any(note.startswith("one perturbation has a value of R: neither that") for note in compared.notes)
    assert alone.loc[["r", MEAN], "low"].isna().all()
    assert np.isfinite(alone.loc[["r", MEAN], "difference"]).all()
    assert np.isfinite(alone.loc["m", "low"])


@pytest.mark.slow
@pytest.mark.parametrize("m", [2, 3, 6])
def test_intervals_cover_where_few_perturbations_have_a_metric(m):
    rng = np.random.default_rng(m)
    null = [
        against(few(made({"x": draw(rng)}), m), few(made({"x": draw(rng)}), m), resamples=300).rows for _ in range(150)
    ]
    for name in ("r", MEAN):
        false = np.mean([rows.loc[name, "low"] > 0 or rows.loc[name, "high"] < 0 for rows in null])
        assert false <= 0.11, name  # 0.05 expected, standard error 0.018


@pytest.mark.slow
def test_intervals_cover_and_the_smallest_difference_is_found_in_four_of_five_worlds():
    rng = np.random.default_rng(2)
    null = [against(made({"x": draw(rng)}), made({"x": draw(rng)}), resamples=300).rows.loc[MEAN] for _ in range(100)]
    false = np.mean([row["low"] > 0 or row["high"] < 0 for row in null])
    assert 0.0 < false <= 0.11  # 0.05 expected, standard error 0.022
    smallest = float(np.median([row["smallest"] for row in null]))
    # The mean is of two metrics on scales of length 2 and 1: a shift of the first one counts a quarter.
    shifts = [against(made({"x": draw(rng, shift=4 * smallest)}), made({"x": draw(rng)}), resamples=300).rows.loc[MEAN]
              for _ in range(100)]  # fmt: skip
    assert 0.68 <= np.mean([row["low"] > 0 for row in shifts]) <= 0.92


def test_seeds_that_differ_widen_the_interval_and_seeds_that_agree_do_not():
    rng = np.random.default_rng(3)
    base, other = draw(rng), draw(rng)
    same = [made({"x": base})] * 3
    spread = [made({"x": base + shift}) for shift in (-0.4, 0.0, 0.4)]
    b = [made({"x": other})] * 3
    alike, apart = against(same, b).rows.loc["m"], against(spread, b).rows.loc["m"]
    single = against(made({"x": base}), made({"x": other})).rows.loc["m"]
    assert alike["error"] == pytest.approx(single["error"], rel=1e-9)
    assert apart["difference"] == pytest.approx(alike["difference"], abs=1e-9)
    assert apart["error"] == pytest.approx(np.hypot(alike["error"], 0.2 / np.sqrt(3)), rel=1e-6)
    # Paired seeds: what a seed does to both sides alike falls out.
    both = against(spread, [made({"x": other + shift}) for shift in (-0.4, 0.0, 0.4)]).rows.loc["m"]
    assert both["error"] == pytest.approx(alike["error"], rel=1e-6)
    assert any("not paired" in note for note in against(spread, b[:2]).notes)
    assert any("one seed" in note for note in against(spread, b[:1]).notes)


def test_runs_with_other_held_out_groups_are_worlds():
    rng = np.random.default_rng(8)
    ones, others = [draw(rng, n) for n in (10, 12, 14, 16)], [draw(rng, n) for n in (10, 12, 14, 16)]
    found = against([made({"x": one}) for one in ones], [made({"x": one}) for one in others])
    by_world = [(one - other)[..., 0].mean() / 2 for one, other in zip(ones, others, strict=True)]
    row = found.rows.loc["m"]
    assert row["difference"] == pytest.approx(np.mean(by_world))
    assert row["error"] == pytest.approx(np.std(by_world, ddof=1) / 2)
    half = row["difference"] - row["low"]
    assert half / row["error"] == pytest.approx(3.182, abs=1e-3)  # t of three degrees of freedom
    assert "4 runs with other held-out groups, 52 perturbations" in found.notes[0]


def test_limits_are_kept_in_every_draw_and_the_mean_without_them_stands_beside():
    rng = np.random.default_rng(4)
    high = draw(rng)
    low = high.copy()
    low[..., 1] += 5.0
    found = against(made({"x": high}, floor=0.0), made({"x": low}, floor=0.0)).rows
    assert found.loc["r", "b"] == 0.0
    assert found.loc[UNLIMITED, "b"] < -0.5 < found.loc[MEAN, "b"]


def test_a_perturbation_without_a_value_takes_no_part():
    rng = np.random.default_rng(5)
    one, other = draw(rng), draw(rng)
    a, b = made({"x": one}), made({"x": other})
    gone = (a.values["metric"] == "m") & (a.values["perturbation"].isin(["p0", "p1"]))
    fewer = replace(a, values=a.values[~gone])
    rows = against(fewer, b).rows
    assert rows.loc["m", "a"] == pytest.approx(one[:, 2:, 0].mean() / 2)
    assert np.isfinite(rows.loc["m", "error"])
    uncounted = a.significant["perturbation"] != "p23"
    part = replace(a, significant=a.significant[uncounted])
    pd.testing.assert_frame_equal(against(part, part).rows, against(a, a).rows)
    without = replace(a, values=a.values[a.values["metric"] != "m"])
    rows = against(without, without).rows
    assert rows.loc["m", "a"] == pytest.approx(one[:, :, 0].mean() / 2)
    assert np.isnan(rows.loc["m", "low"])


def test_what_cannot_be_compared_is_refused():
    rng = np.random.default_rng(6)
    table = made({"x": draw(rng)})
    for other, refusal in (
        (made({"y": draw(rng)}), "no entry 'x' in its scores; there are y"),
        (made({"x": draw(rng, n=12)}), "held-out groups must be the same on both sides"),
        (made({"x": draw(rng)}, preset="q"), "preset must be the same on both sides, found q and p"),
        (made({"x": draw(rng)}, version="2"), "scorer must be the same on both sides, found s 2 and s 1"),
    ):
        with pytest.raises(UserError, match=f"b: {refusal}"):
            against(table, other)


def test_the_verdict_says_what_could_have_been_shown():
    rng = np.random.default_rng(7)
    one = draw(rng)
    found = against(made({"x": one + 0.5}), made({"x": draw(rng)}))
    assert "scaled mean: " in found.verdict()
    close = against(made({"x": one}), made({"x": one + rng.normal(0, 0.2, one.shape)}))
    assert "no difference can be told" in close.verdict()
    assert "could have been shown" in close.verdict()
    assert close.perturbations == 24


def test_members_whose_replicate_is_not_clear_are_named_once():
    rng = np.random.default_rng(9)
    table = made({"x": draw(rng)})
    table.anchors.loc[:, "ceiling_sd"] = 2.0
    table.anchors.loc[:, "ceiling"] = table.anchors["high"]
    notes = against(table, table).notes
    (note,) = [one for one in notes if "not clear" in one]
    assert "(c0: M, R; c1: M, R)" in note
    assert "score.members=clear" in note
