"""The plan: what a run would do, on what, and what would fail; nothing is written."""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig

from vcc_fm.cellsets.load import separator_of
from vcc_fm.cellsets.split import Split, make_splits
from vcc_fm.decoder.config import PerturbationDecoderConfig
from vcc_fm.decoder.lora import add_adapters
from vcc_fm.decoder.model import PerturbationDecoder
from vcc_fm.encoders.composition import CompositionEncoder
from vcc_fm.errors import UserError
from vcc_fm.recipe import Recipe, SourceConfig, TrainConfig, expand
from vcc_fm.sources.fasta import read_fasta
from vcc_fm.sources.genes import gene_axis
from vcc_fm.sources.h5ad import H5adSource
from vcc_fm.stages import protein_fasta, source_configs, stages_of
from vcc_fm.training.phase import count_parameters

DENSITY = 0.15
"""Share of non-zero counts that the size of a store is guessed with before its counts are read."""


def make_plan(recipe: Recipe, processes: int) -> dict[str, Any]:
    """Everything that can be said before a run, as JSON values.

    Labels and gene names of the sources are read; no counts are. A simulated screen is drawn into a temporary folder.
    """
    problems: list[str] = []
    plan: dict[str, Any] = {"recipe": recipe.name, "fingerprint": recipe.fingerprint(), "problems": problems}
    plan["stages"] = [
        {"stage": stage.name, "done": stage.done, "outputs": [str(path) for path, _ in stage.outputs]}
        for stage in stages_of(recipe, Console(quiet=True))
    ]
    with tempfile.TemporaryDirectory() as scratch:
        configs = source_configs(recipe, Path(scratch))
        plan["missing"] = _missing_files(recipe, configs)
        problems += [entry["problem"] for entry in plan["missing"]]
        opened = (
            None
            if any(entry["needed_for"] == "cells" for entry in plan["missing"])
            else _look(recipe, configs, problems)
        )
        if opened is not None:
            plan["cells"] = opened
            genes = opened.pop("axis")
            splits = _splits(recipe, opened.pop("group_cells"), configs[0].control, problems)
            plan["split"] = [{"fold": s.fold, "counts": s.counts(), "warnings": s.warnings} for s in splits]
            plan["proteins"] = _proteins(recipe, Path(scratch), opened.pop("labels"), genes, problems)
            plan["decoder"] = _decoder(recipe, opened, genes, plan["proteins"], problems)
            plan["resources"] = _resources(recipe, opened["cells"], len(genes))
    plan["processes"] = _processes(recipe, processes, problems)
    return plan


def _missing_files(recipe: Recipe, configs: list[SourceConfig]) -> list[dict[str, str]]:
    wanted = [(f"data.sources {c.name}", c.path, c.get, "cells") for c in configs]
    if recipe.data.genes not in ("union", "intersection"):
        wanted.append(("data.genes", recipe.data.genes, None, "cells"))
    if recipe.split.table is not None:
        wanted.append(("split.table", recipe.split.table, None, "split"))
    if recipe.embed.proteins.fasta is not None:
        wanted.append(("embed.proteins.fasta", recipe.embed.proteins.fasta, recipe.embed.proteins.get, "proteins"))
    missing = []
    for key, path, get, needed_for in wanted:
        try:
            found = expand(path).is_file()
            problem = f"{key}: {path} is missing" + (f"; get it from {get}" if get else "")
        except UserError as error:
            found, problem = False, f"{key}: {error}"
        if not found:
            missing.append({"key": key, "path": path, "needed_for": needed_for, "problem": problem})
    return missing


def _look(recipe: Recipe, configs: list[SourceConfig], problems: list[str]) -> dict[str, Any] | None:
    """Labels and genes of all sources."""
    try:
        with ExitStack() as stack:
            sources = [stack.enter_context(H5adSource(config)) for config in configs]
            axis = gene_axis([source.genes for source in sources], recipe.data.genes)
            tables = [
                source.cells.assign(perturbation=_unified(source, config, configs[0].control))
                for source, config in zip(sources, configs, strict=True)
            ]
            described = [
                {
                    "name": source.name,
                    "cells": len(source.cells),
                    "genes": len(source.genes),
                    "genes_off_axis": int((~np.isin(source.genes, axis)).sum()),
                    "values": source.evidence,
                    "dropped": source.dropped,
                    "repairs": source.repairs,
                }
                for source in sources
            ]
    except UserError as error:
        problems.append(str(error))
        return None
    cells = pd.concat(tables)
    counts = Counter(zip(cells["context"], cells["perturbation"], strict=True))
    few = {key: n for key, n in counts.items() if n < recipe.data.minimum_cells and key[1] != configs[0].control}
    kept = {key: n for key, n in counts.items() if key not in few}
    return {
        "cells": sum(kept.values()),
        "dropped_perturbations": len(few),
        "genes": len(axis),
        "contexts": sorted({context for context, _ in kept}),
        "batches": int(cells["batch"].nunique()),
        "perturbations": len({label for _, label in kept} - {configs[0].control}),
        "simulated": recipe.data.simulate is not None,
        "sources": described,
        "axis": axis.tolist(),
        "labels": sorted({label for _, label in kept} - {configs[0].control}),
        "group_cells": kept,
    }


def _unified(source: H5adSource, config: SourceConfig, control: str) -> pd.Series[str]:
    return source.cells["perturbation"].replace({config.control: control})


def _splits(recipe: Recipe, group_cells: dict[tuple[str, str], int], control: str, problems: list[str]) -> list[Split]:
    try:
        return make_splits(recipe.split, group_cells, control, separator_of(recipe), recipe.seed)
    except UserError as error:
        problems.append(str(error))
        return []


def _proteins(
    recipe: Recipe, scratch: Path, labels: list[str], genes: list[str], problems: list[str]
) -> dict[str, Any] | None:
    """Which target genes and genes of the axis have a sequence."""
    try:
        known = set(read_fasta(protein_fasta(recipe, scratch), recipe.embed.proteins.get))
    except UserError as error:
        if str(error) not in problems:
            problems.append(str(error))
        return None
    targets = sorted({gene for label in labels for gene in label.split(separator_of(recipe))})
    missing = [gene for gene in targets if gene not in known]
    if missing and recipe.embed.proteins.missing == "refuse":
        problems.append(
            f"{len(missing)} target genes have no protein sequence: {', '.join(missing[:8])}; add them to "
            "embed.proteins.fasta, or set embed.proteins.missing=learned"
        )
    return {
        "targets": len(targets),
        "targets_without_sequence": missing,
        "axis_with_sequence": sum(gene in known for gene in genes),
        "width": CompositionEncoder(recipe.embed.proteins.kmer).width,
    }


def _decoder(
    recipe: Recipe, cells: dict[str, Any], genes: list[str], proteins: dict[str, Any] | None, problems: list[str]
) -> dict[str, Any] | None:
    """Number of parameters of the model that `train` trains, built without memory for its weights."""
    if proteins is None:
        return None
    base = recipe.decoder.base
    try:
        if base in ("scratch", "pretrain"):
            backbone: dict[str, Any] = dict(recipe.decoder.backbone)
        else:
            found = AutoConfig.from_pretrained(base, revision=recipe.decoder.revision)
            backbone = found.backbone if isinstance(found, PerturbationDecoderConfig) else found.to_dict()
        config = PerturbationDecoderConfig(
            backbone=backbone,
            genes=genes,
            contexts=cells["contexts"],
            batches=[str(i) for i in range(cells["batches"])],
            learned_targets=proteins["targets_without_sequence"],
            cell_width=recipe.embed.cells.width,
            protein_width=proteins["width"],
            gene_rank=recipe.decoder.gene_rank,
        )
        with torch.device("meta"):
            decoder = PerturbationDecoder(config)
            model = decoder if base == "scratch" else add_adapters(decoder, recipe.decoder.lora, base)
    except (UserError, OSError, ValueError, KeyError, TypeError) as error:
        problems.append(f"decoder: cannot be built: {error}")
        return None
    total, trainable = count_parameters(model)
    return {"base": base, "parameters": total, "trainable": trainable, "backbone": backbone["model_type"]}


def _resources(recipe: Recipe, cells: int, genes: int) -> dict[str, float]:
    """Guesses from sizes alone: what prepare writes, what a prediction holds, what a batch takes."""
    phases = [phase for phase in (recipe.pretrain, recipe.train) if phase is not None]
    return {
        "cell_store_gb": round(cells * genes * DENSITY * 8 / 1e9, 3),
        "cell_embeddings_gb": round(cells * recipe.embed.cells.width * 4 / 1e9, 3),
        "batch_gb_per_process": round(max(_batch_bytes(phase, genes) for phase in phases) / 1e9, 3),
    }


def _batch_bytes(phase: TrainConfig, genes: int) -> int:
    """Counts, log shares, the prediction and what the losses keep for the gradient: about 16 arrays [B, S, G]."""
    sets = phase.micro_sets or phase.batch_sets
    return 16 * sets * phase.set_size * genes * 4


def _processes(recipe: Recipe, processes: int, problems: list[str]) -> dict[str, Any]:
    phases = {"pretrain": recipe.pretrain, "train": recipe.train}
    for name, phase in phases.items():
        if phase is None:
            continue
        if phase.processes is not None and phase.processes != processes:
            problems.append(f"{name}.processes={phase.processes}, but the plan is for {processes}; pass --processes")
        if phase.batch_sets % (processes * (phase.micro_sets or 1)):
            problems.append(
                f"{name}.batch_sets={phase.batch_sets} is not a multiple of {processes} processes x "
                f"{name}.micro_sets={phase.micro_sets or 1}"
            )
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return {"processes": processes, "device": device}


def print_plan(plan: dict[str, Any], console: Console) -> None:
    """Show a plan to a person."""
    table = Table("stage", "state", "writes", title=f"plan of {plan['recipe']}", title_justify="left")
    for stage in plan["stages"]:
        table.add_row(stage["stage"], "done" if stage["done"] else "to do", "\n".join(stage["outputs"][:3]))
    console.print(table)
    lines = Table.grid(padding=(0, 2))
    for name, text in _lines(plan):
        lines.add_row(f"[bold]{name}[/bold]", text)
    console.print(lines)
    for fold in plan.get("split", [])[:1]:
        for warning in fold["warnings"]:
            console.print(f"[yellow]note[/yellow] {warning}", highlight=False)
    for problem in plan["problems"]:
        console.print(f"[red]problem[/red] {problem}", highlight=False, soft_wrap=True)
    if not plan["problems"]:
        console.print("nothing stands in the way")


def _lines(plan: dict[str, Any]) -> list[tuple[str, str]]:
    lines = []
    if cells := plan.get("cells"):
        kind = " (simulated)" if cells["simulated"] else ""
        lines.append(
            (
                "cells",
                f"{cells['cells']:,}{kind}, {cells['perturbations']:,} perturbations, {cells['batches']} "
                f"batches, contexts {', '.join(cells['contexts'])}",
            )
        )
        for source in cells["sources"]:
            parts = {**source["dropped"], **source["repairs"]}
            said = "; ".join(f"{reason}: {count:,}" for reason, count in parts.items())
            lines.append(
                (
                    f"  {source['name']}",
                    f"{source['cells']:,} cells, {source['genes']:,} genes, values "
                    f"{source['values']['found']}" + (f"; {said}" if said else ""),
                )
            )
        lines.append(("gene axis", f"{cells['genes']:,} genes"))
    for fold in plan.get("split", []):
        said = "; ".join(
            f"{role} {count['groups']} groups, {count['cells']:,} cells"
            for role, count in fold["counts"].items()
            if count["groups"]
        )
        lines.append((f"split, fold {fold['fold']}", said))
    if proteins := plan.get("proteins"):
        without = proteins["targets_without_sequence"]
        lines.append(
            (
                "proteins",
                f"{proteins['targets'] - len(without)} of {proteins['targets']} targets and "
                f"{proteins['axis_with_sequence']:,} genes of the axis have a sequence"
                + (f"; without: {', '.join(without[:6])}{' …' * (len(without) > 6)}" if without else ""),
            )
        )
    if decoder := plan.get("decoder"):
        lines.append(
            (
                "decoder",
                f"{decoder['backbone']}, base {decoder['base']}: {decoder['trainable']:,} of "
                f"{decoder['parameters']:,} parameters train",
            )
        )
    if resources := plan.get("resources"):
        lines.append(
            (
                "about",
                f"{resources['cell_store_gb']} GB cell store, {resources['cell_embeddings_gb']} GB cell "
                f"embeddings, {resources['batch_gb_per_process']} GB for a batch on each process",
            )
        )
    lines.append(("processes", f"{plan['processes']['processes']} on {plan['processes']['device']}"))
    return lines
