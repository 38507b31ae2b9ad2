"""Scores of predicted expression as the challenge defines them: by nucleus, then region, sample, and all.

Spearman: correlation over genes of the average ranks of a nucleus, 0 where it is none (all predicted or all measured
values equal), mean over nuclei. MSE: mean over nuclei of the mean over genes. Regions weigh alike in a sample, samples
in all; an entry whose MSE reaches the limit is invalid.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from vcc_fm.ground.errors import UserError

ALL = "ALL"
MOST_ERROR = 0.2
COLUMNS = ["sample", "cell_id", "gene", "prediction"]


class Scores(NamedTuple):
    """Scores of one entry.

    Attributes:
        samples: index sample, and ``ALL`` last; spearman, mse, genes (mean gene correlation).
        nuclei: [n] float64, Spearman of each nucleus.
        valid: whether the MSE of all is below the limit.
    """

    samples: pd.DataFrame
    nuclei: np.ndarray
    valid: bool


def score(predicted: np.ndarray, measured: np.ndarray, sample: np.ndarray, region: np.ndarray) -> Scores:
    """Score one entry.

    Args:
        predicted: [n, G] log1p(100 x / total).
        measured: the same.
        sample: [n] str, the slide of each nucleus.
        region: [n] str, where on it the nucleus is.
    """
    spearman = correlation(rankdata(predicted, axis=1), rankdata(measured, axis=1), axis=1)
    error = ((predicted.astype(float) - measured) ** 2).mean(axis=1)
    frame = pd.DataFrame({"sample": sample, "region": region, "spearman": spearman, "mse": error})
    samples = frame.groupby(["sample", "region"]).mean().groupby("sample").mean()
    of = [sample == one for one in samples.index]
    samples["genes"] = [correlation(predicted[here], measured[here], axis=0).mean() for here in of]
    samples.loc[ALL] = samples.mean()
    return Scores(samples, spearman, bool(samples["mse"].to_numpy()[-1] < MOST_ERROR))


def correlation(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    """Pearson's correlation of two arrays along an axis, float64; 0 where one of them does not vary."""
    a, b = (values - values.mean(axis=axis, keepdims=True, dtype=float) for values in (a, b))
    # What is constant is so up to rounding.
    varies = (np.abs(a).max(axis=axis) > 1e-9) & (np.abs(b).max(axis=axis) > 1e-9)
    spread = np.sqrt((a**2).sum(axis=axis) * (b**2).sum(axis=axis))
    return np.where(varies, (a * b).sum(axis=axis) / np.where(varies, spread, 1.0), 0.0)


def long_table(sample: str, cells: np.ndarray, genes: list[str], predicted: np.ndarray) -> pd.DataFrame:
    """The challenge's table, a row a nucleus and gene: sample, cell_id, gene, prediction (>= 0, two decimals)."""
    values = np.round(np.maximum(predicted, 0.0).astype(float), 2).ravel()
    columns = sample, np.repeat(cells, len(genes)), np.tile(np.array(genes, object), len(cells)), values
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


def check_table(table: pd.DataFrame, sample: str, cells: pd.Index, genes: list[str]) -> None:
    """Refuse a sample's table that the challenge would refuse.

    Args:
        table: long, see :func:`long_table`.
        sample: whose it is.
        cells: cell_id of its nuclei of the groups validation and test.
        genes: the panel.

    Raises:
        UserError: other columns or another sample; a value that is missing, no number, infinite or below zero; or
            another set of nuclei and genes, each pair once.
    """
    if list(table.columns) != COLUMNS or set(table["sample"]) - {sample}:
        raise UserError(f"{sample}: expected the columns {', '.join(COLUMNS)} and this sample alone; predict again")
    values = table["prediction"]
    if values.dtype.kind != "f" or not np.isfinite(values).all() or (values < 0).any():
        raise UserError(f"{sample}: predictions must be finite numbers, zero or above; predict again")
    cell, gene = cells.get_indexer(pd.Index(table["cell_id"])), pd.Index(genes).get_indexer(pd.Index(table["gene"]))
    pair = np.sort(np.where((cell < 0) | (gene < 0), -1, cell * len(genes) + gene))
    if not np.array_equal(pair, np.arange(len(cells) * len(genes))):
        expected = f"each of {len(cells):,} nuclei x {len(genes)} genes once"
        raise UserError(f"{sample}: {len(table):,} rows are not {expected}; predict again")
