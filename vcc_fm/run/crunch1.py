"""The challenge's code interface: ``from vcc_fm.run.crunch1 import infer, train`` is a submission's main.py.

The recipe lies in the model's folder, as ``recipe.yaml``, and so does a vision model that it names: the challenge's
machines have no network. Its keys ``slides.path`` and ``output`` are set here.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pandas as pd
from rich.console import Console

from vcc_fm.recipe.read import load_any
from vcc_fm.recipe.recipe import SlideRecipe
from vcc_fm.run.slides import SLIDE_STAGES, load
from vcc_fm.run.stages import run_stage


def train(data_directory_path: str, model_directory_path: str) -> None:
    """Embed all slides of a folder, and train on them.

    Args:
        data_directory_path: holds the slides, ``SAMPLE.zarr``.
        model_directory_path: holds ``recipe.yaml``; stores and the model are written there.
    """
    recipe = _recipe(f"{data_directory_path}/*.zarr", model_directory_path, model_directory_path)
    for stage in SLIDE_STAGES[:2]:
        run_stage(stage, recipe, Console())


def infer(data_file_path: str, model_directory_path: str) -> pd.DataFrame:
    """The checked table of one slide: sample, cell_id, gene, prediction.

    Args:
        data_file_path: of the slide; its name is the sample's.
        model_directory_path: as ``train`` left it.
    """
    from vcc_fm.slides.train import tables

    model = _recipe(data_file_path, model_directory_path, model_directory_path).run_folder / "model"
    with tempfile.TemporaryDirectory() as folder:
        recipe = _recipe(data_file_path, model_directory_path, folder)
        run_stage(SLIDE_STAGES[0], recipe, Console())
        ((_, table),) = tables(model, load(recipe, held_out=False))
        return table


def _recipe(slides: str, model: str, output: str) -> SlideRecipe:
    recipe = load_any(Path(model) / "recipe.yaml", [f"slides.path={slides}", f"output={output}"])
    assert isinstance(recipe, SlideRecipe)
    return recipe
