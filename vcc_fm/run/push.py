"""The stage `push`: the run's model, stores or predictions to the Hugging Face Hub, one commit a repository."""

from __future__ import annotations

import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from vcc_fm.ground.files import read_json, write_json, write_text
from vcc_fm.ground.hub import Kind, show_progress
from vcc_fm.ground.hub import push as push_folder
from vcc_fm.ground.paths import expand
from vcc_fm.ground.words import many
from vcc_fm.hub.card import Run, dataset_card, model_card
from vcc_fm.hub.licences import Ancestor, ancestors_of, require_accepted, write_licences
from vcc_fm.recipe.hub import HubConfig
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.load import load_dataset
from vcc_fm.run.outputs import Output, seconds_of
from vcc_fm.run.provenance import plain, public_recipe, versions
from vcc_fm.run.share import share
from vcc_fm.scoring.table import read_table
from vcc_fm.splits.split import Split
from vcc_fm.store.cells import CellStore
from vcc_fm.store.embeddings import EmbeddingStore
from vcc_fm.training.checkpoint import read_log

EXAMPLE = 2
"""Perturbations in the card's example."""


def push(recipe: Recipe, output: Output, console: Console) -> None:
    """Send what ``hub.what`` names; writes ``pushed.json``, which says where it is.

    Raises:
        UserError: a stage is missing, terms of others were not accepted, or the Hub refuses.
    """
    hub = recipe.hub
    assert hub is not None
    show_progress(not console.quiet)
    makers: dict[Kind, Callable[[Recipe, HubConfig, Path], None]] = {}
    # The dataset first: the model's card names it.
    if hub.what in ("stores", "predictions", "all"):
        makers["dataset"] = _dataset
    if hub.what in ("merged", "adapter", "all"):
        makers["model"] = _model
    output.path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="vcc-fm-push-", dir=output.path.parent) as scratch:
        # Everything is made before anything is sent.
        for kind, make in makers.items():
            folder = Path(scratch, kind)
            folder.mkdir()
            make(recipe, hub, folder)
        sent: list[dict[str, str]] = []
        for kind in makers:
            sent.append(_send(recipe.name, hub, kind, Path(scratch, kind), console))
            write_json(output.path, {"pushed": sent})


def _send(name: str, hub: HubConfig, kind: Kind, folder: Path, console: Console) -> dict[str, str]:
    """Send a folder; where it is now."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    console.print(f"push: {hub.repo} ({kind}): {many(len(files), 'file')}, {size / 1e6:,.1f} MB", highlight=False)
    message = f"{name}: {'model' if kind == 'model' else hub.what}"
    url, commit = push_folder(folder, hub.repo, kind, message, hub.private, hub.revision)
    console.print(f"push: {url}", markup=False, soft_wrap=True)
    return {"repo": hub.repo, "kind": kind, "commit": commit, "url": url}


def _model(recipe: Recipe, hub: HubConfig, folder: Path) -> None:
    """Write a model's repository, once the terms of what it was made from are accepted."""
    layout = Layout(recipe)
    layout.finished.require()
    data = load_dataset(recipe, hub.fold)
    ancestors = _ancestors(recipe, layout, hub.fold)
    require_accepted(ancestors, hub.accept_licence)  # before anything large is written
    share(recipe, data, folder, "adapter" if hub.what == "adapter" else "merged", hub.controls)
    _write_record(recipe, layout, hub.fold, folder / "run")
    write_licences(ancestors, folder / "LICENSES", _licence_files(recipe))
    run, contexts = _run(recipe, layout, data.cells, data.split), list(data.context_controls)
    held_out = data.split.groups("test")
    context = next((context for context, _ in held_out), contexts[0])
    asked = [label for where, label in held_out if where == context] or data.cells.labels
    base = read_json(folder / "vcc_fm.json")["base"]
    example = context if hub.controls else ""
    with_data = hub.what == "all"
    card = model_card(hub.repo, run, ancestors, hub.licence, base, with_data, example, asked[:EXAMPLE])
    write_text(folder / "README.md", card)


def _dataset(recipe: Recipe, hub: HubConfig, folder: Path) -> None:
    """Write a dataset's repository, once the terms of what it was made from are accepted."""
    layout = Layout(recipe)
    ancestors, configs = _ancestors(recipe, layout, hub.fold), {}
    require_accepted(ancestors, hub.accept_licence)
    if hub.what in ("stores", "all"):
        for stage in (layout.cells, layout.cell_embeddings, layout.proteins):
            store = stage.require()
            shutil.copytree(store, folder / store.name, copy_function=_link)
            configs[store.name] = f"{store.name}/data-*.arrow"
    if hub.what in ("predictions", "all"):
        layout.finished.require()
        (folder / "predictions").mkdir()
        predicted = [layout.prediction(name) for name in recipe.score.baselines]
        for file in [layout.prediction("model"), *layout.truths, *predicted]:
            _link(file, folder / "predictions" / file.name)
        _write_record(recipe, layout, hub.fold, folder / "run")
    write_licences(ancestors, folder / "LICENSES", _licence_files(recipe))
    run = _run(recipe, layout, CellStore(layout.cells.require()), None)
    write_text(folder / "README.md", dataset_card(hub.repo, run, ancestors, hub.licence, configs))


def _link(source: Path | str, target: Path | str) -> None:
    """A copy that takes no room."""
    Path(target).symlink_to(Path(source).resolve())


def _ancestors(recipe: Recipe, layout: Layout, fold: int) -> list[Ancestor]:
    """What the run was made from, so far as its stages and its recipe say."""
    decoder = layout.decoder(fold, "train")
    if decoder.fault() is None:
        config = read_json(decoder.path / "config.json")
    else:
        stores = {"cell": layout.cell_embeddings, "protein": layout.proteins}
        config = {f"{side}_encoder": EmbeddingStore(store.require()).meta for side, store in stores.items()}
    if recipe.data.simulate is not None:
        return ancestors_of(config, [("simulated", "none: every cell is simulated", None)])
    # What a store brings along, but for what the recipe says now.
    said = {one.name: (one.licence, one.citation) for one in recipe.data.sources}
    sources = []
    for one in read_json(layout.cells.require() / "store.json")["sources"]:
        licence, citation = said.get(one["name"], (None, None))
        sources.append((one["name"], licence or one["licence"], citation or one["citation"]))
    return ancestors_of(config, sources)


def _licence_files(recipe: Recipe) -> list[Path]:
    """Licence texts beside the checkpoints that the recipe names."""
    parts = recipe.embed.cells, recipe.embed.proteins
    named = [recipe.decoder.base, *(getattr(part, "model", "") for part in parts)]
    folders = [expand(name) for name in named if name and expand(name).is_dir()]
    return [
        file
        for folder in folders
        for file in sorted(folder.iterdir())
        if file.is_file() and any(word in file.name.upper() for word in ("LICENSE", "LICENCE", "NOTICE", "POLICY"))
    ]


def _run(recipe: Recipe, layout: Layout, cells: CellStore, split: Split | None) -> Run:
    """What the cards say; of all perturbed cells where there is no split, else of those that trained."""
    sizes, scored = cells.group_cells, [output for output in layout.score_tables if output.fault() is None]
    counted = [group for group in sizes if group[1] != cells.control] if split is None else split.groups("train")
    contexts = {
        context: (
            sum(1 for where, _ in counted if where == context),
            sum(sizes[group] for group in counted if group[0] == context),
            sizes[context, cells.control],
        )
        for context in cells.contexts
    }
    held_out = ""
    if split is not None:
        counts = split.counts()
        held_out = (
            f"Held out ({split.hold_out}): {counts['test']['groups']} groups of context and perturbation to test, "
            f"{counts['validation']['groups']} to validate. The split, with its seed, is `run/split.json`."
        )
    return Run(
        recipe.name,
        cells.meta["simulated"],
        contexts,
        len(cells.genes),
        held_out,
        read_table(scored[0].path) if scored else None,
        dict(_cost(layout)),
        versions(),
        [] if split is None else split.warnings,
    )


def _cost(layout: Layout) -> Iterator[tuple[str, str]]:
    """What the stages took."""
    outputs = [layout.cells, layout.proteins, layout.cell_embeddings, *layout.decoders, layout.predictions]
    for output in outputs:
        if (seconds := seconds_of(output)) is not None:
            yield f"{output.stage} ({output.phase})" if output.phase else output.stage, f"{seconds:,.0f} s"
    lines = [line for phase in layout.recipe.phases for line in read_log(layout.phase(0, phase) / "metrics.jsonl")]
    if peaks := [line["peak_memory_gb"] for line in lines if "peak_memory_gb" in line]:
        yield "memory of training, at most", f"{max(peaks):.1f} GB"
    if rates := [line["cells_per_s"] for line in lines if "cells_per_s" in line]:
        yield "cells a second in training, at most", f"{max(rates):,.0f}"


def _write_record(recipe: Recipe, layout: Layout, fold: int, folder: Path) -> None:
    """What tells how the run came about: recipe, split, calibration, scores, versions."""
    folder.mkdir()
    calibrations = [layout.calibration(fold).path] if layout.calibrations else []
    for file in (
        layout.split(fold),
        layout.splits.path,
        layout.decoder(fold, "train").path / "training.json",
        layout.prediction_record,
        *(output.path for output in layout.score_tables),
        *calibrations,
    ):
        write_json(folder / file.name, plain(read_json(file)))
    for output in layout.score_tables:
        shutil.copy(output.path.with_suffix(".csv"), folder)
    write_json(folder / "recipe.json", public_recipe(recipe))
    write_json(folder / "environment.json", {"versions": versions(), "machine": platform.machine()})
