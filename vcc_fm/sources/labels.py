"""Labels of the cells of a file: which cells are kept, and their context, batch and perturbation."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vcc_fm.ground.arrays import Arrays, counted, made_once, narrow, places
from vcc_fm.ground.errors import UserError
from vcc_fm.ground.words import many
from vcc_fm.recipe.data import SourceConfig
from vcc_fm.sources.barcodes import numbered, with_numbers
from vcc_fm.sources.obs import Column, FrameObs, Obs, ranges, read_column
from vcc_fm.sources.perturbations import is_control, read_perturbations

_NO_LABEL = {"", "nan", "NaN", "None", "<NA>"}


@dataclass(frozen=True)
class Labels:
    """The kept cells of a file and their labels.

    Attributes:
        obs: the table that they are from.
        rows: [n] int32 (int64 where the file needs it), rows in the file, rising.
        codes: context, batch, perturbation: [n] int8, int16 or int32, places in ``names``.
        names: context, batch, perturbation: labels (str), each of which has cells.
        numbers: what :func:`numbered` found.
        dropped: reason -> number of cells.
        repairs: name of a repair -> number of cells.
    """

    obs: Obs
    rows: np.ndarray
    codes: Arrays
    names: dict[str, np.ndarray]
    numbers: tuple[np.ndarray, np.ndarray]
    dropped: dict[str, int]
    repairs: dict[str, int]

    def barcodes(self, start: int, stop: int) -> np.ndarray:
        """[stop - start] str (object), distinct barcodes of the cells from one to another, read from the file."""
        rows = self.rows[start:stop].astype(np.int64)
        if not len(rows):
            return np.empty(0, object)
        read = [self.obs.barcodes(rows[0] + a, rows[0] + b) for a, b in ranges(int(rows[-1] + 1 - rows[0]))]
        return with_numbers(np.concatenate(read)[rows - rows[0]], rows, self.numbers)

    def barcode(self, cell: int) -> str:
        """That of one of the cells, for a message."""
        return str(self.barcodes(int(cell), int(cell) + 1)[0])

    @property
    def cells(self) -> pd.DataFrame:
        """A table to look at, made anew: index 0..n-1, columns barcode, context, batch, perturbation, all str."""
        labels = {label: self.names[label][codes] for label, codes in self.codes.items()}
        return pd.DataFrame({"barcode": self.barcodes(0, len(self.rows)), **labels})


def kept_labels(obs: Obs, config: SourceConfig, where: str, path: Path | None) -> Labels:
    """What :func:`read_labels` returns; one process makes it, and all map it from the file ``path``, if any."""

    def make() -> tuple[Arrays, dict[str, Any]]:
        labels = read_labels(obs, config, where)
        numbered, added = labels.numbers
        arrays = {"rows": labels.rows, "numbered": numbered, "added": added.view(np.uint8).reshape(-1, added.itemsize)}
        said = {"dropped": labels.dropped, "repairs": labels.repairs}
        names = {label: known.tolist() for label, known in labels.names.items()}
        return arrays | labels.codes, said | {"names": names}

    kept, said = made_once(path, make)
    names = {label: np.array(known, dtype=object) for label, known in said["names"].items()}
    codes = {label: kept[label] for label in names}
    added = kept["added"].view(f"S{kept['added'].shape[1]}").ravel()
    return Labels(obs, kept["rows"], codes, names, (kept["numbered"], added), said["dropped"], said["repairs"])


def read_labels(table: Obs | pd.DataFrame, config: SourceConfig, where: str) -> Labels:
    """Choose the cells of a source and read their labels.

    Args:
        table: of all cells of the file.
        config: which columns hold the labels, and which cells are kept.
        where: source and file, for messages.

    Returns:
        Labels with sorted names; combinations are sorted parts joined by the separator.

        A dropped cell is counted under the first reason of: keep, number of guides, no label, unassigned label.

    Raises:
        UserError: a column is absent, keep or the number of guides leaves nothing or no control, the labels are
            refused by :func:`read_perturbations`, or a context or batch is missing.
    """
    obs = FrameObs(table) if isinstance(table, pd.DataFrame) else table
    wanted = [config.perturbation_column, config.context_column, config.batch_column, config.quality.guides_column]
    _check_columns(obs, [*wanted, *config.keep], where)
    repairs: Counter[str] = Counter()
    if config.perturbation_column is None:
        target = Column("", np.zeros(len(obs), np.int8), [config.control], np.dtype(object), "")
    else:
        target = read_column(obs, config.perturbation_column)
    kept, dropped, left_out = _kept(obs, target, config, where)
    numbers = numbered(obs)
    rows = places(kept)
    if renamed := int(kept[numbers[0]].sum()):
        repairs["duplicate barcodes numbered"] = renamed
    present, chosen, cells = _present(target, rows)
    texts, read = read_perturbations([target.objects[code] for code in present], cells, config, left_out, where)
    repairs.update(read)
    perturbation = _named(chosen, present, texts)
    labels = {}
    for label, column, constant in (
        ("context", config.context_column, config.context),
        ("batch", config.batch_column, config.name),
    ):
        if column is None:
            labels[label] = np.zeros(len(rows), np.int8), np.array([constant], dtype=object)
        else:
            labels[label] = column_labels(obs, column, rows, repairs, where)
    labels["perturbation"] = perturbation
    codes, names = ({label: pair[part] for label, pair in labels.items()} for part in (0, 1))
    return Labels(obs, rows, codes, names, numbers, dropped, dict(repairs))


def _check_columns(obs: Obs, columns: list[str | None], where: str) -> None:
    for column in columns:
        if column is not None and column not in obs.columns:
            near = difflib.get_close_matches(column, list(obs.columns), n=1)
            raise UserError(
                f"{where}: obs has no column {column!r}"
                + (f"; did you mean {near[0]!r}?" if near else "")
                + f" (columns: {', '.join(map(str, obs.columns)) or 'none'})"
            )


def _kept(
    obs: Obs, target: Column, config: SourceConfig, where: str
) -> tuple[np.ndarray, dict[str, int], dict[str, int]]:
    """Which of all cells are kept; reason -> number of the others; and of these, label -> number of cells."""
    dropped: dict[str, int] = {}
    texts = [str(label).strip() for label in target.objects]
    controls = target.of_cells(np.array([is_control(text, config) for text in texts], bool), False)
    kept = _keep(obs, config.keep, dropped, where)
    _check_controls(controls, kept, f"{where}: keep={config.keep}", config)
    if config.quality.guides_column is not None:
        column = read_column(obs, config.quality.guides_column)
        numbers = pd.to_numeric(pd.Series(column.objects, dtype=object), errors="coerce").to_numpy(np.float64)
        kept &= _with_guides(column, numbers, kept, config.quality.guides, dropped, where)
        found = _found(column, numbers, controls)
        what = f"{where}: quality.guides={config.quality.guides} of {config.quality.guides_column!r}"
        _check_controls(controls, kept, what, config, f"; they have {found}: add that to quality.guides")
    labelled = ~target.of_cells(missing_labels(pd.Series(target.objects, dtype=object)), True)
    if unlabelled := int((kept & ~labelled).sum()):
        dropped["no perturbation label"] = unlabelled
    kept &= labelled
    unassigned = {folded(text) for text in config.quality.unassigned}
    match = np.array([not is_control(text, config) and folded(text) in unassigned for text in texts], bool)
    left_out: Counter[str] = Counter()
    for code, number in enumerate(counted(target.codes[kept], len(texts)).tolist()):
        if number and match[code]:
            left_out[texts[code]] += number
    kept &= ~target.of_cells(match, False)
    dropped |= {f"label {label!r}: no guide or several": number for label, number in left_out.items()}
    return kept, dropped, dict(left_out)


def _present(column: Column, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes of the values in some rows, in the order in which they come; codes of the rows; cells of each value."""
    chosen = column.codes[rows]
    present = pd.unique(chosen)
    return present, chosen, counted(chosen, len(column.values))[present]


def _named(chosen: np.ndarray, present: np.ndarray, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Codes of cells whose value ``present[i]`` is called ``texts[i]``, and the sorted names."""
    names = np.array(sorted(set(texts)), dtype=object)
    code_of = np.zeros(int(present.max()) + 1, narrow(len(names)))
    code_of[present] = np.searchsorted(names, np.array(texts, dtype=object))
    return code_of[chosen], names


def _keep(obs: Obs, keep: dict[str, Any], dropped: dict[str, int], where: str) -> np.ndarray:
    kept = np.ones(len(obs), bool)
    for name, wanted in keep.items():
        column = read_column(obs, name)
        matches = {repr(item): (column.values == item).to_numpy(bool, na_value=False) for item in _items(wanted)}
        for item, of_values in matches.items():
            if not of_values.any():
                raise UserError(
                    f"{where}: keep.{name}: no cell has {item}; obs column {name!r} ({column.told}) holds "
                    + ", ".join(map(repr, column.objects[:8]))
                )
        match = column.of_cells(np.logical_or.reduce(list(matches.values())), False)
        if left_out := int((kept & ~match).sum()):
            dropped[f"keep {name}"] = left_out
        kept &= match
    if not kept.any():
        raise UserError(f"{where}: keep leaves no cell ({keep}): no cell has all of these values")
    return kept


def _items(wanted: Any) -> list[Any]:
    return wanted if isinstance(wanted, list) else [wanted]


def _with_guides(
    column: Column, numbers: np.ndarray, kept: np.ndarray, wanted: list[int], dropped: dict[str, int], where: str
) -> np.ndarray:
    """Which of all cells have a wanted number of guides; the others among the kept ones are counted.

    Args:
        column: with the numbers.
        numbers: [L] float64, its values as numbers; NaN where one is none.
        kept: [N] bool.
        wanted: numbers of guides.
        dropped: reason -> number of cells; what is left out is added.
        where: source and file, for messages.
    """
    what = f"{where}: quality.guides_column {column.name!r}"
    wrong = np.isnan(numbers) & ~missing_labels(pd.Series(column.objects, dtype=object))
    if wrong.any():
        raise UserError(
            f"{what} holds {column.objects[wrong.argmax()]!r}, which is no number; give the column with the number of "
            "guides of each cell, or choose cells by a label with keep"
        )
    match = column.of_cells(np.isin(numbers, wanted), False)
    if not (kept & match).any():
        raise UserError(f"{what}: no kept cell has {_any_of(wanted)} guides; found {_found(column, numbers, kept)}")
    absent = column.of_cells(np.isnan(numbers), True)
    for reason, cells in {
        f"{column.name}: number of guides is not {_any_of(wanted)}": kept & ~match & ~absent,
        f"{column.name}: no number of guides": kept & absent,
    }.items():
        if cells.any():
            dropped[reason] = int(cells.sum())
    return match


def _found(column: Column, numbers: np.ndarray, cells: np.ndarray) -> str:
    """The numbers of guides of some cells ([N] bool), in the order in which they come."""
    found = pd.Series(np.append(numbers, np.nan)[pd.unique(column.codes[cells])])
    return ", ".join(f"{number:g}" for number in found.dropna().unique()[:8]) or "no number"


def _any_of(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))


def _check_controls(controls: np.ndarray, kept: np.ndarray, what: str, config: SourceConfig, do: str = "") -> None:
    """Refuse what leaves none of the control cells."""
    if controls.any() and not (controls & kept).any():
        cells = many(int(controls.sum()), "cell")
        raise UserError(f"{what} leaves out all {cells} of the control {config.control!r}{do}")


def folded(label: str) -> str:
    """A label of unassigned cells in its one form."""
    return re.sub("[-_ ]+", " ", label.strip()).casefold()


def missing_labels(values: pd.Series) -> np.ndarray:
    """[cells] bool: which cells have no label: none is stored, or one that stands for none."""
    return (values.isna() | values.astype(object).astype(str).str.strip().isin(_NO_LABEL)).to_numpy(bool)


def column_labels(
    obs: Obs, name: str, rows: np.ndarray, repairs: Counter[str], where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and sorted names of the values of a column as text, in some rows; repairs are counted.

    Raises:
        UserError: there is no such column, or it has no value in some of the rows.
    """
    _check_columns(obs, [name], where)
    column = read_column(obs, name)
    missing = missing_labels(pd.Series(column.objects, dtype=object))
    chosen = column.codes[rows]
    without = int(np.append(missing, True)[chosen].sum())
    if without:
        raise UserError(
            f"{where}: obs column {column.name!r} has no value in {without} of {len(rows)} kept cells; "
            "choose the cells that have one with keep, or fill it in the file"
        )
    present, chosen, cells = _present(column, rows)
    values = [column.objects[code] for code in present]
    # A column of whole numbers that once held a missing value is stored as float: 1.0 is batch 1.
    texts = [str(int(value)) if isinstance(value, float) and value.is_integer() else str(value) for value in values]
    stripped = [text.strip() for text in texts]
    touched = sum(int(n) for text, of, n in zip(texts, stripped, cells, strict=True) if text != of)
    if touched:
        repairs[f"{column.name} values stripped of spaces"] = touched
    return _named(chosen, present, stripped)
