"""Embeddings of cells by the tasks of cz-benchmarks: the package measures, with its own defaults and seed.

Two things are said on top. The random draws of `sequential` come from numpy's global generator, which the package
leaves unseeded: here it gets the package's seed. `cross-species-labels` classifies cells; the default is samples.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from vcc_fm.ground.errors import UserError

SCORER = "cz-benchmarks"


def scorer_version() -> str:
    """The installed version of the package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return version(SCORER)
    except PackageNotFoundError:
        raise UserError("cz: its scorer is not installed: pip install 'vcc-fm[cz]'") from None


@contextmanager
def quiet_and_seeded() -> Iterator[None]:
    """No notes of the package or the libraries under it; numpy's global generator seeded, and left as it was."""
    from czbenchmarks.constants import RANDOM_SEED

    logging.disable(logging.WARNING)
    state = np.random.get_state()  # noqa: NPY002 - what the package draws from
    np.random.seed(RANDOM_SEED)  # noqa: NPY002
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        np.random.set_state(state)  # noqa: NPY002


@quiet_and_seeded()
def measure(task: str, vectors: np.ndarray, cells: pd.DataFrame) -> pd.DataFrame:
    """Judge an embedding.

    Args:
        task: of a recipe's tasks.
        vectors: [N, width] float, finite.
        cells: N rows of str: label, batch, context (which is the species), and time for ``sequential``.

    Returns:
        Columns metric, of (the classifier, after the species that it was trained and tested on; else empty), value.

    Raises:
        UserError: the cells do not have what the task asks for.
    """
    from czbenchmarks import tasks

    name, representation, given = _asked(task, vectors, cells)
    asked = vars(tasks)[f"{name}TaskInput"](**given)
    try:
        results = vars(tasks)[f"{name}Task"]().run(representation, asked)
    except ValueError as error:  # such as times that are no numbers, or classes that are too small
        raise UserError(f"cz.tasks: {task}: {error}") from error
    rows = [(one.metric_type.value, ", ".join(map(str, one.params.values())), float(one.value)) for one in results]
    return pd.DataFrame(rows, columns=["metric", "of", "value"])


@quiet_and_seeded()
def baselines(counts: sp.csr_matrix) -> dict[str, np.ndarray]:
    """The package's baselines of raw counts [N, G]: 50 components of 3,000 variable genes, and the counts alone."""
    from czbenchmarks.tasks import ClusteringTask
    from czbenchmarks.tasks.task import PCABaselineInput

    dense = counts.astype(np.float32).toarray()
    components = min(PCABaselineInput().n_pcs, *(size - 1 for size in dense.shape))
    return {"PCA": ClusteringTask().compute_baseline(dense, PCABaselineInput(n_pcs=components)), "counts": dense}


def _asked(task: str, vectors: np.ndarray, cells: pd.DataFrame) -> tuple[str, Any, dict[str, Any]]:
    """Name of the package's task, what it judges, and its other input."""
    from czbenchmarks.datasets import Organism

    columns = {name: cells[name].to_numpy(str) for name in cells}
    labels, batches, species = (columns[name] for name in ("label", "batch", "context"))
    if task == "integration" and len(set(batches)) < 2:
        raise UserError("cz.tasks: integration needs two batches; set batch_column, or leave the task out")
    obs = cells[[]].set_axis([str(number) for number in range(len(cells))])
    of_cells: dict[str, tuple[str, dict[str, Any]]] = {
        "clustering": ("Clustering", {"obs": obs, "input_labels": labels}),
        "embedding": ("Embedding", {"input_labels": labels}),
        "labels": ("MetadataLabelPrediction", {"labels": labels}),
        "sequential": ("SequentialOrganization", {"obs": obs, "input_labels": columns.get("time")}),
        "integration": ("BatchIntegration", {"labels": labels, "batch_labels": batches}),
    }
    if task in of_cells:
        name, given = of_cells[task]
        return name, vectors, given
    names, known = sorted(set(species)), {name.casefold(): one for name, one in Organism.__members__.items()}
    if len(names) < 2 or not set(names) <= known.keys():
        found = f"two at least; found {', '.join(names)}; known are {', '.join(known)}"
        raise UserError(f"cz.tasks: {task} takes the contexts of the sources for species, {found}")
    parts, of_parts = ([values[species == name] for name in names] for values in (vectors, labels))
    organisms = [known[name] for name in names]
    if task == "cross-species":
        return "CrossSpeciesIntegration", parts, {"labels": of_parts, "organism_list": organisms}
    given = {"labels": of_parts, "organisms": organisms, "aggregation_method": "none"}
    return "CrossSpeciesLabelPrediction", parts, given
