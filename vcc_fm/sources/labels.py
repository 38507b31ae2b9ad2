"""Labels of the cells of a file: which cells are kept, and their context, batch and perturbation."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.words import many
from vcc_fm.recipe.data import SourceConfig
from vcc_fm.sources.perturbations import is_control, read_perturbations

_NO_LABEL = {"", "nan", "NaN", "None", "<NA>"}


class Labels(NamedTuple):
    """The kept cells of a file, their rows in it, and the numbers of dropped and of repaired cells by reason."""

    cells: pd.DataFrame
    rows: np.ndarray
    dropped: dict[str, int]
    repairs: dict[str, int]


def read_labels(obs: pd.DataFrame, config: SourceConfig, where: str) -> Labels:
    """Choose the cells of a source and read their labels.

    Args:
        obs: table of all cells of the file.
        config: which columns hold the labels, and which cells are kept.
        where: source and file, for messages.

    Returns:
        cells: index 0..n-1, columns barcode, context, batch, perturbation, all str; combinations are sorted parts
        joined by the separator; rows: [n] int64.

        A dropped cell is counted under the first reason of: keep, number of guides, no label, unassigned label.

    Raises:
        UserError: a column is absent, keep or the number of guides leaves nothing or no control, the labels are
            refused by :func:`read_perturbations`, or a context or batch is missing.
    """
    wanted = [config.perturbation_column, config.context_column, config.batch_column, config.quality.guides_column]
    for column in [*wanted, *config.keep]:
        if column is not None and column not in obs.columns:
            near = difflib.get_close_matches(column, list(obs.columns), n=1)
            raise UserError(
                f"{where}: obs has no column {column!r}"
                + (f"; did you mean {near[0]!r}?" if near else "")
                + f" (columns: {', '.join(map(str, obs.columns)) or 'none'})"
            )
    repairs: Counter[str] = Counter()
    dropped: dict[str, int] = {}
    controls = _controls(obs[config.perturbation_column], config)
    kept = _keep(obs, config.keep, dropped, where)
    _check_controls(controls, kept, f"{where}: keep={config.keep}", config)
    if config.quality.guides_column is not None:
        kept &= _with_guides(obs[config.quality.guides_column], kept, config.quality.guides, dropped, where)
        found = _found(pd.to_numeric(obs[config.quality.guides_column].astype(object), errors="coerce")[controls])
        what = f"{where}: quality.guides={config.quality.guides} of {config.quality.guides_column!r}"
        _check_controls(controls, kept, what, config, f"; they have {found}: add that to quality.guides")
    labelled = ~missing_labels(obs[config.perturbation_column])
    if (kept & ~labelled).any():
        dropped["no perturbation label"] = int((kept & ~labelled).sum())
    kept &= labelled
    assigned, left_out = _assigned(obs[config.perturbation_column], kept, config)
    kept &= assigned
    dropped |= {f"label {label!r}: no guide or several": number for label, number in left_out.items()}
    rows = np.flatnonzero(kept)
    barcodes, renamed = _unique(pd.Series(obs.index.astype(str)))
    if renamed[rows].any():
        repairs["duplicate barcodes numbered"] = int(renamed[rows].sum())
    chosen = obs.iloc[rows]
    perturbation, read = read_perturbations(chosen[config.perturbation_column], config, left_out, where)
    repairs.update(read)
    context: Any = config.context
    if config.context_column is not None:
        context = _text(chosen[config.context_column], repairs, where)
    batch: Any = config.name
    if config.batch_column is not None:
        batch = _text(chosen[config.batch_column], repairs, where)
    cells = pd.DataFrame({"barcode": barcodes.to_numpy()[rows]})
    cells["context"], cells["batch"], cells["perturbation"] = context, batch, perturbation
    return Labels(cells, rows.astype(np.int64), dropped, dict(repairs))


def _keep(obs: pd.DataFrame, keep: dict[str, Any], dropped: dict[str, int], where: str) -> np.ndarray:
    kept = np.ones(len(obs), bool)
    for column, wanted in keep.items():
        values = obs[column]
        matches = {repr(item): (values == item).to_numpy(bool, na_value=False) for item in _items(wanted)}
        for item, match in matches.items():
            if not match.any():
                raise UserError(
                    f"{where}: keep.{column}: no cell has {item}; obs column {column!r} ({values.dtype}) holds "
                    + ", ".join(repr(value) for value in values.dropna().unique()[:8].tolist())
                )
        match = np.logical_or.reduce(list(matches.values()))
        if (kept & ~match).any():
            dropped[f"keep {column}"] = int((kept & ~match).sum())
        kept &= match
    if not kept.any():
        raise UserError(f"{where}: keep leaves no cell ({keep}): no cell has all of these values")
    return kept


def _items(wanted: Any) -> list[Any]:
    return wanted if isinstance(wanted, list) else [wanted]


def _with_guides(
    column: pd.Series, kept: np.ndarray, wanted: list[int], dropped: dict[str, int], where: str
) -> np.ndarray:
    """Which of all cells have a wanted number of guides; the others among the kept ones are counted."""
    what = f"{where}: quality.guides_column {column.name!r}"
    values = column.astype(object)
    numbers = pd.to_numeric(values, errors="coerce")
    wrong = (numbers.isna() & ~missing_labels(column)).to_numpy(bool)
    if wrong.any():
        raise UserError(
            f"{what} holds {values.iloc[wrong.argmax()]!r}, which is no number; give the column with the number of "
            "guides of each cell, or choose cells by a label with keep"
        )
    match = numbers.isin(wanted).to_numpy(bool)
    if not (kept & match).any():
        raise UserError(f"{what}: no kept cell has {_any_of(wanted)} guides; found {_found(numbers[kept])}")
    absent = numbers.isna().to_numpy(bool)
    for reason, cells in {
        f"{column.name}: number of guides is not {_any_of(wanted)}": kept & ~match & ~absent,
        f"{column.name}: no number of guides": kept & absent,
    }.items():
        if cells.any():
            dropped[reason] = int(cells.sum())
    return match


def _found(numbers: pd.Series) -> str:
    return ", ".join(f"{number:g}" for number in numbers.dropna().unique()[:8]) or "no number"


def _any_of(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))


def _controls(column: pd.Series, config: SourceConfig) -> np.ndarray:
    """Which of all cells have the label of a control."""
    codes, labels = pd.factorize(column.astype(object))  # missing ones have code -1
    match = np.array([is_control(str(label).strip(), config) for label in labels] + [False])
    return match[codes]


def _check_controls(controls: np.ndarray, kept: np.ndarray, what: str, config: SourceConfig, do: str = "") -> None:
    """Refuse what leaves none of the control cells."""
    if controls.any() and not (controls & kept).any():
        cells = many(int(controls.sum()), "cell")
        raise UserError(f"{what} leaves out all {cells} of the control {config.control!r}{do}")


def _assigned(column: pd.Series, kept: np.ndarray, config: SourceConfig) -> tuple[np.ndarray, dict[str, int]]:
    """Which of all cells have a label that does not mean no guide or several; the other labels, with kept cells."""
    codes, labels = pd.factorize(column.astype(object))
    texts = [str(label).strip() for label in labels]
    unassigned = {folded(text) for text in config.quality.unassigned}
    match = np.array([not is_control(text, config) and folded(text) in unassigned for text in texts] + [False])
    left_out: Counter[str] = Counter()
    for code, number in zip(*np.unique(codes[kept & match[codes]], return_counts=True), strict=True):
        left_out[texts[code]] += int(number)
    return ~match[codes], dict(left_out)


def folded(label: str) -> str:
    """A label of unassigned cells in its one form."""
    return re.sub("[-_ ]+", " ", label.strip()).casefold()


def missing_labels(values: pd.Series) -> np.ndarray:
    """[cells] bool: which cells have no label: none is stored, or one that stands for none."""
    return (values.isna() | values.astype(object).astype(str).str.strip().isin(_NO_LABEL)).to_numpy(bool)


def _unique(barcodes: pd.Series) -> tuple[pd.Series, np.ndarray]:
    """Append -1, -2, … to what repeats; again, where that name is taken already."""
    unique = barcodes
    while unique.duplicated().any():
        rank = unique.groupby(unique).cumcount()
        unique = unique.where(rank == 0, unique + "-" + rank.astype(str))
    return unique, (unique != barcodes).to_numpy()


def _text(column: pd.Series, repairs: Counter[str], where: str) -> np.ndarray:
    missing = missing_labels(column)
    if missing.any():
        raise UserError(
            f"{where}: obs column {column.name!r} has no value in {int(missing.sum())} of {len(column)} kept cells; "
            "choose the cells that have one with keep, or fill it in the file"
        )
    codes, values = pd.factorize(column.astype(object))
    # A column of whole numbers that once held a missing value is stored as float: 1.0 is batch 1.
    texts = [str(int(value)) if isinstance(value, float) and value.is_integer() else str(value) for value in values]
    stripped = np.array([text.strip() for text in texts], dtype=object)
    touched = int((stripped != np.array(texts, dtype=object))[codes].sum())
    if touched:
        repairs[f"{column.name} values stripped of spaces"] = touched
    return stripped[codes]
