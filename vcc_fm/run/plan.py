"""The plan: what a run would do, on what, and what would fail; nothing is written."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from vcc_fm.cellsets.targets import (
    protein_coverage,
    require_vectors,
    sources_of_contexts,
    targets_of,
    with_vectors,
    without_any,
)
from vcc_fm.ground.errors import UserError
from vcc_fm.ground.paths import expand, without_secrets
from vcc_fm.prediction.asking import asked_for, named_perturbations
from vcc_fm.recipe.data import SourceConfig
from vcc_fm.recipe.embed import SequenceEncoderSettings
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.recipe.train import TrainConfig
from vcc_fm.run.inputs import protein_fasta, source_configs
from vcc_fm.run.layout import Layout
from vcc_fm.run.plan_checks import check_processes, check_sharing, check_split, collected
from vcc_fm.run.plan_decoder import plan_decoder
from vcc_fm.run.stages import stages_of
from vcc_fm.sources.alignment import open_sources
from vcc_fm.splits.hold_out import make_splits
from vcc_fm.splits.split import Split
from vcc_fm.store.cell_table import cell_table

DENSITY = 0.15
"""Share of non-zero counts that the size of a store is guessed with before its counts are read."""

DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""What the driver of a GPU leaves in the file system: NVIDIA's, that of Windows for Linux, AMD's."""


def make_plan(recipe: Recipe, processes: int) -> dict[str, Any]:
    """Everything that can be said before a run, as JSON values.

    Labels and gene names of the sources are read; no counts are. A simulated screen is drawn into a temporary folder.
    """
    layout, problems = Layout(recipe), list[str]()
    plan: dict[str, Any] = {"recipe": recipe.name, "fingerprint": recipe.fingerprint(), "problems": problems}
    plan["stages"] = [
        {
            "stage": stage.name,
            "done": not stage.faults(layout),
            "outputs": [str(output.path) for output in stage.outputs(layout)],
        }
        for stage in stages_of(recipe)
    ]
    with tempfile.TemporaryDirectory() as scratch:
        configs = list[SourceConfig]()
        with collected(problems):
            configs = source_configs(recipe, Path(scratch), fetch=False)
        plan["missing"] = _missing_files(recipe, configs)
        problems += [entry["problem"] for entry in plan["missing"]]
        # A plan fetches no cells: what is in them it can say when they are here.
        places = [config.path for config in configs] + ([recipe.data.store] if recipe.data.store else [])
        plan["to_fetch"] = [without_secrets(place) for place in places if "://" in place]
        here = places and not plan["to_fetch"]
        if here and not any(entry["needed_for"] == "cells" for entry in plan["missing"]):
            _plan_cells(plan, recipe, configs, Path(scratch))
    plan["processes"] = {"processes": processes, "device": _device()}
    check_processes(recipe, processes, problems)
    check_sharing(recipe, problems)
    # One mistake may stand in the way of several stages; it is said once.
    plan["problems"] = list(dict.fromkeys(problems))
    return plan


def _plan_cells(plan: dict[str, Any], recipe: Recipe, configs: list[SourceConfig], scratch: Path) -> None:
    """What can be said once the sources can be read."""
    problems = plan["problems"]
    opened = _look_into_store(recipe, problems) if recipe.data.store else _look(recipe, configs, problems)
    if opened is None:
        return
    plan["cells"] = opened
    genes, control, separator = (opened.pop(key) for key in ("axis", "control", "separator"))
    groups = opened.pop("group_cells")
    pairs, measured = opened.pop("context_sources"), opened.pop("measured")
    sources = sources_of_contexts(recipe.data.sources, pairs)
    labels = sorted({label for _, label in groups} - {control})
    opened["vector_width"] = _encoder(
        recipe, int(np.all([*measured.values()], axis=0).sum()), groups, control, problems
    )
    missing = {entry["needed_for"] for entry in plan["missing"]}
    named = list[str]()
    with collected(problems):
        named = named_perturbations(recipe.predict, control)
    targets = targets_of(labels, separator)
    wanted = targets | targets_of(named, separator)
    plan["proteins"] = None if "proteins" in missing else _proteins(recipe, scratch, wanted, genes, problems)
    same = (plan["proteins"] or {}).pop("same", {})
    if plan["proteins"] is not None and recipe.embed.proteins.missing == "drop":
        targets -= set(plan["proteins"]["targets_without_sequence"])
        groups = with_vectors(groups, targets, control, separator)
    if "split" not in missing:
        splits = list[Split]()
        with collected(problems):
            splits = make_splits(recipe.split, groups, control, separator, recipe.seed, sources, same)
        plan["split"] = [{"fold": s.fold, "counts": s.counts(), "warnings": s.warnings} for s in splits]
        check_split(recipe, splits, groups, control, pairs, measured, problems)
        if splits:
            with collected(problems):
                asking = asked_for(recipe.predict, splits, groups, control, separator)
                plan["asked"] = {
                    "contexts": len({one.context for one in asking.groups}),
                    "perturbations": len(asking.labels()),
                    "groups": len(asking.groups),
                    "cells": sum(one.cells for one in asking.groups),
                    "scored": len(asking.truth),
                    "notes": asking.notes,
                }
    plan["decoder"] = plan_decoder(recipe, opened, genes, targets, plan["proteins"], problems)
    plan["resources"] = _resources(recipe, opened, len(genes))


def _missing_files(recipe: Recipe, configs: list[SourceConfig]) -> list[dict[str, str]]:
    wanted = [(f"data.sources {c.name}", c.path, c.get, "cells") for c in configs]
    if recipe.data.genes not in ("union", "intersection"):
        wanted.append(("data.genes", recipe.data.genes, None, "cells"))
    if recipe.data.names.symbols is not None:
        needed_for = "cells" if recipe.data.names.approved else "proteins"
        wanted.append(("data.names.symbols", recipe.data.names.symbols, None, needed_for))
    if recipe.split.table is not None:
        wanted.append(("split.table", recipe.split.table, None, "split"))
    proteins = recipe.embed.proteins
    if isinstance(proteins, SequenceEncoderSettings) and proteins.fasta is not None:
        wanted.append(("embed.proteins.fasta", proteins.fasta, proteins.get, "proteins"))
    missing = []
    for key, path, get, needed_for in wanted:
        if "://" in path:
            continue  # asking for it would fetch it; its stage says when it cannot be had
        try:
            found = expand(path).exists()
            problem = f"{key}: {path} is missing" + (f"; get it from {get}" if get else "")
        except UserError as error:
            found, problem = False, f"{key}: {error}"
        if not found:
            missing.append({"key": key, "path": path, "needed_for": needed_for, "problem": problem})
    return missing


def _look(recipe: Recipe, configs: list[SourceConfig], problems: list[str]) -> dict[str, Any] | None:
    """Labels and genes of all sources."""
    try:
        with open_sources(recipe.data, configs) as aligned:
            sources, axis = aligned.opened, aligned.axis
            cells = cell_table(sources, configs, recipe.seed)
            measured = aligned.measured
            described = [
                {
                    "name": source.name,
                    "cells": len(source),
                    "genes": len(source.genes),
                    "genes_off_axis": int((columns < 0).sum()),
                    "values": source.evidence,
                    "dropped": source.dropped,
                    "repairs": source.repairs,
                }
                for source, columns in zip(sources, aligned.columns, strict=True)
            ]
    except UserError as error:
        problems.append(str(error))
        return None
    sizes = cells.sizes(np.diff(cells.start))
    counts = {
        (cells.names["context"][context], cells.names["perturbation"][label]): int(sizes[context, label])
        for context, label in np.argwhere(sizes).tolist()
    }
    few = {key: n for key, n in counts.items() if n < recipe.data.minimum_cells and key[1] != configs[0].control}
    kept = {key: n for key, n in counts.items() if key not in few}
    if not kept:
        problems.append("no cell is left after the filters (keep, minimum_cells); loosen them")
        return None
    return {
        "cells": sum(kept.values()),
        "dropped_perturbations": len(few),
        "genes": len(axis),
        "contexts": sorted({context for context, _ in kept}),
        "batches": len(cells.names["batch"]),
        "perturbations": len({label for _, label in kept} - {configs[0].control}),
        "simulated": recipe.data.simulate is not None,
        "sources": described,
        "axis": axis.tolist(),
        "control": configs[0].control,
        "separator": configs[0].separator,
        "measured": dict(zip([source.name for source in sources], measured, strict=True)),
        "group_cells": kept,
        "context_sources": [
            (context, source.name)
            for context in cells.names["context"]
            for source in sources
            if context in source.labels.names["context"]
        ],
    }


def _look_into_store(recipe: Recipe, problems: list[str]) -> dict[str, Any] | None:
    """The same of a cell store that was prepared before."""
    from vcc_fm.store.cells import CellStore
    from vcc_fm.store.shared import local_store

    assert recipe.data.store is not None
    try:
        cells = CellStore(local_store(recipe.data.store))
    except UserError as error:
        problems.append(f"data.store={error}")
        return None
    told = ("name", "cells", "genes", "genes_off_axis", "values", "dropped", "repairs")
    return {
        "cells": len(cells),
        "dropped_perturbations": 0,
        "genes": len(cells.genes),
        "contexts": cells.contexts,
        "batches": len(cells.batches),
        "perturbations": len(cells.labels),
        "simulated": cells.meta["simulated"],
        "sources": [{key: source[key] for key in told} for source in cells.meta["sources"]],
        "axis": cells.genes,
        "control": cells.control,
        "separator": cells.separator,
        "measured": cells.measured_of,
        "group_cells": cells.group_cells,
        "context_sources": cells.context_sources,
    }


def _encoder(
    recipe: Recipe, genes_in_all: int, group_cells: dict[tuple[str, str], int], control: str, problems: list[str]
) -> int | None:
    """Length of a cell's vector; None where the encoder cannot be had, or cannot be fitted on these cells."""
    encoder = Layout(recipe).cell_encoder
    with collected(problems):
        encoder.check(genes_in_all, sum(n for (_, label), n in group_cells.items() if label == control))
        return encoder.width
    return None


def _proteins(
    recipe: Recipe, scratch: Path, targets: set[str], genes: list[str], problems: list[str]
) -> dict[str, Any] | None:
    """Which target genes and genes of the axis have a sequence."""
    encoder = Layout(recipe).protein_encoder
    try:
        known = encoder.known(protein_fasta(recipe, scratch))
        covered = protein_coverage(recipe.data.names, targets, genes, known.symbols, known.faulty)
        width = encoder.width
    except UserError as error:
        problems.append(str(error))
        return None
    without = sorted(r.symbol for r in covered.targets if r.found is None)
    with collected(problems):
        require_vectors(without, recipe.embed.proteins.missing)
    return {
        "targets": len(covered.targets),
        "targets_without_sequence": without,
        "axis_with_sequence": sum(r.found is not None for r in covered.genes),
        "width": width,
        "coverage": covered.lines(),
        "same": covered.same(),
        "note": without_any(covered, recipe.embed.proteins.missing),
    }


def _resources(recipe: Recipe, opened: dict[str, Any], genes: int) -> dict[str, float]:
    """Guesses from sizes alone: what prepare writes, what a prediction holds, what a batch takes."""
    cells, width = opened["cells"], opened["vector_width"] or 0
    return {
        "cell_store_gb": round(cells * genes * DENSITY * 8 / 1e9, 3),
        "cell_embeddings_gb": round(cells * width * 4 / 1e9, 3),
        "batch_gb_per_process": round(max(_batch_bytes(phase, genes) for phase in recipe.phases.values()) / 1e9, 3),
    }


def _batch_bytes(phase: TrainConfig, genes: int) -> int:
    """Counts, and ten arrays [B, S, G] that losses work with at a time; a CPU takes fewer sets at a time."""
    sets = phase.micro_sets or phase.batch_sets
    return 11 * sets * phase.set_size * genes * 4


def _device() -> str:
    """The GPU that a run would use, or CPU; torch, slow to import, is asked only where a GPU driver is."""
    if not any(Path(path).exists() for path in DRIVERS):
        return "CPU"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
