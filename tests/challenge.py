"""A challenge in small, in the files' true form: contexts with controls only, training screens, a panel of targets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import pandas as pd
import yaml
from program import TINY

from vcc_fm.recipe.data import SimulateConfig
from vcc_fm.sources.simulate import CONTROL, simulate

SCREENS, CONTEXTS = ("screen1", "screen2"), ("A", "B", "C")


@dataclass(frozen=True)
class Challenge:
    """What was written.

    Attributes:
        folder: of the files: h5ad of each context, ``gene_names.csv``, ``pert_counts.csv``, ``manifest.json``,
            ``proteins.fasta``.
        recipe: of a run that trains on the screens and asks for the panel in the contexts.
        panel: target genes, in the order of ``pert_counts.csv``.
        nowhere: those of them that no screen measured.
        genes: the axis.
    """

    folder: Path
    recipe: Path
    panel: list[str]
    nowhere: list[str]
    genes: list[str]


def write_challenge(folder: Path, panel: int = 10, genes: int = 50, cells: int = 6, **keys: Any) -> Challenge:
    """Write a challenge; a tenth of its panel is measured nowhere. ``keys`` are added to the recipe's top level."""
    config = SimulateConfig(
        contexts=[*SCREENS, *CONTEXTS], perturbations=panel, genes=genes, cells=12, controls=40, depth=2000.0
    )
    simulate(config, 0, folder)
    targets = None
    for context in config.contexts:
        path = folder / f"{context}.h5ad"
        data = anndata.read_h5ad(path)
        labels = data.obs["perturbation"].astype(str)
        targets = targets or sorted(set(labels) - {CONTROL})
        nowhere = targets[: max(1, panel // 10)]
        gone = nowhere if context in SCREENS else targets
        data = data[~labels.isin(gone).to_numpy()].copy()
        data.obs["target_gene"] = data.obs.pop("perturbation").astype(str)
        if context in CONTEXTS:
            data.obs = data.obs.drop(columns="batch").assign(ntc_id=[f"NTC_{i % 4}" for i in range(data.n_obs)])
        data.write_h5ad(path)
    axis = list(map(str, data.var_names))
    (folder / "gene_names.csv").write_text("\n".join(["gene_name", *axis]) + "\n")
    shuffled = pd.Series(targets).sample(frac=1, random_state=0).tolist()
    # The challenge's list has no n_cells, and means 400.
    listed = ["target_gene,n_cells", *(f"{target},{cells}" for target in shuffled)] if cells != 400 else None
    (folder / "pert_counts.csv").write_text("\n".join(listed or ["target_gene", *shuffled]) + "\n")
    manifest = {"contexts": list(CONTEXTS), "partition": "validation", "panel_id": "small-1"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    common = {
        "values": "counts",
        "perturbation_column": "target_gene",
        "control": CONTROL,
        "context_column": "context",
    }
    sources = [
        {"name": name, "path": str(folder / f"{name}.h5ad"), **common}
        | ({"batch_column": "batch"} if name in SCREENS else {})
        for name in config.contexts
    ]
    recipe = {
        "name": "challenge",
        "output": str(folder),
        "data": {"sources": sources, "genes": str(folder / "gene_names.csv")},
        "embed": {"cells": {"width": 4}, "proteins": {"kmer": 1, "fasta": str(folder / "proteins.fasta")}},
        "split": {"hold_out": "none", "validation": 0.2},
        "decoder": {**TINY["decoder"], "base": "scratch"},
        "train": TINY["train"],
        "predict": {
            "ask": [{"contexts": list(CONTEXTS), "perturbations": str(folder / "pert_counts.csv"), "cells": cells}]
        },
        "score": {"baselines": ["mean-response"]},
        **keys,
    }
    path = folder / "challenge.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return Challenge(folder, path, shuffled, nowhere, axis)
