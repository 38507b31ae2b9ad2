"""Genes whose proteins stand under another name, under two, or under none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.decoder.build import build_decoder
from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.read import load_recipe
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.load import load_dataset
from vcc_fm.run.plan import make_plan
from vcc_fm.run.stages import run_stage, stages_of

QUIET = Console(quiet=True)


@pytest.fixture
def renamed(tiny_run: Recipe, tmp_path: Path) -> Callable[..., Recipe]:
    """The tiny screen with a FASTA in which the first three targets have other names, and a table that knows them.

    The first is found under a new name, the second has two candidates, the third has no protein.
    """
    first, second, third = targets(tiny_run)[:3]
    text = (Layout(tiny_run).simulated / "proteins.fasta").read_text()
    entries = dict(entry.split("\n", 1) for entry in text.split(">")[1:])
    entries["NEW1"], entries["NEW2"], entries["NEW3"] = entries.pop(first), entries.pop(second), entries.pop(third)
    (tmp_path / "p.fasta").write_text("".join(f">{name}\n{body}" for name, body in entries.items()))
    rows = [("NEW1", first, ""), ("NEW2", second, ""), ("NEW3", "", second), *((name, "", "") for name in entries)]
    table = ["hgnc_id\tsymbol\tstatus\tprev_symbol\talias_symbol"]
    table += [f"HGNC:{i}\t{new}\tApproved\t{old}\t{alias}" for i, (new, old, alias) in enumerate(dict.fromkeys(rows))]
    (tmp_path / "hgnc.txt").write_text("\n".join(dict.fromkeys(table)) + "\n")
    path = tmp_path / "r.json"

    def make(pins: dict[str, str] | None = None, **proteins: object) -> Recipe:
        content = tiny_run.model_dump(mode="json")
        content["output"] = str(tmp_path)
        content["data"]["names"] = {"symbols": str(tmp_path / "hgnc.txt"), "pins": pins or {}}
        content["embed"]["proteins"] |= {"fasta": str(tmp_path / "p.fasta"), **proteins}
        path.write_text(json.dumps(content))
        return load_recipe(path)

    return make


def targets(recipe: Recipe) -> list[str]:
    return sorted({label for _, label in load_dataset(recipe, 0).split.roles})


def prepared(recipe: Recipe) -> Dataset:
    for stage in stages_of(recipe):
        if stage.name == "train":
            break
        run_stage(stage, recipe, QUIET)
    return load_dataset(recipe, 0)


def test_a_protein_is_found_under_its_new_name(tiny_run: Recipe, renamed: Callable[..., Recipe]) -> None:
    first = targets(tiny_run)[0]
    plain, data = load_dataset(tiny_run, 0), prepared(renamed(missing="learned"))
    np.testing.assert_array_equal(
        data.protein_vectors.vectors[data.protein_rows[first]],
        plain.protein_vectors.vectors[plain.protein_rows[first]],
    )
    report = json.loads(Layout(renamed(missing="learned")).splits.path.read_text())
    assert report["targets"]["other name"][first] == {"found": "NEW1", "how": "approved"}


def test_an_ambiguous_name_is_reported_and_never_guessed(tiny_run: Recipe, renamed: Callable[..., Recipe]) -> None:
    _, second, third = targets(tiny_run)[:3]
    data = prepared(renamed(missing="learned"))
    assert second not in data.protein_rows
    decoder, _ = build_decoder(renamed(missing="learned").decoder, data, "scratch", 0)
    assert decoder.config.learned_targets == [second, third]
    report = json.loads(Layout(renamed(missing="learned")).splits.path.read_text())
    assert report["targets"]["ambiguous"] == {second: ["NEW2", "NEW3"]}
    assert report["targets"]["missing"] == [third]


def test_a_pin_settles_it(tiny_run: Recipe, renamed: Callable[..., Recipe]) -> None:
    _, second, third = targets(tiny_run)[:3]
    plain, data = load_dataset(tiny_run, 0), prepared(renamed(missing="learned", pins={second: "NEW3"}))
    np.testing.assert_array_equal(
        data.protein_vectors.vectors[data.protein_rows[second]],
        plain.protein_vectors.vectors[plain.protein_rows[third]],
    )


def test_training_without_a_vector_is_refused(tiny_run: Recipe, renamed: Callable[..., Recipe]) -> None:
    _, second, third = targets(tiny_run)[:3]
    recipe = renamed()
    data = prepared(recipe)
    with pytest.raises(
        UserError, match=rf"2 target genes have no protein vector: {second}, {third}; .*learned .* or drop"
    ):
        build_decoder(recipe.decoder, data, "scratch", 0)
    (problem,) = make_plan(recipe, 1)["problems"]
    assert f"2 target genes have no protein vector: {second}, {third}" in problem


def test_dropped_perturbations_are_in_no_role(tiny_run: Recipe, renamed: Callable[..., Recipe]) -> None:
    _, second, third = targets(tiny_run)[:3]
    recipe = renamed(missing="drop")
    data = prepared(recipe)
    assert {label for _, label in data.split.roles} == set(targets(tiny_run)) - {second, third}
    decoder, _ = build_decoder(recipe.decoder, data, "scratch", 0)
    assert decoder.config.learned_targets == []
    assert make_plan(recipe, 1)["problems"] == []


def test_an_odd_protein_is_refused_where_a_target_or_a_gene_of_the_axis_needs_it(
    tiny_run: Recipe, renamed: Callable[..., Recipe], tmp_path: Path
) -> None:
    fasta, first = tmp_path / "p.fasta", targets(tiny_run)[0]
    axis = sorted(set(load_dataset(tiny_run, 0).cells.genes) - set(targets(tiny_run)))[0]
    recipe = renamed(missing="learned")
    sound = fasta.read_text()

    def with_odd(symbol: str) -> str:
        return "".join(f">{entry}" for entry in sound.split(">")[1:] if not entry.startswith(f"{symbol}\n")) + (
            f">{symbol}\nMK*L\n"
        )

    fasta.write_text(sound + ">UNRELATED\nMKT*LLV\n>EMPTY\n\n>LAST\nMAAA\n")
    assert make_plan(recipe, 1)["problems"] == []
    prepared(recipe)
    # A target is asked for under an old name of the entry's gene.
    for name, symbol in (("NEW1", first), (axis, axis)):
        fasta.write_text(with_odd(name))
        message = rf"1 of the .* have no sound protein \({symbol}: entry \d+ \({name}\): '\*' at residue 3 stands for"
        (problem,) = make_plan(recipe, 1)["problems"]
        assert re.search(message, problem)
        with pytest.raises(UserError, match=message):
            prepared(recipe)
        # The gene has another protein: nobody needs the odd one.
        fasta.write_text(with_odd(name) + f">{name} 2\nMKL\n")
        assert make_plan(recipe, 1)["problems"] == []
