"""Every recipe in recipes/ parses, names its launch lines, and builds a decoder that runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from vcc_fm.cellsets.batch import Batch
from vcc_fm.decoder.config import PerturbationDecoderConfig, check_backbone
from vcc_fm.decoder.lora import add_adapters
from vcc_fm.decoder.losses import SetLosses
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.recipe.read import load_any, load_recipe
from vcc_fm.recipe.recipe import SlideRecipe
from vcc_fm.run.plan import make_plan
from vcc_fm.run.plan_text import print_plan
from vcc_fm.slides.model import PatchDecoder, PatchDecoderConfig
from vcc_fm.sources.simulated_screen import draw_screen
from vcc_fm.splits.hold_out import among_combinations, make_splits
from vcc_fm.training.loop import mean_loss

ALL = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
SLIDES = [path for path in ALL if "\nslides:" in path.read_text()]
RECIPES = [path for path in ALL if path not in SLIDES]
SIMULATED = sorted((Path(__file__).parents[1] / "recipes/simulated").glob("*.yaml"))
GENES, CELLS = 9, 4


def one_set(cell_width: int, protein_width: int) -> Batch:
    return Batch(
        cells_BSE=torch.randn(1, CELLS, cell_width),
        cell_mask_BS=torch.ones(1, CELLS, dtype=torch.bool),
        control_depth_BS=torch.full((1, CELLS), 500.0),
        log_share_UG=torch.log_softmax(torch.randn(1, GENES), -1),
        measured_U=torch.tensor([GENES]),
        profile_BS=torch.zeros(1, CELLS, dtype=torch.long),
        target_vector_BPV=torch.randn(1, 1, protein_width),
        target_code_BP=torch.zeros(1, 1, dtype=torch.long),
        target_mask_BP=torch.ones(1, 1, dtype=torch.bool),
        target_gene_BP=torch.zeros(1, 1, dtype=torch.long),
        context_code_B=torch.zeros(1, dtype=torch.long),
        batch_code_BS=torch.zeros(1, CELLS, dtype=torch.long),
        response_BG=torch.zeros(1, GENES),
        deviation_BG=torch.ones(1, GENES),
        reliability_G=torch.ones(GENES),
        power_B=torch.zeros(1),
        null_ratio_BG=torch.ones(1, GENES),
        noise_seed_B=torch.zeros(1, dtype=torch.long),
        counts_BSG=torch.full((1, CELLS, GENES), 5.0),
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_parses_and_builds(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    config = PerturbationDecoderConfig(
        backbone=dict(recipe.decoder.backbone),
        genes=[f"G{i}" for i in range(GENES)],
        cell_width=recipe.embed.cells.width,
        protein_width=20,
        gene_rank=recipe.decoder.gene_rank,
        response=recipe.decoder.response,
    )
    model: torch.nn.Module = PerturbationDecoder(config)
    if recipe.decoder.base != "scratch":
        model = add_adapters(model, recipe.decoder.lora, recipe.decoder.base)  # type: ignore[arg-type]
    batch = one_set(recipe.embed.cells.width, 20)
    losses = SetLosses(recipe.train.loss)
    loss = mean_loss(losses(model, batch), losses)
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("path", SLIDES, ids=lambda path: path.stem)
def test_a_recipe_on_slides_parses_and_builds(path: Path) -> None:
    recipe = load_any(path)
    assert isinstance(recipe, SlideRecipe)
    assert recipe.name == path.stem
    check_backbone(recipe.decoder.backbone)
    with torch.device("meta"):
        model = PatchDecoder(
            PatchDecoderConfig(backbone=dict(recipe.decoder.backbone), genes=["A"] * 460, cell_width=20)
        )
    assert model.head.out_features == 920


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_recipe_says_how_it_is_launched(path: Path) -> None:
    header = path.read_text().split("\nname:")[0]
    assert f"vcc-fm run recipes/{path.name}" in header
    assert "--num_processes 8 vcc_fm/train.py" in header
    assert "--config_file recipes/accelerate/multinode.yaml" in header
    assert header.count(f"recipes/{path.name}") >= 3


@pytest.mark.parametrize("path", SIMULATED, ids=lambda path: path.stem)
def test_a_simulated_setting_differs_from_the_demo_in_its_question_alone(path: Path) -> None:
    demo, recipe = load_recipe(RECIPES[0].with_name("demo.yaml")), load_recipe(path)
    assert recipe.name == f"simulated-{path.stem}"
    assert f"vcc-fm run recipes/simulated/{path.name} --worlds 18" in path.read_text().split("\nname:")[0]
    for section in ("embed", "decoder", "pretrain", "train", "predict"):
        assert getattr(recipe, section) == getattr(demo, section), section
    one, other = (r.data.simulate.model_dump() for r in (recipe, demo) if r.data.simulate)
    questions = {
        "shared",
        "inert",
        "combinations",
        "interaction",
        "expression",
        "programs",
        "program_sd",
        "depth_slope",
    }
    assert {key for key in one if one[key] != other[key]} <= questions
    assert set(recipe.score.baselines) >= set(demo.score.baselines)
    assert "oracle-mean" in recipe.score.baselines


@pytest.mark.parametrize("name", ["unseen", "combinations"])
def test_what_a_simulated_setting_tests_was_measured_nowhere(name: str) -> None:
    recipe = load_recipe(SIMULATED[0].with_name(f"{name}.yaml"))
    config = recipe.data.simulate
    assert config is not None
    screen = draw_screen(config, 0, np.random.default_rng(0))
    labels = screen.labels(np.array([f"G{i}" for i in range(config.genes)]))
    cells = {(context, label): 8 for context in config.contexts for label in [*labels, "control"]}
    split_config = among_combinations(recipe.split, labels, "+", 0)
    (split,) = make_splits(split_config, cells, "control", "+", seed=0)
    tested, trained = split.groups("test"), {label for _, label in split.groups("train")}
    assert len(tested) == 24
    assert {context for context, _ in tested} == {"delta"}
    assert not trained & {label for _, label in tested}
    if name == "combinations":
        assert all("+" in label and trained.issuperset(label.split("+")) for _, label in tested)
        assert not any("+" in label for label in trained)


def test_h1_can_be_planned_without_its_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VCC_FM_DATA", str(tmp_path))
    plan = make_plan(load_recipe(RECIPES[0].with_name("h1.yaml"), [f"output={tmp_path}"]), 1)
    assert {entry["key"] for entry in plan["missing"]} == {
        "data.sources h1", "data.sources k562", "data.sources rpe1", "data.genes"
    }  # fmt: skip
    assert all("https://" in text for text in plan["problems"] if "data.sources" in text)
    print_plan(plan, Console(quiet=True))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["papalexi", "papalexi-rep3"])
def test_real_recipes_have_nothing_in_their_way(name: str, real_data: Path, tmp_path: Path) -> None:
    plan = make_plan(load_recipe(RECIPES[0].with_name(f"{name}.yaml"), [f"output={tmp_path}"]), 1)
    assert plan["problems"] == []
    assert plan["cells"]["cells"] == 16_192
    assert plan["cells"]["perturbations"] == 25
    tested = [fold["counts"]["test"]["groups"] for fold in plan["split"]]
    assert sum(tested) == 25


def test_a_drug_in_five_patients_has_nothing_in_its_way(real_data: Path, tmp_path: Path) -> None:
    plan = make_plan(load_recipe(RECIPES[0].with_name("glioblastoma.yaml"), [f"output={tmp_path}"]), 1)
    assert plan["problems"] == []
    held = [{role: counts["groups"] for role, counts in fold["counts"].items()} for fold in plan["split"]]
    assert held == [{"train": 3, "validation": 1, "test": 1, "unused": 0}] * 5
    assert plan["proteins"]["targets_without_sequence"] == ["panobinostat"]
    assert not [line for line in plan["proteins"]["coverage"] if "mouse" in line and "panobinostat" in line]


def test_combinations_from_singles_have_nothing_in_their_way(real_data: Path, tmp_path: Path) -> None:
    plan = make_plan(load_recipe(RECIPES[0].with_name("norman.yaml"), [f"output={tmp_path}"]), 1)
    assert plan["problems"] == []
    assert plan["cells"]["sources"][0]["values"]["found"] == "log-normalised"
    (split,) = plan["split"]
    assert {role: counts["groups"] for role, counts in split["counts"].items()} == {
        "train": 14, "validation": 4, "test": 15, "unused": 0
    }  # fmt: skip
