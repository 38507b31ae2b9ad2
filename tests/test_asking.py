"""Asking for cells: a panel in contexts with controls only, measured or not; what is scored, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import anndata
import numpy as np
import pytest
from challenge import CONTEXTS, Challenge, write_challenge
from rich.console import Console

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import read_json
from vcc_fm.prediction.asking import Asked, asked_for, read_perturbations, with_known_targets
from vcc_fm.recipe.predict import AskConfig, PredictConfig
from vcc_fm.recipe.read import load_recipe
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.plan import make_plan
from vcc_fm.run.stages import run_stage, stages_of
from vcc_fm.run.submission import write
from vcc_fm.splits.split import Split

CONTROL = "ntc"


def split(hold_out: str = "perturbations", fold: int = 0, **roles: str) -> Split:
    """Groups ``K_x="test"`` of 5 cells each."""
    groups = {tuple(name.split("_")): role for name, role in roles.items()}
    return Split(hold_out, fold, 1, 0, groups, dict.fromkeys(groups, 5), [])


SPLIT = split(K_x="train", K_y="test", L_x="validation", L_z="unused")
SIZES = {**dict.fromkeys(SPLIT.roles, 5), ("K", CONTROL): 9, ("L", CONTROL): 9, ("new", CONTROL): 9}


def ask(*asks: dict, splits=(SPLIT,), cells="measured"):
    config = PredictConfig(ask=[AskConfig(**one) for one in asks] or [AskConfig()], cells=cells)
    return asked_for(config, list(splits), SIZES, CONTROL, "+")


def test_held_out_groups_are_asked_of_the_fold_that_holds_them_out():
    folds = [split(K_x="test", K_y="train"), split(fold=1, K_x="validation", K_y="test")]
    found = ask(splits=folds)
    assert found.groups == found.truth == [Asked(0, "K", "x", 5), Asked(1, "K", "y", 5)]
    assert found.notes == []
    assert ask(cells=7).groups == [Asked(0, "K", "y", 7)]
    assert ask({"cells": 3}, cells=7).groups == [Asked(0, "K", "y", 3)]


def test_a_combination_is_one_perturbation_whatever_the_order_of_its_genes():
    """Labels of a store are in alphabetical order; another order would be asked for as what was never measured."""
    splits = (split(**{"K_x": "train", "K_x+y": "test"}),)
    turned = ask({"perturbations": ["y+x"], "contexts": ["K"], "cells": 3}, splits=splits)
    assert turned.truth == [Asked(0, "K", "x+y", 3)]
    with pytest.raises(UserError, match="two labels mean the same target genes"):
        ask({"perturbations": ["y+x", "x+y"]}, splits=splits)


def test_only_what_was_held_out_has_a_truth_and_the_rest_is_told():
    found = ask({}, {"perturbations": ["x", "z", "nowhere"], "cells": 4})
    assert len(found.groups) == 1 + 3 * 3
    assert found.truth == [Asked(0, "K", "y", 5), Asked(0, "L", "z", 4)]
    assert Asked(0, "new", "nowhere", 4) in found.groups
    untold = "\n".join(found.notes)
    assert "6 asked groups were not measured in that context" in untold
    assert "2 asked groups were trained on" in untold


def test_the_first_of_two_asks_counts():
    found = ask({"perturbations": ["y"], "cells": 4, "contexts": ["K"]}, {})
    assert found.groups == [Asked(0, "K", "y", 4)]
    assert any("asked for twice" in note for note in found.notes)


@pytest.mark.parametrize(
    ("asks", "refusal"),
    [
        ([{"perturbations": ["x"], "contexts": ["nw"]}], r"ask\[0\].contexts: no control cells of 'nw'.*mean new"),
        ([{}, {"perturbations": [CONTROL], "cells": 3}], r"ask\[1\].perturbations: ntc is the control"),
        ([{"perturbations": ["nowhere"]}], r"nowhere was not measured in K.*give predict.ask\[0\].cells"),
        ([{"perturbations": ["x"], "contexts": ["K"]}], r"nothing that was held out is asked for.*hold_out=none"),
    ],
)
def test_what_cannot_be_asked_is_refused(asks, refusal):
    with pytest.raises(UserError, match=refusal):
        ask(*asks)


def test_without_a_truth_nothing_needs_to_be_held_out():
    found = ask({"perturbations": ["x"], "contexts": ["new"], "cells": 2}, splits=[split("none", K_x="train")])
    assert found.groups == [Asked(0, "new", "x", 2)]
    assert found.truth == []


def test_target_genes_without_a_vector_are_refused_predicted_as_any_other_or_left_out():
    found = ask({}, {"perturbations": ["x+q"], "cells": 2, "contexts": ["new"]})
    known = {"x", "y"}
    with pytest.raises(UserError, match="1 target genes have no protein vector: q"):
        with_known_targets(found, known, "+", "refuse")
    learned = with_known_targets(found, known, "+", "learned")
    assert learned.groups == found.groups
    assert (
        "1 target gene without a protein vector and without training cells (q): predicted as any other"
        in learned.notes
    )
    dropped = with_known_targets(found, known, "+", "drop")
    assert dropped.groups == dropped.truth == [Asked(0, "K", "y", 5)]
    assert "1 group left out" in dropped.notes[-1]
    assert with_known_targets(found, {*known, "q"}, "+", "refuse") == found


def test_a_challenges_file_is_read_with_its_numbers_and_without_its_control(tmp_path, real_data):
    panel = read_perturbations(real_data / "vcc2025/pert_counts_Validation.csv", "non-targeting")
    assert len(panel) == 50
    assert panel["SH3BP4"] == 2925
    everything = read_perturbations(real_data / "vcc2025/vcc2025_H1_all_targets_ncells.csv", "non-targeting")
    assert len(everything) == 300
    file = tmp_path / "names.csv"
    file.write_bytes("\ufefftarget_gene\r\nTP53\r\nKLF1\r\n".encode())
    assert read_perturbations(file, "x") == {"TP53": None, "KLF1": None}


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("gene\nTP53\n", "no column target_gene or perturbation or pert.*found 'gene'"),
        ("", "found nothing"),
        ("target_gene\nTP53\nTP53\n", "'TP53' stands twice"),
        ("target_gene,n_cells\n,4\nx,5\n", "names no perturbation in its column target_gene"),
        ("target_gene,n_cells\nTP53,-4\n", "n_cells of TP53 is '-4'"),
        ("target_gene,n_cells\nTP53,many\n", "n_cells of TP53 is 'many'"),
    ],
)
def test_a_file_of_perturbations_that_is_none_is_refused(tmp_path, text, refusal):
    file = tmp_path / "panel.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=refusal):
        read_perturbations(file, "x")
    with pytest.raises(UserError, match="no such file"):
        read_perturbations(tmp_path / "absent.csv", "x")


# -------------------------------------------------------------------------------------------------------- a challenge
def run(recipe: Recipe) -> str:
    said = io.StringIO()
    for stage in stages_of(recipe):
        run_stage(stage, recipe, Console(file=said, width=200))
    return said.getvalue()


@pytest.fixture(scope="module")
def challenge(tmp_path_factory: pytest.TempPathFactory) -> Challenge:
    return write_challenge(tmp_path_factory.mktemp("challenge"))


def challenge_controls(challenge: Challenge, context: str) -> int:
    return anndata.read_h5ad(challenge.folder / f"{context}.h5ad", backed="r").n_obs


def test_a_panel_is_predicted_in_contexts_with_controls_alone_and_the_official_programs_take_it(challenge: Challenge):
    for package in ("vcc", "cell_eval"):
        pytest.importorskip(package, reason="needs the challenges' programs: pip install -e '.[submit]'")
    recipe = load_recipe(challenge.recipe)
    plan = make_plan(recipe, 1)
    assert plan["problems"] == []
    assert plan["asked"]["cells"] == 3 * 10 * 6
    assert plan["asked"]["scored"] == 0
    assert [stage.name for stage in stages_of(recipe)][-1] == "predict"
    said = run(recipe)
    assert "30 asked groups were not measured in that context" in said
    for name in ("predictions.h5ad", "baselines/mean-response.h5ad"):
        predicted = anndata.read_h5ad(recipe.run_folder / name)
        assert list(predicted.var_names) == challenge.genes
        found = predicted.obs.groupby(["context", "perturbation"], observed=True).size()
        assert found.to_dict() == {(context, label): 6 for context in CONTEXTS for label in challenge.panel}
        assert (np.asarray(predicted.X.sum(axis=1)) > 0).all()
    for name, contexts in (("vcc2026", None), ("vcc2025", ["B"])):
        lists = (challenge.folder / "gene_names.csv", challenge.folder / "pert_counts.csv")
        made = write(recipe, name, "model", *lists, contexts, None, 4.0, lambda step: lambda done, total: None)
        assert made["accepted"], made["said"]
        controls = 0 if name == "vcc2026" else (challenge_controls(challenge, "B"))
        assert made["cells"] == 10 * 6 * (3 if name == "vcc2026" else 1) + controls
    assert not (recipe.run_folder / "truth.h5ad").exists()
    assert read_json(recipe.run_folder / "prediction.json")["scored"] == 0


@pytest.mark.slow
def test_what_was_held_out_is_scored_beside_a_panel_that_has_no_truth(challenge: Challenge):
    panel = {"contexts": ["A"], "perturbations": challenge.panel[:3], "cells": 5}
    recipe = load_recipe(
        challenge.recipe,
        [
            "name=both",
            "split={hold_out: contexts, contexts: [screen2], validation: 0.2}",
            f"predict.ask=[{{}}, {panel}]",
        ],
    )
    said = run(recipe)
    assert "predicted without a truth, and not scored: 3 groups (A/" in " ".join(said.split())
    truth = anndata.read_h5ad(recipe.run_folder / "truth.h5ad")
    assert set(truth.obs["context"]) == {"screen2"}
    assert {row["context"] for row in read_json(recipe.run_folder / "scores.json")["rows"]} == {"screen2"}


def test_another_panel_is_another_prediction_and_no_other_training(challenge: Challenge, tmp_path: Path):
    from vcc_fm.run.layout import Layout

    panel = tmp_path / "panel.csv"
    before, after = [], []
    for found, text in ((before, "target_gene\nA\n"), (after, "target_gene\nB\n")):
        panel.write_text(text)
        layout = Layout(load_recipe(challenge.recipe, [f"predict.ask=[{{perturbations: {panel}, cells: 4}}]"]))
        found += [layout.predictions.fingerprint, layout.decoder(0, "train").fingerprint]
    assert before[0] != after[0]
    assert before[1] == after[1]
