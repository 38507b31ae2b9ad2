"""The table over worlds: its intervals are those of statistics, and what it leaves out it names."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats
from test_compare import draw, made

from vcc_fm.ground.errors import UserError
from vcc_fm.run.seeds import worlds_of
from vcc_fm.scoring.compare import MEAN, SECOND, Side, paired
from vcc_fm.scoring.table import ScoreTable
from vcc_fm.scoring.worlds import Interval, over_worlds

KINDS = {
    "model": "model",
    "good": "baseline",
    "mixed-model": "baseline",
    "oracle-mean": "oracle",
    "replicate": "ceiling",
}
SHIFT = {"model": 0.3, "good": 0.2, "mixed-model": 0.0, "oracle-mean": 0.8, "replicate": 0.6}


def world(seed: int, n: int = 8, shift: dict[str, float] = SHIFT) -> ScoreTable:
    """One world: its own level for all entries, its own perturbations."""
    rng = np.random.default_rng(seed)
    level = rng.normal(0, 0.3)
    table = made({entry: draw(rng, n, 1, shift=level + by) for entry, by in shift.items()})
    table.rows["kind"] = table.rows["entry"].map(KINDS)
    for frame in (table.significant, table.values):
        frame["perturbation"] = f"{seed}-" + frame["perturbation"]
    return table


def worlds(number: int = 5, **keys: int) -> dict[str, ScoreTable]:
    return {f"w{seed}": world(seed, **keys) for seed in range(number)}


def mean_of(table: ScoreTable, entry: str) -> float:
    """The scaled mean, from the rows."""
    return float(table.rows.loc[table.rows["entry"] == entry, "scaled"].mean())


def test_intervals_are_those_of_a_t_test_over_worlds():
    tables = worlds()
    found = over_worlds(tables, ["mixed-model"])
    assert list(found.entries) == sorted(KINDS, key=lambda e: -np.mean([mean_of(t, e) for t in tables.values()]))
    for entry, one in found.entries.items():
        means = [mean_of(table, entry) for table in tables.values()]
        low, high = stats.ttest_1samp(means, 0).confidence_interval(0.95)
        assert one.scaled[MEAN] == Interval(*map(pytest.approx, (np.mean(means), low, high)), worlds=5)
        raw = [t.rows[(t.rows["entry"] == entry) & (t.rows["metric"] == "r")]["raw"].item() for t in tables.values()]
        low, high = stats.ttest_1samp(raw, 0).confidence_interval(0.95)
        assert one.raw["r"] == Interval(*map(pytest.approx, (np.mean(raw), low, high)), worlds=5)
        assert one.shares["replicate"] == pytest.approx(
            np.mean(means) / np.mean([mean_of(table, "replicate") for table in tables.values()])
        )
        assert set(one.shares) == {"replicate", "oracle-mean"}
    one, other = ([mean_of(table, entry) for table in tables.values()] for entry in ("model", "good"))
    ahead = found.entries["model"].ahead["good"][MEAN]
    low, high = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert (ahead.mean, ahead.low, ahead.high) == pytest.approx((np.subtract(one, other).mean(), low, high))
    sides = (Side(name, name, list(tables.values())) for name in ("model", "mixed-model"))
    rows, beside = paired(*sides).rows, found.entries["model"].ahead["mixed-model"]
    for metric in ("m", "r", MEAN):
        expected = rows.loc[metric, ["difference", "low", "high"]]
        assert [beside[metric].mean, beside[metric].low, beside[metric].high] == pytest.approx(expected.tolist())


def test_the_best_rung_is_a_baseline_and_the_best_over_worlds():
    found = over_worlds(worlds(), ["mixed-model"])
    assert list(found.entries["model"].ahead) == ["good", "mixed-model"]
    assert list(found.entries["good"].ahead) == ["mixed-model"]
    assert found.entries["replicate"].ahead == {}
    assert list(found.entries["oracle-mean"].ahead) == ["good", "mixed-model"]


def test_the_bootstrap_draws_worlds_and_perturbations():
    tables = worlds(6, n=10)
    found = over_worlds(tables, resamples=1500).entries["model"].ahead["good"]["m"]
    # The plain way: half of the difference of the values of m, perturbation by perturbation.
    values = np.array([
        [t.values[(t.values["entry"] == entry) & (t.values["metric"] == "m")]["numerator"] for t in tables.values()]
        for entry in ("model", "good")
    ])  # fmt: skip
    by_perturbation = (values[0] - values[1]) / 2
    rng = np.random.default_rng(1)
    means = [
        np.mean([rng.choice(by_perturbation[w], 10).mean() for w in rng.integers(6, size=6)]) for _ in range(1500)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    assert found.bootstrap_low == pytest.approx(low, abs=0.1 * (high - low))
    assert found.bootstrap_high == pytest.approx(high, abs=0.1 * (high - low))
    assert found.bootstrap_low < found.mean < found.bootstrap_high


def test_members_that_are_not_clear_are_named_and_left_out_of_the_second_mean():
    tables = worlds(3)
    table = tables["w1"]
    of_r = table.anchors["metric"] == "r"
    table.anchors.loc[of_r, ["ceiling", "ceiling_sd"]] = [0.0, 2.0]
    found = over_worlds(tables)
    assert found.unclear == {"r": 1}
    assert "left out of the second mean: R in 1 of 3 worlds" in found.notes[-1]
    expected = [mean_of(tables["w0"], "good"), mean_of(tables["w2"], "good")]
    expected.append(table.rows[(table.rows["entry"] == "good") & (table.rows["metric"] == "m")]["scaled"].item())
    assert found.entries["good"].scaled[SECOND].mean == pytest.approx(np.mean(expected))
    assert found.entries["good"].scaled[SECOND].mean != pytest.approx(found.entries["good"].scaled[MEAN].mean)


def test_what_is_left_out_is_said():
    tables = worlds(4)
    tables["w3"].anchors.loc[:, "reason"] = "no value"
    rows = tables["w2"].rows
    tables["w2"].rows.drop(rows[rows["entry"] == "mixed-model"].index, inplace=True)
    found = over_worlds(tables, ["mixed-model"])
    assert found.worlds == ["w0", "w1", "w2"]
    assert "mixed-model" not in found.entries
    assert any(note.startswith("w3 has no scaled mean and is left out") for note in found.notes)
    assert "not in every world, and left out: mixed-model" in found.notes
    with pytest.raises(UserError, match="1 world with a scaled mean: an interval needs two; draw more worlds"):
        over_worlds({name: tables[name] for name in ("w0", "w3")})
    tables["w1"] = made({"x": draw(np.random.default_rng(0))}, version="2")
    with pytest.raises(UserError, match="w1: scored by s 2 p, but others by s 1 p; score again"):
        over_worlds(tables)


def test_json_is_strict_and_markdown_has_every_entry():
    tables = worlds(2)
    for table in tables.values():
        table.rows.loc[table.rows["metric"] == "r", "raw"] = np.nan
    found = over_worlds(tables, ["mixed-model"])
    content = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert content["entries"]["model"]["raw"]["r"] == {"mean": None, "low": None, "high": None, "worlds": 0}
    assert set(content["entries"]["model"]["ahead"]["good"][MEAN]) == {
        "mean", "low", "high", "worlds", "bootstrap_low", "bootstrap_high"
    }  # fmt: skip
    lines = found.to_markdown().splitlines()
    assert lines[0].startswith(
        "| entry | kind | scaled mean | over clear members | share of replicate | share of oracle-"
    )
    tabled = [line for line in lines if line.startswith("|")]
    assert len(tabled) == 3 * (2 + len(KINDS))
    assert len({line.count(" | ") for line in tabled[: 2 + len(KINDS)]}) == 1


def test_runs_of_the_same_held_out_groups_are_no_worlds():
    assert worlds_of({"a": world(1), "b": world(1)}) is None
    found = worlds_of({"a": world(1), "b": world(2)})
    assert found is not None
