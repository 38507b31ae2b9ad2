"""Several seeds and folds of one recipe: the stores are made once, and the runs end in one table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from program import at_once, write_recipe

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import read_json, write_json
from vcc_fm.recipe.read import load_recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.seeds import crossval_overrides, scored, world_overrides


@pytest.fixture
def run(scored_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to go on from."""
    recipe = write_recipe(tmp_path)
    for part in ("embeddings", "runs"):
        shutil.copytree(scored_run.parent / part, tmp_path / part)
    return recipe


def told(*words: str, code: int = 0) -> str:
    """What a command prints."""
    (done,) = at_once(words)
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_seeds_share_stores_and_anchors_and_end_in_one_table(run: Path):
    said = told("run", str(run), "--seeds", "2")
    assert said.count("train: done before") == 1
    assert said.count("embed cells: done before") == 2
    one, other = (read_json(run.parent / "runs/tiny" / place / "scores.json") for place in (".", "seed-1"))
    assert one["parameters"]["truth_sha256"] == other["parameters"]["truth_sha256"]
    assert one["anchors"] == other["anchors"]
    assert one["means"] != other["means"]
    assert len(list((run.parent / "embeddings/tiny/anchors").iterdir())) == 1
    text = (run.parent / "runs/tiny/seeds.md").read_text()
    assert "model against control: scaled mean: " in text
    assert text in said
    assert (run.parent / "runs/tiny/seeds.csv").read_text().startswith("entry,kind,context,metric,quantity,label,mean")

    folder = str(run.parent / "runs/tiny")
    (found,) = json.loads(told("compare", folder, "--against", "control", "--json"))
    assert found["seeds"] == [2, 2]
    assert found["b"]["entry"] == "control"
    assert {row["metric"] for row in found["rows"]} >= {"scaled mean", "pds_cosine"}
    assert "one seed: how much another training would differ" in told("compare", folder, f"{folder}/seed-1")
    told("compare", folder, "--entry", "oracle", code=2)


def test_a_pattern_keeps_all_tables_whatever_their_folders_are_called(scored_run: Path, tmp_path: Path):
    scores = read_json(scored_run.parent / "runs/tiny/scores.json")
    for place in ("a", "a/seed-1", "b", "b/seed-1", "c/crossval-5", "d/crossval-5"):
        write_json(tmp_path / place / "scores.json", scores)
    assert list(scored(f"{tmp_path}/[a]")) == ["a", "seed-1"]
    assert len(scored(f"{tmp_path}/[ab]")) == 4
    assert list(scored(f"{tmp_path}/*/crossval-5")) == [f"{tmp_path}/{one}/crossval-5" for one in "cd"]


def test_a_repeat_draws_other_weights_from_the_same_cells_and_split(run: Path):
    layouts = [Layout(load_recipe(run, [f"repeat={repeat}"])) for repeat in (0, 1, 2)]
    assert len({layout.decoder(0, "train").fingerprint for layout in layouts}) == 3
    assert len({layout.splits.fingerprint for layout in layouts}) == 1
    assert len({layout.cells.path for layout in layouts}) == 1
    assert layouts[0].recipe.drawing_seed == layouts[0].recipe.seed


def test_crossval_holds_out_every_context_with_perturbations_or_all_perturbations(run: Path):
    recipe = load_recipe(run)
    over = load_recipe(run, crossval_overrides(recipe, None, True))
    assert over.split.contexts == ["alpha", "beta", "gamma"]
    assert (over.split.hold_out, over.split.folds) == ("contexts", 3)
    assert over.run_folder == recipe.run_folder / "crossval-contexts-3"
    assert over.embeddings_folder == recipe.embeddings_folder
    over = load_recipe(run, crossval_overrides(recipe, 4, False))
    assert (over.split.hold_out, over.split.folds, over.split.contexts) == ("perturbations", 4, [])


@pytest.mark.slow
def test_two_worlds_have_cells_of_their_own_and_end_in_one_table(tmp_path: Path):
    recipe = write_recipe(tmp_path)
    said = told("run", str(recipe), "--worlds", "2", "--first-world", "7", "data.simulate.cells=30")
    folder = tmp_path / "runs/tiny-worlds"
    assert (folder / "worlds.md").read_text() in said
    content = read_json(folder / "worlds.json")
    assert content["worlds"] == ["tiny-world-7", "tiny-world-8"]
    assert {"model", "other-contexts"} <= content["entries"].keys()
    one, other = (tmp_path / f"embeddings/tiny-world-{seed}/simulated/proteins.fasta" for seed in (7, 8))
    assert one.read_bytes() != other.read_bytes()
    again = told("compare", f"{tmp_path}/runs/tiny-world-*")
    assert again == (folder / "worlds.md").read_text() + "\n"


def test_worlds_are_simulated_and_scored(run: Path):
    recipe = load_recipe(run)
    made = world_overrides(recipe, 2, 200)
    made_of = {seed: [f"seed={seed}", f"name=tiny-world-{seed}", "hub=null"] for seed in (200, 201)}
    assert made == {f"tiny-world-{seed}": overrides for seed, overrides in made_of.items()}
    for update, refusal in (
        ({"data": recipe.data.model_copy(update={"simulate": None})}, "--worlds draws simulated cells"),
        ({"split": recipe.split.model_copy(update={"hold_out": "none"})}, "nothing is scored; hold something out"),
    ):
        with pytest.raises(UserError, match=refusal):
            world_overrides(recipe.model_copy(update=update), 2, 200)


@pytest.mark.slow
def test_crossval_scores_all_folds_together(run: Path):
    said = told("crossval", str(run), "pretrain.contexts=null", "--folds", "2")
    folder = run.parent / "runs/tiny/crossval-2"
    scores = read_json(folder / "scores.json")
    assert len({one["perturbation"] for one in scores["significant"]}) == 8
    assert not any("without a truth" in note for note in scores["notes"])
    assert (folder / "fold-1/model").is_dir()
    assert "prepare: done before" in said
