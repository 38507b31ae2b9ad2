"""Which groups a phase trains on and validates on, and what is refused of them; a plan asks before anything runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.words import many
from vcc_fm.recipe.train import TrainConfig
from vcc_fm.splits.split import Group, Split


def training_groups(split: Split, config: TrainConfig, contexts: Iterable[str], name: str) -> list[Group]:
    """The training groups in the contexts of a phase.

    Args:
        split: of one fold.
        config: of the phase.
        contexts: those of the cells.
        name: of the phase, which is its section in the recipe.

    Raises:
        UserError: the recipe names a context that no cell has; nothing is left to train on; a weight is given to what
            no training group has.
    """
    known = sorted(contexts)
    chosen = known if config.contexts is None else config.contexts
    if unknown := sorted(set(chosen) - set(known)):
        raise UserError(f"{name}.contexts: there is no context {', '.join(unknown)}; there are {', '.join(known)}")
    groups = [group for group in split.groups("train") if group[0] in chosen]
    if not groups:
        raise UserError(
            f"{name}.contexts={chosen}: the split leaves nothing to train on there; name others, or hold out less"
        )
    for place, (what, given) in enumerate(
        (("context", config.context_weights), ("perturbation", config.perturbation_weights))
    ):
        if lost := sorted(given.keys() - {group[place] for group in groups}):
            raise UserError(
                f"{name}.{what}_weights: no training group of fold {split.fold} has the {what} {', '.join(lost)}; "
                "take it out"
            )
    return groups


def validation_groups(split: Split) -> list[Group]:
    """The groups that the effect scale is chosen by.

    Raises:
        UserError: there are none.
    """
    groups = split.groups("validation")
    if not groups:
        raise UserError(
            "predict.effect_scale=validation needs validation groups, the split has none; give a number, or raise "
            "split.validation"
        )
    return groups


def trained_on(groups: Iterable[Group], before: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Context -> perturbations of what trained a decoder: ``groups``, and those of what it started from."""
    found = {context: set(labels) for context, labels in before.items()}
    for context, label in groups:
        found.setdefault(context, set()).add(label)
    return {context: sorted(labels) for context, labels in sorted(found.items())}


def seen_before(held_out: Collection[Group], trained: Mapping[str, list[str]]) -> list[str]:
    """A warning where what a decoder started from was trained on held-out groups; ``trained`` as of its config."""
    known = {context: set(labels) for context, labels in trained.items()}
    seen = sorted((context, label) for context, label in held_out if label in known.get(context, ()))
    if not seen:
        return []
    return [
        f"the base was trained on {len(seen)} of {many(len(held_out), 'held-out group')}, such as {seen[0][1]} in "
        f"{seen[0][0]}: their scores do not show what the model can predict"
    ]
