"""What is in an h5ad file or a zarr store: values, genes, labels, what is wrong, and the recipe lines to read it by.

Nothing is taken from a recipe, and nothing is guessed where it cannot be told: a guess is named with what speaks for
it, and the recipe lines are tried by opening the file with them.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import pandas as pd

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.paths import expand
from vcc_fm.inspection.genes import GeneFacts, read_genes
from vcc_fm.inspection.groups import Groups, count_groups, numbers_to_keep
from vcc_fm.inspection.labels import LabelFacts, possible_depths, read_obs
from vcc_fm.inspection.names import known_names, transposed
from vcc_fm.inspection.problems import Remarks, tell_genes, tell_groups, tell_labels, tell_matrices, tell_roles
from vcc_fm.inspection.recipe import recipe_lines, source_keys, worth_reading
from vcc_fm.inspection.roles import Roles, find_roles
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


@dataclass(frozen=True)
class Inspection:
    """What is in a file."""

    path: str
    bytes: int
    cells: int
    every_value: bool
    """Whether every value was read, or a sample of cells."""
    matrices: list[MatrixFacts]
    unreadable: dict[str, str]
    """Matrices that cannot be read -> why."""
    read: str | None
    """The matrix to read."""
    genes: GeneFacts
    labels: LabelFacts
    perturbation: str | None
    control: str | None
    also_control: list[str]
    """Further labels that are read as the control."""
    roles: Roles
    """Columns that may be the context and the batch, and why."""
    context: str | None
    """Column of obs."""
    batch: str | None
    """Column of obs."""
    groups: Groups | None
    targets: KnockDown | None
    problems: list[str]
    """What a reader has to decide or to mend."""
    notes: list[str]
    """What does no harm with the suggested lines."""
    recipe: str | None
    """Lines for a recipe; None where there is nothing to suggest."""
    tried: bool
    """Whether the file was opened with these lines, and its values verified on a sample of cells."""


@dataclass(frozen=True)
class _Opened:
    matrix: Matrix
    reading: Reading | float | None
    var: pd.DataFrame


def inspect_file(
    path: Path,
    perturbation: str | None = None,
    control: str | None = None,
    every_value: bool = False,
    progress: Callable[[str], Progress] = lambda what: lambda done, total: None,
) -> Inspection:
    """Tell what is in an h5ad file.

    Args:
        path: of the file; ``~`` and ``${VARIABLE}`` are expanded.
        perturbation: obs column with the perturbation label, where the guess is to be overruled.
        control: label of the control cells in it, likewise.
        every_value: read all values of all matrices, rather than a sample of cells.
        progress: gives, for the name of a work, what is told (rows done, rows); only for ``every_value``.

    Raises:
        UserError: the file is missing, damaged or no h5ad, it has no cells, none of its matrices can be read, or it
            has no such column or label.
    """
    path = expand(str(path))
    where = str(path)
    told = Remarks()
    with ExitStack() as stack:
        if path.is_file() and path.suffix != ".zip" and not h5py.is_hdf5(path):
            raise UserError(f"{where}: no HDF5 file; give an h5ad file, or a zarr store (a folder, or its .zip)")
        file = stack.enter_context(open_file(path, where, None))
        names = _matrices(file, where)
        # A column that is cut short is found when the file is opened with the suggested lines.
        obs = read_table(file, "obs", set(), where)
        if not len(obs):
            raise UserError(f"{where}: no cells: obs has no rows; get a file that has")
        facts, opened, unreadable = _look_at(file, names, obs, where, stack, progress if every_value else None)
        chosen = choose(facts)
        used = opened[(chosen or facts[0]).name]
        genes = read_genes(used.var, where)
        known = known_names(used.var, genes)
        labels = read_obs(obs, known, perturbation)
        keys = source_keys(path, chosen, genes, labels, perturbation, control)
        cells, roles = None, Roles()
        told.problems.extend(f"{name}: {why.removeprefix(f'{where}, {name}: ')}" for name, why in unreadable.items())
        tell_matrices(facts, chosen, told)
        if transposed(obs, used.var, known):
            told.problems.append(
                f"the file is transposed: obs holds genes ({obs.index[0]}, …), var holds cells ({used.var.index[0]}, "
                "…); write it again as adata.T"
            )
        else:
            tell_genes(genes, told)
            tell_labels(labels, control, genes.symbols is not None or genes.incomplete is not None, told)
            asked = perturbation is not None or control is not None
            alone = keys | {"context": keys["name"]}
            cells = _labelled(obs, alone, where, told, asked)
            read = None if cells is None else (cells, keys["control"])
            roles = find_roles(obs, labels.contexts, labels.batches, labels.further, read)
            tell_roles(roles, told)
            keys = alone if roles.context is None else keys | {"context_column": roles.context}
            keys |= {} if roles.batch is None else {"batch_column": roles.batch}
            cells = None if cells is None else _labelled(obs, keys, where, told, asked)
        groups = targets = None
        guides = {}
        if cells is not None:
            groups = count_groups(cells, keys["control"], keys["separator"])
            tell_groups(groups, told)
            guides = {
                column: numbers_to_keep(obs[column], cells, keys["control"], keys["separator"])
                for column in labels.numbers_of_guides
            }
            targets = _targets(used, chosen, genes, cells, keys, progress if every_value else None)
    tried = suggested = False
    if chosen is not None and cells is not None and worth_reading(chosen):
        tried = chosen.told and genes.symbols is not None and _is_read(keys, told)
        suggested = tried or not chosen.told
    guides = {column: numbers for column, numbers in guides.items() if numbers}
    return Inspection(
        path=where,
        bytes=bytes_of(path),
        cells=len(obs),
        every_value=every_value,
        matrices=facts,
        unreadable=unreadable,
        read=chosen.name if chosen else None,
        genes=genes,
        labels=labels,
        perturbation=keys.get("perturbation_column"),
        control=keys.get("control"),
        also_control=keys.get("also_control", []),
        roles=roles,
        context=roles.context,
        batch=roles.batch,
        groups=groups,
        targets=targets,
        problems=told.problems,
        notes=told.notes,
        recipe=recipe_lines(keys, chosen, labels, roles, groups, guides) if suggested else None,
        tried=tried,
    )


def _matrices(file: File, where: str) -> list[str]:
    """Names of the matrices of a file that is AnnData."""
    if "obs" not in file and "matrix" in file:
        raise UserError(f"{where}: a 10x file: read it with sc.read_10x_h5, add labels to obs, then write_h5ad")
    names = matrices(file)
    if not names:
        raise UserError(f"{where}: has no matrix (X, raw, layers); get the file with counts")
    locate(file, names[0], where)
    return names


def _look_at(
    file: File,
    names: list[str],
    obs: pd.DataFrame,
    where: str,
    stack: ExitStack,
    progress: Callable[[str], Progress] | None,
) -> tuple[list[MatrixFacts], dict[str, _Opened], dict[str, str]]:
    """What each matrix holds, the matrices as opened, and why others cannot be read."""
    totals = possible_depths(obs)
    facts: list[MatrixFacts] = []
    opened: dict[str, _Opened] = {}
    unreadable: dict[str, str] = {}
    for name in names:
        try:
            stored, table = locate(file, name, where)
            var = read_table(file, table, set(), where)
            matrix = open_matrix(stored, f"{where}, {name}", stack)
            if matrix.shape != (len(obs), len(var)):
                raise UserError(
                    f"{where}, {name}: cut short or damaged (shape {matrix.shape}, obs and var have {len(obs)} "
                    f"and {len(var)} rows)"
                )
            found, reading = look(
                name, stored, matrix, (obs.index, var.index), totals, None if progress is None else progress(name)
            )
        except UserError as error:
            unreadable[name] = str(error)
            continue
        facts.append(found)
        opened[name] = _Opened(matrix, reading, var)
    if not facts:
        raise UserError(unreadable[names[0]])
    return facts, opened, unreadable


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

    possible = [one for one in facts if one.found is not None or not one.told]
    return min(possible, key=rank) if possible else None


def _labelled(obs: pd.DataFrame, keys: dict[str, Any], where: str, told: Remarks, asked: bool) -> Labels | None:
    """The labels as a recipe would read them; None where perturbation or control are not known, or cannot be read."""
    # A column that is not there is refused below, whether a control is known or not.
    if not {"perturbation_column", "control"} <= keys.keys() and keys.get("perturbation_column") in {None, *obs}:
        return None
    try:
        return read_labels(obs, SourceConfig(**keys), where)
    except UserError as error:
        if asked:
            raise
        told.problems.append(str(error).removeprefix(f"{where}: "))
        return None


def _targets(
    used: _Opened,
    chosen: MatrixFacts | None,
    genes: GeneFacts,
    labels: Labels,
    keys: dict[str, Any],
    progress: Callable[[str], Progress] | None,
) -> KnockDown:
    if chosen is None or used.reading is None:
        return KnockDown("the scale of the values is not known" + (": see --all" if chosen else ""))
    if genes.symbols is None:
        return KnockDown("the genes have no symbols")
    named = gene_columns(used.var, genes.symbols, "sum", chosen.name)
    return knock_down(
        used.matrix,
        used.reading,
        named.columns,
        named.genes,
        labels.cells,
        labels.rows,
        keys["control"],
        keys["separator"],
        used.matrix.shape[1] if chosen.encoding == "dense" else chosen.values_per_cell,
        None if progress is None else progress("knock-down"),
    )


def _is_read(keys: dict[str, Any], told: Remarks) -> bool:
    """Whether the file opens with these keys."""
    try:
        AnnDataSource(SourceConfig(**keys)).close()
    except UserError as error:
        told.problems.append(f"with all that is known, the file is still refused: {error}")
        return False
    return True
