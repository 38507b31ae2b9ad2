"""Several seeds or folds of one recipe on the same stores, or several simulated worlds: what is run, and its table."""

from __future__ import annotations

import json
from glob import glob
from pathlib import Path

from rich.console import Console

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import write_json, write_text
from vcc_fm.recipe.hub import NOT_SHARED
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.scoring.compare import Side, held_out, paired
from vcc_fm.scoring.seeds import over_seeds, to_markdown
from vcc_fm.scoring.table import ScoreTable, read_table
from vcc_fm.scoring.worlds import Worlds, over_worlds
from vcc_fm.store.cells import CellStore

SCORES = "scores.json"


def crossval_overrides(recipe: Recipe, folds: int | None, contexts: bool) -> list[str]:
    """Overrides that hold out every perturbation, or every context with perturbations, once.

    Raises:
        UserError: there is only one context.
    """
    kept = {"validation": recipe.split.validation} if not isinstance(recipe.split.validation, list) else {}
    if not contexts:
        folds = 5 if folds is None else folds
        split = {"hold_out": "perturbations", "folds": folds, **kept}
        return [f"variant=crossval-{folds}", f"split={json.dumps(split)}", "predict.ask=[{}]", NOT_SHARED]
    cells = CellStore(Layout(recipe).cells.require())
    perturbed = sorted({context for context, label in cells.group_cells if label != cells.control})
    if len(perturbed) < 2:
        raise UserError(f"--contexts: only {perturbed[0]} has perturbations; nothing would be left to train on")
    folds = len(perturbed) if folds is None else folds
    split = {"hold_out": "contexts", "contexts": perturbed, "folds": folds, **kept}
    return [f"variant=crossval-contexts-{folds}", f"split={json.dumps(split)}", "predict.ask=[{}]", NOT_SHARED]


def scored(place: str) -> dict[str, ScoreTable]:
    """The score tables of a run, name of the seed -> table.

    Args:
        place: a run's folder, with the seeds in it; a ``scores.json``; or a pattern of either, such as
            ``runs/mine-seed*``.

    Raises:
        UserError: there is none.
    """
    places = sorted(map(Path, glob(place))) if glob(place) else [Path(place)]
    files: list[Path] = []
    for one in places:
        if not one.is_dir():
            files.append(one)
            continue
        seeds = sorted(one.glob(f"seed-*/{SCORES}"), key=lambda file: (len(file.parent.name), file.parent.name))
        files += [file for file in (one / SCORES, *seeds) if file.exists()] or [one / SCORES]
    folders = [file.absolute().parent for file in files]
    short = [folder.name for folder in folders]
    names = short if len(set(short)) == len(short) else list(map(str, folders))
    return {name: read_table(file) for name, file in zip(names, files, strict=True)}


def write_seeds(folder: Path, seeds: int, console: Console) -> None:
    """Put the first ``seeds`` of a run into ``seeds.csv`` and ``seeds.md``, and say how far the model is ahead."""
    tables = dict(list(scored(str(folder)).items())[:seeds])
    frame = over_seeds(tables)
    text = to_markdown(frame)
    write_text(folder / "seeds.csv", frame.to_csv(index=False))
    lines = [text, "", *against_baselines(tables)]
    write_text(folder / "seeds.md", "\n".join(lines) + "\n")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    console.print(f"{folder / 'seeds.md'}, seeds.csv", markup=False, highlight=False, soft_wrap=True)


def world_overrides(recipe: Recipe, worlds: int, first: int) -> dict[str, list[str]]:
    """Overrides that make a simulated world of each seed, name -> overrides: other cells, split and training.

    None of them is shared.

    Raises:
        UserError: the recipe's cells are not simulated, or nothing in it is scored.
    """
    if recipe.data.simulate is None:
        raise UserError("--worlds draws simulated cells, but data.simulate is missing; use --seeds or vcc-fm crossval")
    if recipe.split.hold_out == "none":
        raise UserError("--worlds compares scores, and with split.hold_out=none nothing is scored; hold something out")
    names = {seed: f"{recipe.name}-world-{seed}" for seed in range(first, first + worlds)}
    return {name: [f"seed={seed}", f"name={name}", NOT_SHARED] for seed, name in names.items()}


def worlds_of(tables: dict[str, ScoreTable]) -> Worlds | None:
    """The table over worlds, if the tables are of several: their held-out groups differ."""
    if len({frozenset(held_out(table)) for table in tables.values()}) < 2:
        return None
    return over_worlds(tables, ["mixed-model"])


def write_worlds(folder: Path, tables: dict[str, ScoreTable], console: Console) -> None:
    """Write the table over worlds as ``worlds.json`` and ``worlds.md`` into ``folder``, and print it."""
    found = over_worlds(tables, ["mixed-model"])
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "worlds.json", found.to_json())
    write_text(folder / "worlds.md", found.to_markdown())
    console.print(found.to_markdown(), markup=False, highlight=False, soft_wrap=True)
    console.print(f"{folder / 'worlds.md'}, worlds.json", markup=False, highlight=False, soft_wrap=True)


def against_baselines(tables: dict[str, ScoreTable], entry: str = "model") -> list[str]:
    """One line for each baseline: how far ``entry`` is ahead of it, and how sure that is."""
    notes: list[str] = []
    lines = []
    for name in other_baselines(tables, entry):
        found = paired(Side(entry, entry, list(tables.values())), Side(name, name, list(tables.values())))
        lines.append(f"{entry} against {name}: {found.verdict()}")
        notes = notes or found.notes
    return notes + lines


def other_baselines(tables: dict[str, ScoreTable], entry: str) -> list[str]:
    """The baselines of a run that ``entry`` can be compared with."""
    return [name for name in next(iter(tables.values())).baselines() if name != entry]
