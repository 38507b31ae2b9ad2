"""What a recipe on slides makes, and its stages: embed images, train, predict, score."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from vcc_fm.ground.files import fingerprint, whole_file, whole_folder, write_json
from vcc_fm.ground.hub import expanded
from vcc_fm.ground.identity import file_identity, model_identity
from vcc_fm.recipe.recipe import SlideRecipe
from vcc_fm.run.layout import SILENT_KEYS
from vcc_fm.run.outputs import Output
from vcc_fm.run.table import Stage

if TYPE_CHECKING:
    from vcc_fm.slides.data import PatchData

SCHEMA = 1
"""Raised whenever the same recipe would give other numbers."""
VECTORS = 1
"""The same of vectors of patches."""


@dataclass(frozen=True)
class SlideLayout:
    """The outputs of one recipe on slides."""

    recipe: SlideRecipe

    @cached_property
    def patches(self) -> Output:
        """The embedding store of patches."""
        from vcc_fm.encoders.images.slide import slide_files

        slides, images = self.recipe.slides, self.recipe.embed.images
        files = [[path.name, file_identity(str(path))] for path in slide_files(slides)]
        keys = slides.model_dump(mode="json", exclude={"path", "get"})
        encoder = images.model_dump(mode="json", exclude={"batch", "model"}), model_identity(images.model)
        made_from = fingerprint([SCHEMA, files, keys, ["images", VECTORS, *encoder]])
        return Output("embed images", self.recipe.embeddings_folder / "patches", made_from)

    @cached_property
    def model(self) -> Output:
        """The decoder."""
        recipe, keys = self.recipe, self.recipe.train.model_dump(mode="json", exclude=SILENT_KEYS)
        decoder, base = recipe.decoder.model_dump(mode="json"), model_identity(expanded(recipe.decoder.base))
        split = [recipe.split.model_dump(mode="json"), recipe.seed, recipe.drawing_seed]
        made_from = fingerprint([self.patches.fingerprint, split, decoder, base, keys])
        return Output("train", recipe.run_folder / "model", made_from)

    @cached_property
    def predictions(self) -> Output:
        """A long table for each sample."""
        return Output("predict", self.recipe.run_folder / "predictions", fingerprint([self.model.fingerprint]))

    @cached_property
    def scores(self) -> Output:
        """Scores, and what each nucleus gives to them."""
        path = self.recipe.run_folder / "scores.json"
        return Output("score", path, self.predictions.fingerprint, (path.with_name("nuclei.csv"),))


def embed(recipe: SlideRecipe, output: Output, console: Console) -> None:
    """Write two vectors a nucleus."""
    from vcc_fm.encoders.images.embed import embed_images
    from vcc_fm.encoders.images.slide import open_slides
    from vcc_fm.ground.processes import process_state

    slides = open_slides(recipe.slides)
    embed_images(output.path, slides, recipe.embed.images, output.fingerprint, process_state(), console)


def load(recipe: SlideRecipe, held_out: bool = True) -> PatchData:
    """The nuclei, what each is for, and what was measured in them; all to be predicted unless some are held out."""
    from vcc_fm.encoders.images.slide import open_slides
    from vcc_fm.slides.data import PatchData

    store, split = SlideLayout(recipe).patches.require(), recipe.split if held_out else None
    return PatchData(store, open_slides(recipe.slides), split, recipe.seed, recipe.train.set_size)


def train(recipe: SlideRecipe, output: Output, console: Console) -> None:
    """Train the decoder; goes on from its newest checkpoint."""
    from vcc_fm.run.train import phase_of
    from vcc_fm.slides.train import train_slides

    phase = phase_of(recipe, "train", recipe.train, recipe.decoder.base, output)
    train_slides(phase, load(recipe), recipe.run_folder / "training" / "train", output.path, console)


def predict(recipe: SlideRecipe, output: Output, console: Console) -> None:
    """Predict every held-out nucleus: a checked table for each sample."""
    from vcc_fm.ground.processes import process_state
    from vcc_fm.slides.train import tables

    if not process_state().is_main_process:
        return
    data, folder = load(recipe), SlideLayout(recipe).model.require(content=True)
    with whole_folder(output.path) as partial:
        for sample, table in tables(folder, data):
            table.to_parquet(partial / f"{sample}.parquet", index=False)
            console.print(f"predict: {sample}: {len(table):,} values", highlight=False, markup=False)


def score(recipe: SlideRecipe, output: Output, console: Console) -> None:
    """Score held-out nuclei whose expression the files hold; where they hold none, those that chose the checkpoint.

    Beside the model: the regressions that it starts from, one on colours with its values as they are, and the mean of
    the training nuclei. All are rounded as a table is.
    """
    from vcc_fm.ground.processes import process_state
    from vcc_fm.slides.model import PatchDecoder, ordered
    from vcc_fm.slides.ridge import colour_columns, fit_patches, start_of
    from vcc_fm.slides.score import score as score_entry
    from vcc_fm.slides.train import predict as predict_nuclei

    if not process_state().is_main_process:
        return
    data, held = load(recipe), "test"
    if not len(rows := data.measured(data.rows(held))):
        rows, held = data.rows("validation"), "validation"
    model = PatchDecoder.from_pretrained(SlideLayout(recipe).model.require(content=True)).to(process_state().device)
    features, genes = data.patches(rows), len(data.genes)
    predicted = {
        "model": predict_nuclei(model, data, rows),
        "start": ordered(start_of(data).predict(features)),
        "colour-ridge": fit_patches(data, colour_columns(data)).predict(features)[:, :genes],
        "mean": np.repeat(data.values(data.rows("train")).mean(axis=0)[None], len(rows), axis=0),
    }
    where, measured = data.nuclei.iloc[rows], data.values(rows)
    places = where["sample"].to_numpy(), where["region"].to_numpy()
    rounded = {entry: np.round(values.clip(min=0).astype(float), 2) for entry, values in predicted.items()}
    found = {entry: score_entry(values, measured, *places) for entry, values in rounded.items()}
    nuclei = where[["sample", "cell_id", "region"]].assign(**{entry: one.nuclei for entry, one in found.items()})
    with whole_file(output.path.with_name("nuclei.csv")) as partial:
        nuclei.to_csv(partial, index=False)
    entries = {entry: {"valid": one.valid, "samples": one.samples.to_dict("index")} for entry, one in found.items()}
    write_json(output.path, {"nuclei": held, "entries": entries})
    table = Table("entry", "spearman", "mse", "gene correlation", "", title=f"{len(rows):,} {held} nuclei")
    for entry, one in found.items():
        table.add_row(entry, *(f"{value:.4f}" for value in one.samples.iloc[-1]), "" if one.valid else "invalid")
    console.print(table)


_AT = "vcc_fm.run.slides:"
SLIDE_STAGES = [
    Stage("embed images", f"{_AT}embed", "Encode patches of nuclei.", lambda layout: [layout.patches], shared=True),
    Stage("train", f"{_AT}train", "Train the decoder.", lambda layout: [layout.model], shared=True),
    Stage("predict", f"{_AT}predict", "Predict held-out nuclei.", lambda layout: [layout.predictions]),
    Stage("score", f"{_AT}score", "Score them beside baselines.", lambda layout: [layout.scores]),
]
"""In order."""
