"""The check of the emitter: it sees what independent draws get wrong, and passes cells that keep their composition."""

import numpy as np
import pytest
from tiny_screens import CONTROL, dataset_of, papalexi, screen, store_of

from vcc_fm.prediction.emission_check import check_emitter
from vcc_fm.recipe.predict import PredictConfig

GENES = [f"g{i}" for i in range(60)]


@pytest.fixture
def dominated(tmp_path):
    """One gene has a log-normal rate of its own, so that all other shares follow a cell's depth; A halves gene 3."""
    rng = np.random.default_rng(0)
    labels = np.array([CONTROL] * 400 + ["A"] * 100)
    share = rng.gamma(0.8, 1.0, 60)
    rest = share / share.sum() * rng.lognormal(np.log(3000), 0.4, 500)[:, None]
    rest[:, 7] = rest.sum(1) * rng.lognormal(-0.3, 1.0, 500)
    rest[labels == "A", 3] *= 0.5
    batch = np.arange(500) % 2
    return dataset_of(store_of(tmp_path, screen(rng.poisson(rest), "K", batch.astype(str), labels, GENES)))


def test_independent_draws_are_found_out(dominated):
    records, warnings = check_emitter(dominated, ["K"], PredictConfig(emitter="negative-binomial"), 0)
    controls, perturbed = records
    assert (controls["cells"], perturbed["cells"]) == ("controls", "A")
    assert controls["differ"] > 40
    assert controls["differ_real"] <= 1
    assert controls["variance_median"] > 1.5
    assert "of 60 genes tell emitted control cells from real ones" in warnings[0]
    assert controls["names"][0] in warnings[0]


def test_cells_from_control_cells_pass(dominated):
    records, warnings = check_emitter(dominated, ["K"], PredictConfig(depth=900.0), 0)
    assert warnings == []
    controls, perturbed = records
    # The bound that a release must keep: no more genes than real cells differ in, plus one in fifty.
    assert controls["differ"] <= controls["differ_real"] + 0.02 * controls["genes"]
    assert (controls["variance_off"], controls["zeros_off"]) == (0, 0)
    assert perturbed["differ"] <= 1


def test_few_controls_are_said_and_not_judged(tmp_path):
    rng = np.random.default_rng(1)
    labels = [CONTROL] * 12 + ["A"] * 20
    data = dataset_of(store_of(tmp_path, screen(rng.poisson(5.0, (32, 6)), "K", "1", labels)))
    records, warnings = check_emitter(data, ["K"], PredictConfig(), 0)
    assert records == []
    assert "K: 12 control cells are too few" in warnings[0]


def test_papalexi_controls_stay_like_controls(real_data, tmp_path):
    data = dataset_of(store_of(tmp_path, papalexi(real_data)))
    records, warnings = check_emitter(data, data.cells.contexts, PredictConfig(), 0)
    assert warnings == []
    for one in records:
        if one["cells"] == "controls":
            assert one["differ"] <= one["differ_real"] + 0.02 * one["genes"]
            assert (one["variance_off"], one["zeros_off"]) == (0, 0)
