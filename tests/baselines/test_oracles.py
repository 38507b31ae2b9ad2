"""Oracles: what each knows of the truth, that nothing else knows any, and that they stand above all rungs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from program import TINY
from rich.console import Console
from test_imports import arrows, modules

from vcc_fm.baselines.oracles import Oracle, OracleDirection, OracleMean, OracleSize
from vcc_fm.ground.errors import UserError
from vcc_fm.prediction.calibrate import validation_table
from vcc_fm.recipe.parts import BASELINES
from vcc_fm.recipe.read import load_recipe
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.load import describe_counts, load_dataset
from vcc_fm.run.stages import run_stage, stage_named
from vcc_fm.sources.truth import FILE, read_truth

WORLD = {
    "data": {"simulate": {"contexts": ["alpha", "beta", "gamma"], "perturbations": 16, "genes": 100, "cells": 40,
                          "controls": 240}},
    "split": {"hold_out": "few-shot", "contexts": ["gamma"], "test": 2, "validation": 0.8},
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A simulated world up to its split."""
    folder = tmp_path_factory.mktemp("world")
    recipe = Recipe.model_validate({**TINY, **WORLD, "seed": 200, "output": str(folder)})
    for name in ("prepare", "embed proteins", "embed cells", "split"):
        run_stage(stage_named(name, recipe), recipe, Console(quiet=True))
    return recipe


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def test_each_knows_its_part_of_the_truth(world: Recipe) -> None:
    data = load_dataset(world, 0)
    truth = read_truth(data.cells.folder)
    one, two, three = OracleMean(data), OracleDirection(data), OracleSize(data)
    elsewhere = BASELINES["other-contexts"](data)
    effects = 0
    for context, label in data.split.groups("validation"):
        true, seen = truth.of(context, label), elsewhere.log_ratio(context, label)
        beside = np.array(data.cells.genes) != label
        np.testing.assert_array_equal(one.log_ratio(context, label), true)
        directed, sized = two.log_ratio(context, label), three.log_ratio(context, label)
        assert directed[~beside] == true[~beside]
        assert sized[~beside] == seen[~beside]
        assert rms(sized[beside]) == pytest.approx(rms(true[beside]) if seen[beside].any() else 0.0, rel=1e-5)
        if true[beside].any():
            effects += 1
            assert rms(directed[beside]) == pytest.approx(rms(seen[beside]), rel=1e-5)
            assert np.corrcoef(directed[beside], true[beside])[0, 1] == pytest.approx(1.0, abs=1e-6)
            assert np.corrcoef(sized[beside], seen[beside])[0, 1] == pytest.approx(1.0, abs=1e-6)
        else:
            assert not directed[beside].any()
    assert effects > 5


@pytest.mark.slow
def test_the_true_mean_stands_above_everything(world: Recipe) -> None:
    data = load_dataset(world, 0)
    names = ["other-contexts", "oracle-direction", "oracle-mean"]
    uns = describe_counts(world, data)

    def no_decoder() -> Path:
        raise AssertionError

    table = validation_table(
        data, no_decoder, names, (1.0,), "vcc2026", world.predict, world.seed, uns, Console(quiet=True)
    )
    means = {name: table.mean(f"{name} 1") for name in names}
    assert max(means, key=means.__getitem__) == "oracle-mean"
    assert means["oracle-direction"] > means["other-contexts"] + 0.1
    assert means["oracle-mean"] > 0.7


def test_nothing_else_reads_the_truth(world: Recipe, tmp_path: Path) -> None:
    """Neither by import, nor when it runs: with another truth all else predicts the same."""
    readers = {name for name, others in arrows(modules()).items() if "vcc_fm.sources.truth" in others}
    assert readers == {
        "vcc_fm.sources.simulate", "vcc_fm.sources.simulated_screen", "vcc_fm.baselines.oracles", "vcc_fm.run.layout"
    }  # fmt: skip
    naming = [name for name, file in modules().items() if FILE in file.read_text(encoding="utf-8")]
    assert sorted(naming) == ["vcc_fm.sources.simulate", "vcc_fm.sources.truth"]
    shutil.copytree(Layout(world).recipe.embeddings_folder, tmp_path / "embeddings/tiny")
    shutil.copytree(Layout(world).recipe.run_folder, tmp_path / "runs/tiny")
    (tmp_path / "embeddings/tiny/simulated" / FILE).write_bytes(b"no truth")
    other = world.model_copy(update={"output": str(tmp_path)})
    one, two = load_dataset(world, 0), load_dataset(other, 0)
    group = one.split.groups("test")[0]
    rungs = [name for name in BASELINES.names() if BASELINES[name].cell_encoders is None]
    assert {name for name in rungs if BASELINES[name].oracle} == {"oracle-mean", "oracle-direction", "oracle-size"}
    for name in rungs:
        if not BASELINES[name].oracle:
            np.testing.assert_array_equal(*(BASELINES[name](data).log_ratio(*group) for data in (one, two)))
        else:
            with pytest.raises(UserError, match=r"truth\.npz is not readable as the truth of a simulation"):
                BASELINES[name](two).log_ratio(*group)


def test_oracles_are_refused_where_there_is_no_truth(world: Recipe, tmp_path: Path) -> None:
    recipe = tmp_path / "files.yaml"
    recipe.write_text(
        "name: files\ntrain: {steps: 1}\nsplit: {hold_out: perturbations}\nscore: {baselines: [oracle-size]}\n"
        "data: {sources: [{name: one, path: one.h5ad, perturbation_column: gene, context: K562}]}\n"
    )
    with pytest.raises(UserError, match=r"score\.baselines: oracle-size knows the truth, which only simulated cells"):
        load_recipe(recipe)
    with pytest.raises(UserError, match=r"truth\.npz: no such file; oracles know simulated cells only"):
        read_truth(tmp_path)


def test_the_truth_of_other_cells_is_refused(world: Recipe, tmp_path: Path) -> None:
    data = load_dataset(world, 0)
    oracle: Oracle = OracleMean(data)
    place = data.cells.folder.parent / "simulated" / FILE
    before = place.read_bytes()
    try:
        held = dict(np.load(place))
        held["sha256"] = np.array(["0" * 64] * 3)
        np.savez(place, **held)
        with pytest.raises(UserError, match="its cells are not those whose truth lies beside them"):
            oracle.log_ratio(*data.split.groups("test")[0])
    finally:
        place.write_bytes(before)
