"""What later stages would refuse, told from labels and recipe: training phases, controls, what is scored."""

from __future__ import annotations

from vcc_fm.cellsets.split import Group, Split
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.recipe.train import TrainConfig


def _phases(recipe: Recipe) -> list[tuple[str, TrainConfig]]:
    phases = (("pretrain", recipe.pretrain), ("train", recipe.train))
    return [(name, phase) for name, phase in phases if phase is not None]


def check_phases(recipe: Recipe, splits: list[Split], contexts: list[str], problems: list[str]) -> None:
    """Each training phase has groups to train on, weights are of such groups, and calibration has groups to use."""
    for name, phase in _phases(recipe):
        chosen = contexts if phase.contexts is None else phase.contexts
        unknown = sorted(set(chosen) - set(contexts))
        if unknown:
            problems.append(
                f"{name}.contexts: there is no context {', '.join(unknown)}; there are {', '.join(contexts)}"
            )
            continue
        trained = [[group for group in split.groups("train") if group[0] in chosen] for split in splits]
        if not all(trained):
            problems.append(
                f"{name}.contexts={chosen}: the split leaves nothing to train on there; name others, or hold out less"
            )
            continue
        weights = (("context", phase.context_weights), ("perturbation", phase.perturbation_weights))
        for place, (what, given) in enumerate(weights):
            known = [{group[place] for group in groups} for groups in trained]
            if lost := [label for label in sorted(given) if not all(label in labels for labels in known)]:
                problems.append(
                    f"{name}.{what}_weights: no training group has the {what} {', '.join(lost)}"
                    f"{' in every fold' * (len(splits) > 1)}; take it out"
                )
    if recipe.predict.effect_scale == "validation" and any(not split.groups("validation") for split in splits):
        problems.append(
            "predict.effect_scale=validation needs validation groups, the split has none; give a number, or raise "
            "split.validation"
        )


def check_controls(splits: list[Split], cells: dict[Group, int], control: str, problems: list[str]) -> None:
    """Every context of the cells has controls, one too that the split does not use: its profile is fitted."""
    bare = sorted({context for context, _ in cells} - {context for context, label in cells if label == control})
    if splits and bare:
        problems.append(
            f"no control cells ({control!r}) in context {', '.join(bare)}: a prediction starts from them; name the "
            "right control label, or leave the context out with keep"
        )


def check_scored(
    recipe: Recipe, splits: list[Split], cells: dict[Group, int], control: str, problems: list[str]
) -> None:
    """No group is scored that has a single cell: the replicate splits each in halves, controls too."""
    scored = {group for split in splits for group in split.groups("test")}
    if recipe.predict.effect_scale == "validation":
        scored |= {group for split in splits for group in split.groups("validation")}
    scored |= {(context, control) for context, _ in scored}
    single = sorted(f"{label} in {context}" for context, label in scored if cells[context, label] < 2)
    if single:
        shown = ", ".join(single[:3]) + (f" and {len(single) - 3} more" if len(single) > 3 else "")
        problems.append(
            f"{shown}: a single cell; the score stage splits every group in halves for the replicate and needs 2: "
            "raise data.minimum_cells to 2, or leave the group out"
        )


def check_processes(recipe: Recipe, processes: int, problems: list[str]) -> None:
    """The processes that take part share the sets of an optimiser step."""
    for name, phase in _phases(recipe):
        if phase.processes is not None and phase.processes != processes:
            problems.append(
                f"{name}.processes={phase.processes}, but the plan is for {processes}; "
                f"pass --processes {phase.processes}"
            )
        if phase.batch_sets % (processes * (phase.micro_sets or 1)):
            problems.append(
                f"{name}.batch_sets={phase.batch_sets} is not a multiple of {processes} processes x "
                f"{name}.micro_sets={phase.micro_sets or 1}"
            )
