"""A run's predictions as a challenge takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.store.cells import CellStore
from vcc_fm.submission.challenge import Inputs, Progresses, challenge_named
from vcc_fm.submission.submit import GB


def write(
    recipe: Recipe,
    name: str,
    predictor: str,
    genes: Path,
    perturbations: Path,
    contexts: list[str] | None,
    output: Path | None,
    memory_gb: float,
    progress: Progresses,
) -> dict[str, Any]:
    """Write the archive of a challenge from a run's predictions.

    Args:
        recipe: of the run.
        name: of the challenge.
        predictor: ``model``, or a baseline of the recipe.
        genes: the platform's gene axis.
        perturbations: its list of perturbations.
        contexts: that the archive must cover; None: as the challenge finds them.
        output: the archive; None: beside the predictions.
        memory_gb: that the challenge's own program may take.
        progress: of the steps.

    Returns:
        What the challenge tells of its file, and ``notes`` for the user, a line each.

    Raises:
        UserError: there is no such challenge or predictor, the run has not made the predictions, or the platform would
            refuse them.
    """
    kind, layout = challenge_named(name), Layout(recipe)
    if predictor not in (known := ["model", *recipe.score.baselines]):
        raise UserError(f"--predictor {predictor}: the recipe predicts by {', '.join(known)}")
    layout.predictions.require()
    path = layout.prediction(predictor)
    inputs = Inputs(path, lambda: CellStore(layout.cells.require()), genes, perturbations, contexts)
    challenge = kind(inputs)
    place = output or path.with_suffix(f".{name}{challenge.suffix}")
    result = challenge.write(place, memory_gb * GB, progress)
    return result | {"notes": [*challenge.notes, f"next: {challenge.next}"]}
