"""What later stages would refuse, told from labels and recipe by the checks that these stages make themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from vcc_fm.ground.errors import UserError
from vcc_fm.hub.licences import Ancestor, require_accepted
from vcc_fm.recipe.parts import CELL_ENCODERS
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.inputs import base_address
from vcc_fm.scoring.inputs import check_groups, check_measured
from vcc_fm.sources.controls import contexts_with, require_controls
from vcc_fm.splits.groups import training_groups, validation_groups
from vcc_fm.splits.split import Group, Split


@contextmanager
def collected(problems: list[str]) -> Iterator[None]:
    """Add what is refused inside to ``problems``."""
    try:
        yield
    except UserError as error:
        problems.append(str(error))


def check_split(
    recipe: Recipe,
    splits: list[Split],
    cells: dict[Group, int],
    control: str,
    pairs: list[tuple[str, str]],
    measured: dict[str, np.ndarray],
    problems: list[str],
) -> None:
    """Each phase has groups to train on, each context controls, and what is scored has cells and genes for a scale.

    Args:
        recipe: what is planned.
        splits: of all folds.
        cells: (context, perturbation) -> number of cells.
        control: label of control cells.
        pairs: (context, source) of all cells.
        measured: source -> [G] bool, genes of the axis that it measured.
        problems: what would fail is added here.
    """
    if not splits:
        return
    contexts = {context for context, _ in cells}
    with collected(problems):
        # A context that the split does not use has a profile too.
        require_controls(contexts, contexts_with(control, cells), control, "the sources")
    for split in splits:
        for name, phase in recipe.phases.items():
            with collected(problems):
                training_groups(split, phase, contexts, name)
        if recipe.predict.effect_scale == "validation":
            with collected(problems):
                validation_groups(split)
    scored = {group for split in splits for group in split.groups("test")}
    if recipe.predict.effect_scale == "validation":
        scored |= {group for split in splits for group in split.groups("validation")}
    with collected(problems):
        check_measured({context for context, _ in scored}, pairs, measured)
    scored |= {(context, control) for context, _ in scored if (context, control) in cells}
    with collected(problems):
        check_groups({group: cells[group] for group in sorted(scored)}, control, "what is scored")


def check_sharing(recipe: Recipe, problems: list[str]) -> None:
    """What the run is to share may be shared so, as far as the recipe tells."""
    hub = recipe.hub
    if hub is None:
        return
    if hub.what == "adapter":
        with collected(problems):
            base_address(recipe)
    name = recipe.embed.cells.encoder
    known = [Ancestor(name, "encoder of cells", CELL_ENCODERS[name].terms, "")]
    known += [Ancestor(one.name, "data", one.licence or "", "") for one in recipe.data.sources]
    with collected(problems):
        require_accepted(known, hub.accept_licence)


def check_processes(recipe: Recipe, processes: int, problems: list[str]) -> None:
    """The processes that take part can share the sets of an optimiser step, and tell a tracker of it."""
    for name, phase in recipe.phases.items():
        with collected(problems):
            phase.check_processes(processes, name)
        with collected(problems):
            phase.check_tracker(name)
