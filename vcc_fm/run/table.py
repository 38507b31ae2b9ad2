"""The table of stages.

A stage of your own is a function that makes an output, and one line that adds it here:

    STAGES.append(Stage("mine", make, "Say what it makes.", lambda layout: [my_output(layout.recipe)]))

What a stage is made of is imported when it runs: a command need not wait for torch to show its help.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from vcc_fm.run.outputs import Output


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        name: as on the command line.
        made_by: makes one of its outputs: a function of recipe, output and console, or ``module:function``. Every
            process that takes part calls it, and it returns when the output is whole.
        help: what it does, for the command line.
        outputs: what it makes of a recipe; nothing where the recipe does not ask for this stage.
        shared: whether `--processes` share the work.
        on_cpu: whether it leaves a GPU alone; there may be more processes than GPUs then.
        asked_by: the key of the recipe that asks for it, where not every recipe does.
    """

    name: str
    made_by: str | Callable[[Any, Output, Console], None]
    help: str
    outputs: Callable[[Any], list[Output]]
    shared: bool = False
    on_cpu: bool = False
    asked_by: str = ""

    def faults(self, layout: Any) -> list[tuple[Output, str]]:
        """The outputs that are not there, whole and made from the recipe as it is now, and why."""
        return [(output, fault) for output in self.outputs(layout) if (fault := output.fault())]

    def make(self, recipe: Any, output: Output, console: Console) -> None:
        """Make one output."""
        made_by = self.made_by
        if isinstance(made_by, str):
            module, _, function = made_by.partition(":")
            made_by = getattr(importlib.import_module(module), function)
        made_by(recipe, output, console)


STAGES = [
    Stage(
        "prepare",
        "vcc_fm.run.prepare:prepare",
        "Check the sources and write the cell store.",
        lambda layout: [layout.cells],
        shared=True,
        on_cpu=True,
    ),
    Stage(
        "embed proteins",
        "vcc_fm.run.embed:embed_proteins",
        "Encode the protein sequences of the target genes.",
        lambda layout: [layout.proteins],
    ),
    Stage("embed cells", "vcc_fm.run.embed:embed_cells", "Encode the cells.", lambda layout: [layout.cell_embeddings]),
    Stage(
        "split",
        "vcc_fm.run.split:split",
        "Write which groups train, validate and test.",
        lambda layout: [layout.splits],
    ),
    Stage(
        "train",
        "vcc_fm.run.train:train",
        "Train the decoder; goes on from the newest checkpoint.",
        lambda layout: layout.decoders,
        shared=True,
    ),
    Stage(
        "calibrate",
        "vcc_fm.run.calibrate:calibrate",
        "Choose the effect scale on the validation split.",
        lambda layout: layout.calibrations,
        asked_by="predict.effect_scale=validation",
    ),
    Stage(
        "predict",
        "vcc_fm.run.predict:predict",
        "Predict the held-out perturbations.",
        lambda layout: [layout.predictions],
        shared=True,
    ),
    Stage(
        "score",
        "vcc_fm.run.score:score",
        "Score the predictions beside baselines and ceiling.",
        lambda layout: layout.score_tables,
        asked_by="split.hold_out",
    ),
    Stage(
        "push",
        "vcc_fm.run.push:push",
        "Share model, stores or predictions on the Hugging Face Hub.",
        lambda layout: layout.pushes,
        asked_by="hub",
    ),
]
"""In order."""
