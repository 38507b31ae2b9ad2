"""What is in an h5ad file or a zarr store: values, genes, labels, what is wrong, and the recipe lines to read it by.

Nothing is taken from a recipe, and nothing is guessed where it cannot be told: a guess is named with what speaks for
it, and the recipe lines are tried by opening the file with them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import pandas as pd

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.paths import expand
from vcc_fm.inspection.genes import known_names, read_genes
from vcc_fm.inspection.groups import count_groups
from vcc_fm.inspection.inspection import Inspection
from vcc_fm.inspection.labels import possible_depths, read_obs, transposed
from vcc_fm.inspection.problems import tell_genes, tell_groups, tell_labels, tell_matrices, tell_roles
from vcc_fm.inspection.recipe import recipe_lines, source_keys, worth_reading
from vcc_fm.inspection.roles import find_roles
from vcc_fm.inspection.targets import KnockDown, knock_down
from vcc_fm.inspection.values import ENOUGH, MatrixFacts, Progress, look
from vcc_fm.recipe.data import SourceConfig
from vcc_fm.sources.anndata_file import File, bytes_of, locate, matrices, open_file, read_table
from vcc_fm.sources.anndata_source import AnnDataSource
from vcc_fm.sources.genes import gene_columns
from vcc_fm.sources.labels import Labels, read_labels
from vcc_fm.sources.matrix import Matrix, open_matrix
from vcc_fm.sources.proof import Reading

_AS_DEEP = 0.95

Progresses = Callable[[str], Progress]
"""Gives, for the name of a work, what is told (rows done, rows)."""


class _Opened(NamedTuple):
    """A matrix that can be read, with its table of genes."""

    facts: MatrixFacts
    matrix: Matrix
    reading: Reading | float | None
    var: pd.DataFrame


def inspect_file(
    path: Path,
    perturbation: str | None = None,
    control: str | None = None,
    every_value: bool = False,
    progress: Progresses = lambda what: lambda done, total: None,
) -> Inspection:
    """Tell what is in an h5ad file.

    Args:
        path: of the file; ``~`` and ``${VARIABLE}`` are expanded.
        perturbation: obs column with the perturbation label, where the guess is to be overruled.
        control: label of the control cells in it, likewise.
        every_value: read all values of all matrices, rather than a sample of cells.
        progress: told of the reading of every value.

    Raises:
        UserError: the file is missing, damaged or no h5ad, it has no cells, none of its matrices can be read, or it
            has no such column or label.
    """
    path = expand(str(path))
    telling = progress if every_value else None
    with ExitStack() as stack:
        file, obs = _open(path, stack)
        opened, unreadable = _look_at(file, obs, str(path), stack, telling)
        facts = [one.facts for one in opened]
        chosen = choose(facts)
        used = next((one for one in opened if one.facts is chosen), opened[0])
        genes = read_genes(used.var, str(path))
        labels = read_obs(obs, known_names(used.var, genes), perturbation)
        read = chosen.name if chosen else None
        found = Inspection(str(path), bytes_of(path), len(obs), every_value, facts, unreadable, read, genes, labels)
        keys = source_keys(found, perturbation, control)
        tell_matrices(found)
        if transposed(obs, used.var):
            found.problems.append(
                f"the file is transposed: obs holds genes ({obs.index[0]}, …), var holds cells ({used.var.index[0]}, "
                "…); write it again as adata.T"
            )
            return found
        tell_genes(found)
        tell_labels(found, control)
        cells = _read_cells(obs, found, keys, perturbation is not None or control is not None)
        if cells is not None:
            found.groups = count_groups(cells, keys["control"], keys["separator"], obs[labels.numbers_of_guides])
            tell_groups(found)
            found.targets = _targets(used, found, cells, keys, telling)
    if cells is not None and chosen is not None and worth_reading(chosen):
        found.tried = chosen.told and genes.symbols is not None and _is_read(keys, found)
        if found.tried or not chosen.told:
            found.recipe = recipe_lines(found, keys)
    return found


def _open(path: Path, stack: ExitStack) -> tuple[File, pd.DataFrame]:
    """The file, until the stack is closed, and its table of cells."""
    where = str(path)
    if path.is_file() and path.suffix != ".zip" and not h5py.is_hdf5(path):
        raise UserError(f"{where}: no HDF5 file; give an h5ad file, or a zarr store (a folder, or its .zip)")
    file = stack.enter_context(open_file(path, where, None))
    if "obs" not in file and "matrix" in file:
        raise UserError(f"{where}: a 10x file: read it with sc.read_10x_h5, add labels to obs, then write_h5ad")
    if not matrices(file):
        raise UserError(f"{where}: has no matrix (X, raw, layers); get the file with counts")
    locate(file, matrices(file)[0], where)  # refuses what is no AnnData
    # A column that is cut short is found when the file is opened with the suggested lines.
    obs = read_table(file, "obs", set(), where)
    if not len(obs):
        raise UserError(f"{where}: no cells: obs has no rows; get a file that has")
    return file, obs


def _look_at(
    file: File, obs: pd.DataFrame, where: str, stack: ExitStack, progress: Progresses | None
) -> tuple[list[_Opened], dict[str, str]]:
    """The matrices, and why others cannot be read."""
    totals = possible_depths(obs)
    opened: list[_Opened] = []
    unreadable: dict[str, str] = {}
    for name in matrices(file):
        try:
            stored, table = locate(file, name, where)
            var = read_table(file, table, set(), where)
            matrix = open_matrix(stored, f"{where}, {name}", stack)
            if matrix.shape != (len(obs), len(var)):
                raise UserError(
                    f"{where}, {name}: cut short or damaged (shape {matrix.shape}, obs and var have {len(obs)} "
                    f"and {len(var)} rows)"
                )
            telling = None if progress is None else progress(name)
            facts, reading = look(name, stored, matrix, (obs.index, var.index), totals, telling)
        except UserError as error:
            unreadable[name] = str(error)
        else:
            opened.append(_Opened(facts, matrix, reading, var))
    if not opened:
        raise UserError(next(iter(unreadable.values())))
    return opened, unreadable


def choose(facts: list[MatrixFacts]) -> MatrixFacts | None:
    """The matrix to read: the deepest; counts before their log, then scaled ones by what is proved, then more genes.

    Spliced counts are counts too, but less than the normalised counts that they are a part of. A matrix by column
    that was not told is the last choice; None where no matrix gives counts.
    """
    order = ["counts", "log1p-counts"]
    depths = {
        one.name: one.depth["50"]
        for one in facts
        if one.found is not None and one.depth is not None and one.proved >= ENOUGH and not one.doubts
    }
    deepest = max(depths.values(), default=0.0)

    def rank(one: MatrixFacts) -> tuple[bool, bool, bool, int, float, int]:
        place = order.index(one.found) if one.found in order else len(order)
        short = depths.get(one.name, deepest) < _AS_DEEP * deepest
        return one.found is None, bool(one.doubts), short, place, -one.proved, -one.genes

    return min((one for one in facts if one.found is not None or not one.told), key=rank, default=None)


def _read_cells(obs: pd.DataFrame, found: Inspection, keys: dict[str, Any], asked: bool) -> Labels | None:
    """The labels as a recipe would read them; adds context and batch to what is found and to the keys."""
    cells = _labelled(obs, found, keys | {"context": keys["name"]}, asked)
    labels = found.labels
    read = None if cells is None else (cells, keys["control"])
    found.roles = find_roles(obs, labels.contexts, labels.batches, labels.further, read)
    tell_roles(found)
    found.context, found.batch = found.roles.context, found.roles.batch
    keys |= {"context": keys["name"]} if found.context is None else {"context_column": found.context}
    keys |= {} if found.batch is None else {"batch_column": found.batch}
    return None if cells is None else _labelled(obs, found, keys, asked)


def _labelled(obs: pd.DataFrame, found: Inspection, keys: dict[str, Any], asked: bool) -> Labels | None:
    """The labels with these keys; None where perturbation or control are not known, or cannot be read."""
    # A column that is not there is refused below, whether a control is known or not.
    if not {"perturbation_column", "control"} <= keys.keys() and keys.get("perturbation_column") in {None, *obs}:
        return None
    try:
        return read_labels(obs, SourceConfig(**keys), found.path)
    except UserError as error:
        if asked:
            raise
        found.problems.append(str(error).removeprefix(f"{found.path}: "))
        return None


def _targets(
    used: _Opened, found: Inspection, labels: Labels, keys: dict[str, Any], progress: Progresses | None
) -> KnockDown:
    if used.reading is None:
        return KnockDown("the scale of the values is not known" + (": see --all" if found.chosen else ""))
    if found.genes.symbols is None:
        return KnockDown("the genes have no symbols")
    named = gene_columns(used.var, found.genes.symbols, "sum", used.facts.name)
    return knock_down(
        used.matrix,
        used.reading,
        named.columns,
        named.genes,
        labels.cells,
        labels.rows,
        keys["control"],
        keys["separator"],
        used.facts.genes if used.facts.encoding == "dense" else used.facts.values_per_cell,
        None if progress is None else progress("knock-down"),
    )


def _is_read(keys: dict[str, Any], found: Inspection) -> bool:
    """Whether the file opens with these keys."""
    try:
        AnnDataSource(SourceConfig(**keys)).close()
    except UserError as error:
        found.problems.append(f"with all that is known, the file is still refused: {error}")
        return False
    return True
