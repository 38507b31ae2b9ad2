"""What a run shares: its model with all that predicting needs, from the stages' outputs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.decoder.adapter import load_adapter
from vcc_fm.decoder.load import WEIGHTS, load_decoder
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import read_json
from vcc_fm.ground.hub import Address, pull
from vcc_fm.hub.bundle import What, write_bundle
from vcc_fm.recipe.read import load_recipe
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.inputs import base_address
from vcc_fm.run.layout import Layout
from vcc_fm.run.load import load_dataset
from vcc_fm.run.outputs import Output


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, or of one of its folds, whose decoder is trained."""
    return (folder / "model" / "recipe.json").is_file()


def share_run(run: Path, folder: Path) -> None:
    """Write the model of a run, from its folder alone, as a shared model into ``folder``.

    Args:
        run: folder of the run, or of one of its folds; its embeddings lie where they were made.
        folder: empty.

    Raises:
        UserError: the run is not there, or its stages belong to different recipes.
    """
    if not is_run(run):
        raise UserError(f"{run}: no shared model, and no run whose decoder is trained")
    run = run.resolve()
    number = re.fullmatch(r"fold-(\d+)", run.name)
    home = run.parent if number else run
    recipe = load_recipe(run / "model" / "recipe.json", [f"output={home.parents[1]}"])
    fold = int(number[1]) if number else 0
    if recipe.split.folds > 1 and not number:
        raise UserError(f"{run}: has {recipe.split.folds} folds, a model each; name one, such as {run / 'fold-0'}")
    # The recipe's sources need not be here: whether the stages belong together is asked of what they wrote.
    data = load_dataset(recipe, fold, lambda output: output.path)
    config = read_json(run / "model" / "config.json")
    for side, store in (("cell", data.cell_vectors), ("protein", data.protein_vectors)):
        if config[f"{side}_encoder"]["fingerprint"] != store.fingerprint:
            raise UserError(
                f"{run}: its decoder was trained on other {side} vectors than {store.folder}; train it again"
            )
    # Here a checkpoint is found where the recipe has it.
    cells = recipe.embed.cells
    settings = None if cells.encoder == "store" else cells.model_dump(mode="json")
    share(recipe, data, folder, "merged", 100, lambda output: output.path, settings)


def share(
    recipe: Recipe,
    data: Dataset,
    folder: Path,
    what: What,
    controls: int,
    finished: Callable[[Output], Path] = Output.require,
    settings: dict[str, Any] | None = None,
) -> None:
    """Write the model of a fold as a shared model into an empty folder.

    Args:
        recipe: of the run.
        data: of the fold.
        folder: where it goes.
        what: merged weights, or the adapter.
        controls: control cells of each context that are shared, at most.
        finished: the path of what a stage has made, or a refusal.
        settings: of the cell encoder, where not those of the cell vectors.

    Raises:
        UserError: a stage is missing; an adapter is asked for and there is none, or its base has no address.
    """
    layout, fold, scale = Layout(recipe), data.split.fold, recipe.predict.effect_scale
    if scale == "validation":
        scale = float(read_json(finished(layout.calibration(fold)))["effect_scale"]["model"])
    base, model = ("", ""), finished(layout.decoder(fold, "train"))
    if what == "adapter":
        # At its commit: what stands on a branch may be another base tomorrow.
        repo, revision = base_address(recipe)
        base = repo, pull(Address(repo, "model", revision), WEIGHTS)[1]
    write_bundle(
        folder,
        model,
        data,
        name=recipe.name,
        seed=recipe.drawing_seed,
        effect_scale=scale,
        predict=recipe.predict,
        what=what,
        base=base,
        controls=controls,
        settings=settings,
    )
    if what == "adapter":
        _check_base(folder, base, load_decoder(model))


def _check_base(folder: Path, base: tuple[str, str], trained: PerturbationDecoder) -> None:
    """See that an adapter on its base is the model that was trained.

    Raises:
        UserError: it is not.
    """
    found, wanted = load_adapter(folder, *base).state_dict(), trained.state_dict()
    if any(not torch.allclose(found[name], value, rtol=1e-5, atol=1e-6) for name, value in wanted.items()):
        raise UserError(
            f"hub.what=adapter: on {base[0]} as it is now ({base[1][:12]}) the adapter is another model than was "
            "trained; name the revision it was trained on (decoder.revision), or share the merged model"
        )
