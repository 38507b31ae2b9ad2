"""A recipe on slides, from SpatialData stores to the checked table and its scores; no leak; the code interface."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from rich.console import Console
from slides_kit import GENES, slide
from transformers import AutoConfig, AutoModel

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.read import load_any, load_recipe
from vcc_fm.recipe.slides import RegionSplit
from vcc_fm.run.crunch1 import infer, train
from vcc_fm.run.slides import SlideLayout, load
from vcc_fm.run.stages import run_stage, stages_of
from vcc_fm.slides.data import NucleusStream, roles
from vcc_fm.slides.model import PatchDecoder, build, ordered
from vcc_fm.slides.ridge import fit, start_of
from vcc_fm.slides.train import predict
from vcc_fm.training.phase import Phase

BACKBONE = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 1}  # fmt: skip
VISION = {"model_type": "vit", "image_size": 16, "patch_size": 8, "hidden_size": 8, "intermediate_size": 8,
          "num_hidden_layers": 1, "num_attention_heads": 2}  # fmt: skip
QUIET = Console(quiet=True)


def recipe_of(folder: Path, **changes) -> Path:
    content = {
        "name": "tiny",
        "output": str(folder),
        "slides": {"path": f"{folder}/slides/*.zarr"},
        "embed": {"images": {"config": VISION, "pool": "mean", "near": 12, "wide": 40}},
        "split": {"validation": 0.3, "region": 80, "margin": 20},
        "decoder": {"backbone": BACKBONE},
        "train": {
            "steps": 6,
            "set_size": 4,
            "batch_sets": 8,
            "eval_every": 3,
            "checkpoint_every": 3,
            "tracker": "none",
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A recipe that was run to its scores, and the nuclei of its slides."""
    folder = tmp_path_factory.mktemp("slides")
    nuclei = {name: slide(folder / f"slides/{name}.zarr", seed) for seed, name in enumerate(["UC1_I", "UC1_NI"])}
    recipe = load_any(recipe_of(folder))
    for stage in stages_of(recipe):
        assert run_stage(stage, recipe, QUIET)
    return recipe, nuclei


def test_a_recipe_ends_with_a_checked_table_and_scores(ran):
    recipe, nuclei = ran
    for name, wanted in nuclei.items():
        table = pd.read_parquet(recipe.run_folder / f"predictions/{name}.parquet")
        assert list(table.columns) == ["sample", "cell_id", "gene", "prediction"]
        held = wanted[wanted["group"].isin(["validation", "test"])]
        assert set(table["cell_id"]) == set(held["cell_id"])
        assert len(table) == len(held) * len(GENES)
        assert (table["prediction"] >= 0).all()
        np.testing.assert_allclose(table["prediction"], table["prediction"].round(2))
    scores = json.loads((recipe.run_folder / "scores.json").read_text())
    assert scores["nuclei"] == "validation", "the files hold no expression of the groups that are predicted"
    spearman = {entry: one["samples"]["ALL"]["spearman"] for entry, one in scores["entries"].items()}
    assert spearman["start"] > spearman["mean"] + 0.1, "a nucleus's colour says what it expresses"
    assert spearman["model"] >= spearman["start"] - 0.02
    assert not any(run_stage(stage, recipe, QUIET) for stage in stages_of(recipe))


def test_no_training_patch_shows_a_validation_region(ran):
    recipe, _ = ran
    nuclei = load(recipe).nuclei
    assert set(nuclei["role"]) == {"train", "validation", "test", "none"}
    assert (nuclei.loc[nuclei["role"] == "test", "group"].isin(["validation", "test"])).all()
    assert (nuclei.loc[nuclei["role"].isin(["train", "validation"]), "group"] == "train").all()
    assert not set(nuclei.loc[nuclei["role"] == "train", "region"]) & set(
        nuclei.loc[nuclei["role"] == "validation", "region"]
    )
    for sample, part in nuclei.groupby("sample"):
        held = {one for one in part.loc[part["role"] == "validation", "region"]}
        for square in held:
            down, right = (int(number) * 80 for number in square.removeprefix(f"{sample}/").split("-"))
            train = part[part["role"] == "train"]
            away = [
                (low - train[axis]).clip(lower=0) + (train[axis] - low - 80).clip(lower=0)
                for axis, low in (("y", down), ("x", right))
            ]
            assert (np.maximum(*away) >= 20 - 1e-6).all()


@pytest.mark.slow
def test_what_is_held_out_changes_no_prediction(ran, tmp_path):
    """Held-out samples with other counts: trained weights and predictions stay to the last bit."""
    found = []
    for number, times in enumerate((1, 7)):
        folder = tmp_path / str(number)
        for seed, name in enumerate("ABC"):
            nuclei = slide(folder / f"slides/{name}.zarr", seed, groups=False)
            if name == "C":
                counts = np.stack(nuclei["counts"]).astype(np.float32)
                slide(
                    folder / f"slides/{name}.zarr",
                    seed,
                    groups=False,
                    counts=counts[:, ::-1] * times if times > 1 else counts,
                )
        recipe = load_any(recipe_of(folder, split={"test": ["C"], "validation": ["B"]}))
        for stage in stages_of(recipe):
            run_stage(stage, recipe, QUIET)
        found.append(pd.read_parquet(recipe.run_folder / "predictions/C.parquet"))
        scores = json.loads((recipe.run_folder / "scores.json").read_text())
        assert scores["nuclei"] == "test"
        assert set(scores["entries"]["model"]["samples"]) == {"C", "ALL"}
    pd.testing.assert_frame_equal(*found)


def test_an_untrained_decoder_is_its_regressions(ran):
    recipe, _ = ran
    data = load(recipe)
    start = start_of(data)
    phase = Phase("train", recipe.train, recipe.decoder, "scratch", 0, "tiny", {}, "", "")
    model = build(phase, data, start)
    rows = data.rows("test")[:9]
    expected = start.predict(data.patches(rows))
    np.testing.assert_allclose(predict(model, data, rows), ordered(expected), rtol=1e-4, atol=1e-5)
    # The neighbours' order is no matter, the first one's place is.
    batch = data.assemble(rows.tolist())
    # The nearest nuclei of the grid are 24 pixels away, in sides of a wide patch of 40 pixels.
    np.testing.assert_allclose(batch.offset_BS2[:, 1:].norm(dim=-1), np.full((9, 3), 24 / 40), atol=0.4)
    assert (batch.offset_BS2[:, 0] == 0).all()
    assert float(batch.offset_BS2[:, 1:].norm(dim=-1).min()) == pytest.approx(24 / 40)
    model.head.weight.data.normal_()
    order = [0, 3, 2, 1]
    turned = replace(batch, **{name: getattr(batch, name)[:, order] for name in ("near_BSF", "offset_BS2", "mask_BS")})
    np.testing.assert_allclose(model(batch).detach(), model(turned).detach(), atol=1e-4)
    order[0], order[1] = order[1], order[0]
    other = replace(batch, near_BSF=batch.near_BSF[:, order])
    assert not torch.allclose(model(batch), model(other), atol=1e-2)
    assert batch.target_BT is None, "what is held out travels in no batch"


def test_a_backbone_is_adapted_by_lora(ran, tmp_path):
    recipe, _ = ran
    base = AutoModel.from_config(AutoConfig.for_model(**BACKBONE))
    base.save_pretrained(tmp_path / "base")
    content = recipe.model_dump(mode="json") | {"variant": "lora"}
    content["decoder"] |= {"base": str(tmp_path / "base"), "lora": {"r": 2, "alpha": 4}}
    content["train"] |= {"average": None, "lr": 0.05}
    path = tmp_path / "lora.yaml"
    path.write_text(yaml.safe_dump(content))
    adapted = load_any(path)
    for stage in stages_of(adapted)[:3]:
        run_stage(stage, adapted, QUIET)
    folder = SlideLayout(adapted).model.require()
    assert (folder / "adapter/adapter_model.safetensors").exists()
    model = PatchDecoder.from_pretrained(folder)
    assert model.config.genes == GENES
    np.testing.assert_allclose(model.get_buffer("slope"), start_of(load(recipe)).slope, rtol=1e-5, atol=1e-6)


def test_the_code_interface_trains_and_infers(ran, tmp_path):
    recipe, _ = ran
    recipe_of(tmp_path)
    slides = recipe.embeddings_folder.parents[1] / "slides"
    train(str(slides), str(tmp_path))
    table = infer(str(slides / "UC1_NI.zarr"), str(tmp_path))
    expected = pd.read_parquet(recipe.run_folder / "predictions/UC1_NI.parquet")
    pd.testing.assert_frame_equal(table, expected)


def test_every_nucleus_stands_once_an_epoch():
    stream = NucleusStream(np.arange(10, 17), 3)
    drawn = [stream[position] for position in range(21)]
    assert all(sorted(drawn[start : start + 7]) == list(range(10, 17)) for start in (0, 7, 14))
    assert drawn[:7] != drawn[7:14]
    assert stream.step(2, 4, slice(1, 3)) == drawn[9:11]


def test_ridge_is_the_closed_form_and_knows_when_nothing_helps():
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(0)
    x, held = (
        rng.normal(2, [1, 3, 0.2], (200, 3)).astype(np.float32),
        rng.normal(2, [1, 3, 0.2], (50, 3)).astype(np.float32),
    )
    weights = rng.normal(size=(3, 4))
    y, held_y = x @ weights + rng.normal(size=(200, 4)), held @ weights
    least, found = fit(x, y, held, held_y, np.ones(3, bool))
    errors = []
    for penalty in np.logspace(-4, 2, 13):
        peer = Ridge(alpha=penalty * 200).fit((x - x.mean(0)) / x.std(0), y)
        errors.append((((peer.predict((held - x.mean(0)) / x.std(0)) - held_y) ** 2).sum(), peer))
    error, best = min(errors, key=lambda one: one[0])
    np.testing.assert_allclose(found.predict(held), best.predict((held - x.mean(0)) / x.std(0)), rtol=1e-3, atol=1e-3)
    assert least == pytest.approx(error, rel=1e-4)
    _, alone = fit(x, y, held, held_y, np.array([True, False, False]))
    assert (alone.slope[1:] == 0).all()
    _, noise = fit(x, y - x @ weights, held, np.zeros((50, 4)) + (y - x @ weights).mean(0), np.ones(3, bool))
    assert (noise.slope == 0).all()


def test_values_go_in_the_order_of_ranks():
    found = ordered(np.array([[0.3, -0.1, 0.2, 0.9, 0.1, 0.5]]))
    np.testing.assert_allclose(found, [[0.3, 0.0, 0.2]])


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ({"test": ["Z"]}, "no sample or named twice"),
        ({"test": ["A"], "validation": ["A"]}, "named twice"),
        ({"region": 5000}, "one region"),
    ],
)
def test_a_split_that_cannot_be_is_refused(split, said):
    nuclei = pd.DataFrame({"sample": ["A"] * 4, "group": "train", "y": [1.0, 2, 3, 4], "x": [1.0, 2, 3, 4]})
    with pytest.raises(UserError, match=said):
        roles(nuclei, RegionSplit(**{"margin": 0} | split), 0)


@pytest.mark.parametrize("margin", [0, 3, 10, 25])
def test_the_margin_around_a_region_is_exact(margin):
    y, x = (axis.ravel() + 0.5 for axis in np.mgrid[:60, :60])
    nuclei = pd.DataFrame({"sample": "A", "group": "train", "y": y, "x": x})
    role, region = roles(nuclei, RegionSplit(region=10, margin=margin, validation=0.01), 1)
    (square,) = set(region[role == "validation"])
    down, right = (int(number) * 10 for number in square.removeprefix("A/").split("-"))
    away = np.maximum(*((low - at).clip(0) + (at - low - 10).clip(0) for at, low in ((y, down), (x, right))))
    assert (role == "validation").sum() == 100
    np.testing.assert_array_equal(role == "none", (away > 0) & (away < margin))


def test_other_commands_say_that_it_is_a_recipe_on_slides(tmp_path):
    path = recipe_of(tmp_path)
    with pytest.raises(UserError, match="a recipe on slides"):
        load_recipe(path)
    with pytest.raises(UserError, match=r"unknown key slides\.images"):
        load_any(path, ["slides.images=x"])


@pytest.mark.slow
def test_real_spots_are_predicted_above_the_mean(real_data, tmp_path, monkeypatch):
    """Patient C to B, as the recipe says, with fewer steps: what is known of a spot orders its genes better."""
    from _spots import main

    monkeypatch.setenv("VCC_FM_DATA", str(real_data))
    main(tmp_path / "slides")
    recipe = load_any(
        Path(__file__).parents[2] / "recipes/her2st.yaml",
        [f"slides.path={tmp_path}/slides/*.zarr", f"output={tmp_path}", "train.steps=40"],
    )
    for stage in stages_of(recipe):
        run_stage(stage, recipe, QUIET)
    entries = json.loads((recipe.run_folder / "scores.json").read_text())["entries"]
    spearman = {entry: one["samples"]["ALL"]["spearman"] for entry, one in entries.items()}
    assert spearman["mean"] == pytest.approx(0.258, abs=0.002)
    assert spearman["colour-ridge"] == pytest.approx(0.262, abs=0.002)
    assert spearman["model"] > spearman["colour-ridge"] + 0.005
    assert all(one["valid"] for one in entries.values())
