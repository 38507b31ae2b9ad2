"""The scaled mean: which metrics it is taken over, and when there is none, with the reason."""

import numpy as np
import pandas as pd
import pytest

from vcc_fm.scoring.means import ALL, scaled_means, without_mean
from vcc_fm.scoring.presets.vcc2026 import Vcc2026


def scores(defined: dict[str, int], sd: float = 0.05) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of a model and anchors: context -> number of metrics with a scale; the model's values are 1, 2, …"""
    rows, anchors = [], []
    for context, number in defined.items():
        for i, metric in enumerate(Vcc2026.metrics):
            there = i < number
            rows.append((context, metric, float(i + 1) if there else np.nan))
            high = 0.7 if there else np.nan
            anchors.append((context, metric, 0.5, high, high, sd, "" if there else "no value"))
    frame = pd.DataFrame(rows, columns=["context", "metric", "scaled"]).assign(entry="m", kind="model")
    frame["unclamped"] = frame["scaled"]
    names = ["context", "metric", "low", "high", "ceiling", "ceiling_sd", "reason"]
    return frame, pd.DataFrame(anchors, columns=names)


def test_means_count_what_is_present():
    means = scaled_means(*scores({"a": 4, "b": 6}), 4).set_index("context")
    assert means.loc["a", ["scaled", "present", "members"]].tolist() == [2.5, 4, 6]
    assert means.loc[ALL, ["scaled", "present", "members"]].tolist() == pytest.approx([3.0, 10, 12])


def test_fewer_than_four_metrics_of_a_context_are_no_mean_of_it_nor_of_all():
    rows, anchors = scores({"a": 3, "b": 6})
    means = scaled_means(rows, anchors, 4).set_index("context")["scaled"]
    assert np.isnan(means["a"])
    assert np.isnan(means[ALL])
    assert means["b"] == 3.5
    assert without_mean(anchors, 4) == {"a": "3 of 6 metrics have a scale, a mean needs 4"}


def test_a_mean_needs_one_scale_that_is_certain():
    rows, anchors = scores({"a": 5}, sd=0.4)
    assert without_mean(anchors, 4) == {"a": "the scales of all 5 defined metrics are uncertain"}
    assert np.isnan(scaled_means(rows, anchors, 4)["scaled"]).all()
    anchors.loc[0, "ceiling_sd"] = 0.05
    assert without_mean(anchors, 4) == {}


def test_a_scale_that_ends_at_a_perfect_prediction_does_not_depend_on_the_replicate():
    _, anchors = scores({"a": 5}, sd=0.4)
    assert without_mean(anchors.assign(high=1.0), 4) == {}


def test_a_second_mean_is_taken_over_named_or_certain_members_where_they_have_a_scale():
    rows, anchors = scores({"a": 5, "b": 6})
    anchors.loc[[0, 7], "ceiling_sd"] = 0.4  # the first metric of a, the second of b
    metrics = list(Vcc2026.metrics)
    for members, a, b in (("clear", [2, 3, 4, 5], [1, 3, 4, 5, 6]), ([metrics[1], metrics[5]], [2], [2, 6])):
        means = scaled_means(rows, anchors, 4, members).set_index("context")
        assert means.loc["a", "second"] == np.mean(a)
        assert means.loc["b", "second"] == np.mean(b)
        assert means.loc[ALL, "second"] == (np.mean(a) + np.mean(b)) / 2
        assert means.loc[ALL, "scaled"] == (3 + 3.5) / 2
    assert scaled_means(rows, anchors, 4)["second"].isna().all()
