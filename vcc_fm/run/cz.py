"""What a recipe for cz-benchmarks makes, and its stages: prepare, embed cells by each encoder, score."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from rich.console import Console

from vcc_fm.ground.files import fingerprint, whole_file, write_json
from vcc_fm.ground.paths import expand, without_secrets
from vcc_fm.recipe.recipe import CzRecipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.outputs import Output
from vcc_fm.run.table import Stage

SCHEMA = 1
"""Raised whenever the same recipe would give other numbers."""


@dataclass(frozen=True)
class CzLayout:
    """The outputs of one recipe."""

    recipe: CzRecipe

    @property
    def cells(self) -> Output:
        """The cell store."""
        return Layout(self.recipe.of_run()).cells

    @cached_property
    def vectors(self) -> dict[str, Output]:
        """Name of an encoder -> its embedding store."""
        made = {name: Layout(self.recipe.of_run(name)).cell_embeddings for name in self.recipe.encoders}
        return {name: replace(one, path=one.path.parent / "vectors" / name) for name, one in made.items()}

    @property
    def scores(self) -> Output:
        """All values; where the scorer is missing this says so, before anything is made."""
        from vcc_fm.scoring.cz import scorer_version

        vectors = [[name, output.fingerprint] for name, output in self.vectors.items()]
        made_from = fingerprint([SCHEMA, scorer_version(), self.recipe.cz.model_dump(mode="json"), vectors])
        path = self.recipe.run_folder / "scores.json"
        return Output("score", path, made_from, (path.with_suffix(".csv"),))


def make_store(recipe: CzRecipe, output: Output, console: Console) -> None:
    """Write the cell store, or the vectors of the encoder that the output is named after."""
    from vcc_fm.run.embed import embed_cells
    from vcc_fm.run.prepare import prepare

    if output.stage == "prepare":
        prepare(recipe.of_run(), output, console)
    else:
        embed_cells(recipe.of_run(output.path.name), output, console)


def score(recipe: CzRecipe, output: Output, console: Console) -> None:
    """Give each embedding and the package's baselines to each task; a cell without a vector is given to none."""
    from vcc_fm.ground.processes import process_state
    from vcc_fm.scoring.cz import baselines, measure, scorer_version
    from vcc_fm.store.cells import CellStore
    from vcc_fm.store.embeddings import EmbeddingStore

    if not process_state().is_main_process:
        return
    layout, labels = CzLayout(recipe), read_labels(recipe)
    cells = CellStore(layout.cells.require())
    stores = {name: EmbeddingStore(made.require()) for name, made in layout.vectors.items()}
    # In the order of the files, in which the package would meet them; -1 is a cell that the store has not.
    places = pd.Index(cells.barcodes).get_indexer(labels.index)
    without = np.logical_or.reduce([store.missing for store in stores.values()])
    kept = (places >= 0) & ~without[places]
    labels, rows = labels[kept], places[kept]
    expression = baselines(cells.sparse(rows)[:, np.flatnonzero(cells.measured.all(axis=0))])
    entries, found = {name: store.take(rows) for name, store in stores.items()}, []
    for task in recipe.cz.tasks:
        # The package's baseline of labels are the counts, and it has none across species.
        theirs = ["PCA", "counts"] if task == "labels" else ["PCA"]
        for entry, vectors in (entries | {f"cz-benchmarks {name}": expression[name] for name in theirs}).items():
            console.print(f"score: {task}: {entry}", markup=False, highlight=False)
            found.append(measure(task, vectors, labels).assign(task=task, entry=entry))
    values = pd.concat(found, ignore_index=True)[["entry", "task", "metric", "of", "value"]]
    with whole_file(output.path.with_suffix(".csv")) as partial:
        values.to_csv(partial, index=False)
    said = {"scorer": f"cz-benchmarks {scorer_version()}", "cells": len(rows), "without_vector": int(without.sum())}
    write_json(output.path, said | {"values": values.to_dict("records")})
    # What sums up a task; single classifiers are in the file.
    short = values[~values["of"].str.contains(r"\b(?:lr|knn|rf)$") & ~values["metric"].str.contains("precis|recall")]
    wide = short.pivot_table("value", ["task", "metric", "of"], "entry", sort=False)
    console.print(wide.to_string(float_format="{:.4f}".format, na_rep=""), markup=False, soft_wrap=True)


def read_labels(recipe: CzRecipe) -> pd.DataFrame:
    """Label, batch, context (and time) of the kept cells, str, in the order of the files; barcodes as in the store.

    Raises:
        UserError: a source has no such column, or a kept cell no label.
    """
    from vcc_fm.run.inputs import source_configs
    from vcc_fm.sources import labels
    from vcc_fm.sources.anndata_file import open_file
    from vcc_fm.sources.anndata_source import columns_used
    from vcc_fm.sources.obs import open_obs

    columns = {"label": recipe.cz.labels} | ({"time": recipe.cz.time} if recipe.cz.time else {})
    run, tables = recipe.of_run(), []
    for config in source_configs(run, Layout(run).simulated):
        where = f"source {config.name!r} ({without_secrets(config.path)})"
        with open_file(expand(config.path), where, config.get) as file:
            obs = open_obs(file, columns_used(config) | set(columns.values()), where)
            kept = labels.read_labels(obs, config, where)
            table = kept.cells
            for name, column in columns.items():
                codes, names = labels.column_labels(obs, column, kept.rows, Counter(), where)
                table[name] = names[codes]
        prefix = f"{config.name}:" if len(recipe.data.sources) > 1 else ""
        tables.append(table.set_index(prefix + table["barcode"]))
    return pd.concat(tables)


_STORE = "vcc_fm.run.cz:make_store"
CZ_STAGES = [
    Stage("prepare", _STORE, "Write the cell store.", lambda layout: [layout.cells], shared=True, on_cpu=True),
    Stage("embed cells", _STORE, "Encode cells.", lambda layout: [*layout.vectors.values()], shared=True),
    Stage("score", "vcc_fm.run.cz:score", "Give them to cz-benchmarks.", lambda layout: [layout.scores]),
]
"""In order."""
