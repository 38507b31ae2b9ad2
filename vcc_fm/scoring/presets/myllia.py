"""The score of Myllia's challenge "Echoes of Silenced Genes" (2026): how much nearer than a baseline, times a cosine.

A response is the mean over cells of log2(1 + 1e4 count / depth), less that of control cells. Of L perturbations and G
genes with true responses t, predicted ones x and weights w whose rows sum to G:

- error of a row: the mean over genes of w |t - x|; its gain: log2 of the baseline's error over it, at most 5;
- cosine over all rows and genes: each product counts g², g = u²(3 - 2u), u = (max(|t|, |x|) - left) / (right - left)
  within 0 and 1, so that what both call small says nothing;
- score: the sum of the gains times the cosine, or 0 where that is negative.

The platform's own rows have a table (:func:`score_table`), with weights and the baseline's error. For other cells both
are made as the challenge describes them: c = min(|moderated t| + 0.1, 10), 0 for the target gene, w = G c² / sum c².
The moderated t compares the cells of a perturbation with control cells. The platform's baseline is the mean of the
training responses; beside measured cells alone it is the mean of theirs, which is nearer to them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.words import listed, many
from vcc_fm.scoring.anchors import Anchors, anchors_folder, load_anchors
from vcc_fm.scoring.moderated import moderated_t
from vcc_fm.scoring.preset import NO_VALUE, ContextScorer, Measured, Metric, Preset, Scale
from vcc_fm.scoring.profiles import label_means, log_normalized
from vcc_fm.scoring.replicate import replicate

TOTAL = 10_000.0
MOST_GAIN, TINY = 5.0, 1e-12
GATE = 0.0, 0.2
"""Left and right end, as in the platform's code; its text has 0.3 for the right one."""
LEAST, MOST = 0.1, 10.0
"""What is added to |t| in a weight, and its largest value."""
ID, BASELINE, WEIGHT = "pert_id", "baseline_wmae", "w_"
"""Columns of the platform's tables; a weight's is this and the gene."""


class Score(NamedTuple):
    """What a table of predictions gets: the score, the gain of each row [L], and the cosine."""

    total: float
    gains: np.ndarray
    cosine: float


def score_responses(
    truth: np.ndarray,
    predicted: np.ndarray,
    weights: np.ndarray,
    baseline: np.ndarray,
    gate: tuple[float, float] = GATE,
) -> Score:
    """Score predicted responses.

    Args:
        truth: true responses, [L, G].
        predicted: [L, G].
        weights: [L, G].
        baseline: the baseline's error of each row, [L].
        gate: sizes up to which a response says nothing in the cosine, and from which it says all.
    """
    error = np.mean(weights * np.abs(truth - predicted), axis=1)
    gains = np.minimum(MOST_GAIN, np.log2(np.maximum(baseline, TINY) / np.maximum(error, TINY)))
    u = np.clip((np.maximum(np.abs(truth), np.abs(predicted)) - gate[0]) / (gate[1] - gate[0]), 0, 1)
    share = np.square(np.square(u) * (3 - 2 * u))
    length = np.sqrt(np.sum(share * truth**2) * np.sum(share * predicted**2))
    cosine = float(np.sum(share * truth * predicted) / length) if length >= TINY else 0.0
    return Score(float(gains.sum()) * max(0.0, cosine), gains, cosine)


def score_table(solution: pd.DataFrame, submission: pd.DataFrame, gate: tuple[float, float] = GATE) -> float:
    """The platform's score of a submission, to its five decimals.

    Args:
        solution: columns ``pert_id``, a column a gene, ``w_GENE`` for each, ``baseline_wmae``
            (``training_data_ground_truth_table.csv`` has this form).
        submission: ``pert_id`` and the same genes, rows and columns in any order.
        gate: see :func:`score_responses`.

    Raises:
        UserError: ids or genes differ or repeat, a value is not finite, or weights do not sum to the number of genes.
    """
    genes = [name for name in solution.columns if name not in (ID, BASELINE) and f"{WEIGHT}{name}" in solution]
    truth, found = solution.set_index(ID), checked(submission, genes, solution[ID].tolist())
    weights = truth[[f"{WEIGHT}{gene}" for gene in genes]]
    if (worst := np.abs(weights.sum(axis=1) - len(genes)).max()) > 1e-6:
        raise UserError(f"solution: weights of a row sum to {len(genes)} but for {worst:.2g}; get the table again")
    predicted, baseline = found.loc[truth.index].to_numpy(float), truth[BASELINE].to_numpy(float)
    true, weight = truth[genes].to_numpy(float), weights.to_numpy(float)
    return round(score_responses(true, predicted, weight, baseline, gate).total, 5)


def checked(submission: pd.DataFrame, genes: list[str], ids: list[Any]) -> pd.DataFrame:
    """A submission as the platform takes it: genes, indexed by id.

    Raises:
        UserError: ids or genes are not those asked for, or a value is no finite number.
    """
    there = {"genes": submission.columns.drop(ID, errors="ignore"), "ids": pd.Index(submission.get(ID, []))}
    for what, wanted in {"genes": pd.Index(genes), "ids": pd.Index(ids)}.items():
        faults = {
            f"{what} repeat": there[what][there[what].duplicated()].unique(),
            f"lacks {what}": wanted.difference(there[what]),
            f"has unknown {what}": there[what].difference(wanted),
        }
        for said, names in faults.items():
            if len(names):
                raise UserError(f"submission: {said}: {listed(list(map(str, names)))}")
    values = submission.set_index(ID)[genes].apply(pd.to_numeric, errors="coerce")
    if wrong := int((~np.isfinite(values.to_numpy(float))).sum()):
        raise UserError(f"submission: {many(wrong, 'value')} not finite numbers; a response is a number")
    return values


class Myllia(Preset):
    """Gain over the mean response, gated cosine, and their product."""

    scorer = "scipy"
    metrics: ClassVar[dict[str, Metric]] = {name: Metric(name) for name in ("score", "gain", "cosine")}
    needed = 1
    low, high = "the mean response of the truth", "a replicate (split halves)"

    def parameters(self) -> dict[str, Any]:
        """See :class:`Preset`."""
        return {
            "values": "mean over cells of log2(1 + 1e4 count / depth), less that of control cells",
            "gate": [*GATE],
            "most_gain": MOST_GAIN,
            "weights": "min(|moderated t| + 0.1, 10) squared, 0 for the target gene",
            "baseline": self.low,
            "control_source": "real",
        }

    def open(self, real: ad.AnnData, context: str, control: str, cache: Path, digest: str) -> ContextScorer:
        """See :class:`Preset`."""
        truth = _Truth(real, control)

        def measure() -> Anchors:
            ceiling = replicate(real, lambda half, other, _: _Truth(other, control).measure(half))
            low = truth.measured(np.broadcast_to(truth.responses.mean(axis=0), truth.responses.shape))
            scales = {
                name: Scale(low[name].value, ceiling[name].value)
                if name in ceiling and ceiling[name].value > low[name].value
                else Scale(reason="a replicate is no better than the mean response" if name in ceiling else NO_VALUE)
                for name in self.metrics
            }
            return Anchors(scales, low, ceiling, truth.significant)

        load_anchors(anchors_folder(cache, digest, context, control, self), measure).give(truth)
        return truth


class _Truth(ContextScorer):
    """Measured cells of one context, with controls, raw counts: ``responses`` [L, G]."""

    def __init__(self, cells: ad.AnnData, control: str):
        log = log_normalized(cells, TOTAL)
        squared = log.copy()
        squared.X = log.X.power(2)
        means, number = label_means(log), cells.obs["perturbation"].astype(str).value_counts()
        squares = (label_means(squared) - means**2).mul(number.reindex(means.index), axis=0).clip(lower=0)
        self._labels = means.index.drop(control).tolist()
        self._control, self._means, self.notes = control, means, []
        tables = means, squares, number
        tested = [moderated_t(*(of.loc[[label, control]].to_numpy() for of in tables)) for label in self._labels]
        t, p = np.stack(tested, axis=1)
        targets = np.array(self._labels)[:, None] == cells.var_names.to_numpy(str)
        # A false discovery rate below 0.05, the target left out.
        self.significant: dict[str, int] = {
            label: int(np.sum(false_discovery_control(one[~target]) < 0.05))
            for label, one, target in zip(self._labels, p, targets, strict=True)
        }
        self.responses = self._responses(means)
        self._weights = weights_of(t, targets)
        self._baseline = np.mean(self._weights * np.abs(self.responses - self.responses.mean(axis=0)), axis=1)

    def _responses(self, means: pd.DataFrame) -> np.ndarray:
        """Responses of mean cells, against their own control cells, or else those measured."""
        control = (means if self._control in means.index else self._means).loc[self._control]
        return (means.loc[self._labels] - control).to_numpy() / np.log(2)

    def measure(self, predicted: ad.AnnData) -> dict[str, Measured]:
        """See :class:`ContextScorer`; cells with controls of their own are compared with these."""
        return self.measured(self._responses(label_means(log_normalized(predicted, TOTAL))))

    def measured(self, predicted: np.ndarray) -> dict[str, Measured]:
        """Metrics of predicted responses [L, G]; score and cosine are one number for all rows."""
        found = score_responses(self.responses, predicted, self._weights, self._baseline)
        return {
            "score": Measured(found.total, len(self._labels)),
            "gain": Measured.mean(dict(zip(self._labels, found.gains, strict=True))),
            "cosine": Measured(found.cosine, len(self._labels)),
        }


def weights_of(t: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Weights of genes, [L, G], whose rows sum to G.

    Args:
        t: moderated t, [L, G].
        targets: whether a gene is the one that was silenced, [L, G].
    """
    size = np.where(targets, 0.0, np.minimum(np.abs(t) + LEAST, MOST))
    squared = np.square(size / size.max(axis=1, keepdims=True))
    return np.asarray(t.shape[1] * squared / squared.sum(axis=1, keepdims=True))
