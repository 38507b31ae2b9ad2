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

from collections.abc import Mapping
from dataclasses import dataclass
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
    left: float = 0.0,
    right: float = 0.2,
) -> Score:
    """Score predicted responses.

    Args:
        truth: true responses, [L, G].
        predicted: [L, G].
        weights: [L, G].
        baseline: the baseline's error of each row, [L].
        left: size up to which a response says nothing in the cosine.
        right: size from which it says all; 0.2 in the platform's code, 0.3 in its text.
    """
    error = np.mean(weights * np.abs(truth - predicted), axis=1)
    gains = np.minimum(MOST_GAIN, np.log2(np.maximum(baseline, TINY) / np.maximum(error, TINY)))
    u = np.clip((np.maximum(np.abs(truth), np.abs(predicted)) - left) / (right - left), 0, 1)
    gate = np.square(np.square(u) * (3 - 2 * u))
    length = np.sqrt(np.sum(gate * truth**2) * np.sum(gate * predicted**2))
    cosine = float(np.sum(gate * truth * predicted) / length) if length >= TINY else 0.0
    return Score(float(gains.sum()) * max(0.0, cosine), gains, cosine)


def score_table(solution: pd.DataFrame, submission: pd.DataFrame, left: float = 0.0, right: float = 0.2) -> float:
    """The platform's score of a submission, to its five decimals.

    Args:
        solution: columns ``pert_id``, a column a gene, ``w_GENE`` for each, ``baseline_wmae``
            (``training_data_ground_truth_table.csv`` has this form).
        submission: ``pert_id`` and the same genes, rows and columns in any order.
        left: see :func:`score_responses`.
        right: see there.

    Raises:
        UserError: ids or genes differ or repeat, a value is not finite, or weights do not sum to the number of genes.
    """
    genes = [name for name in solution.columns if name not in (ID, BASELINE) and f"{WEIGHT}{name}" in solution]
    found = {"solution": solution.set_index(ID), "submission": checked(submission, genes, solution[ID].tolist())}
    truth = found["solution"][genes].to_numpy(float)
    weights = found["solution"][[f"{WEIGHT}{gene}" for gene in genes]].to_numpy(float)
    if (worst := np.abs(weights.sum(axis=1) - len(genes)).max()) > 1e-6:
        raise UserError(f"solution: weights of a row sum to {len(genes)} but for {worst:.2g}; get the table again")
    predicted = found["submission"].loc[found["solution"].index, genes].to_numpy(float)
    baseline = found["solution"][BASELINE].to_numpy(float)
    return round(score_responses(truth, predicted, weights, baseline, left, right).total, 5)


def checked(submission: pd.DataFrame, genes: list[str], ids: list[Any]) -> pd.DataFrame:
    """A submission as the platform takes it, indexed by id.

    Raises:
        UserError: ids or genes are not those asked for, or a value is no finite number.
    """
    columns = submission.columns.drop(ID, errors="ignore")
    asked = {"genes": (pd.Index(genes), columns), "ids": (pd.Index(ids), pd.Index(submission.get(ID, [])))}
    for what, (wanted, there) in asked.items():
        if there.has_duplicates:
            again = there[there.duplicated()].unique()
            raise UserError(f"submission: {what} repeat: {listed(list(map(str, again)))}")
        for kind, lost in (("lacks", wanted.difference(there)), ("has unknown", there.difference(wanted))):
            if len(lost):
                raise UserError(f"submission: {kind} {what}: {listed(list(map(str, lost)))}")
    table = submission.set_index(ID)
    values = table[genes].apply(pd.to_numeric, errors="coerce")
    if wrong := int((~np.isfinite(values.to_numpy(float))).sum()):
        raise UserError(f"submission: {many(wrong, 'value')} not finite numbers; a response is a number")
    return values


class Myllia(Preset):
    """Gain over the mean response, gated cosine, and their product."""

    scorer = "scipy"
    metrics: ClassVar[dict[str, Metric]] = {
        "score": Metric("score"),
        "gain": Metric("gain"),
        "cosine": Metric("cosine"),
    }
    needed = 1
    low = "the mean response of the truth"
    high = "a replicate (split halves)"

    def parameters(self) -> dict[str, Any]:
        """See :class:`Preset`."""
        return {
            "values": "mean over cells of log2(1 + 1e4 count / depth), less that of control cells",
            "gate": [0.0, 0.2],
            "most_gain": MOST_GAIN,
            "weights": "min(|moderated t| + 0.1, 10) squared, 0 for the target gene",
            "baseline": self.low,
            "control_source": "real",
        }

    def open(self, real: ad.AnnData, context: str, control: str, cache: Path, digest: str) -> ContextScorer:
        """See :class:`Preset`."""
        truth = _Truth.of(real, control)

        def measure() -> Anchors:
            ceiling = replicate(real, lambda half, other, _: _Truth.of(other, control).measure_own(half))
            low = truth.measured(np.tile(truth.responses.mean(axis=0), (len(truth.labels), 1)))
            scales = {
                name: Scale(low[name].value, ceiling[name].value)
                if name in ceiling and ceiling[name].value > low[name].value
                else Scale(reason="a replicate is no better than the mean response" if name in ceiling else NO_VALUE)
                for name in self.metrics
            }
            return Anchors(scales, low, ceiling, truth.significant)

        return _Context(truth, load_anchors(anchors_folder(cache, digest, context, control, self), measure))


class _Context(ContextScorer):
    def __init__(self, truth: _Truth, anchors: Anchors):
        self.scales, self.low, self.ceiling = anchors.scales, anchors.low, anchors.ceiling
        self.significant, self.notes = anchors.significant, []
        self._truth = truth

    def measure(self, predicted: ad.AnnData) -> Mapping[str, Measured]:
        """Against the truth's control cells."""
        means = label_means(log_normalized(predicted, TOTAL)) / np.log(2)
        return self._truth.measured(means.loc[self._truth.labels].to_numpy() - self._truth.control)


@dataclass(frozen=True)
class _Truth:
    """Measured responses of one context.

    Attributes:
        labels: perturbations [L].
        responses: [L, G].
        control: mean of the control cells, [G].
        label: theirs.
        weights: [L, G].
        baseline: error of the mean response, [L].
        significant: perturbation -> genes with a false discovery rate below 0.05, the target left out.
    """

    labels: list[str]
    responses: np.ndarray
    control: np.ndarray
    label: str
    weights: np.ndarray
    baseline: np.ndarray
    significant: dict[str, int]

    @classmethod
    def of(cls, cells: ad.AnnData, control: str) -> _Truth:
        """Of measured cells with controls, raw counts."""
        log = log_normalized(cells, TOTAL)
        log.X = log.X / np.float32(np.log(2))
        means = label_means(log)
        second = log.copy()
        second.X = log.X.power(2)
        number = cells.obs["perturbation"].astype(str).value_counts()
        squares = (label_means(second) - means**2).mul(number.reindex(means.index), axis=0).clip(lower=0)
        labels = means.index.drop(control).tolist()
        tests = [
            moderated_t(
                (means.loc[label].to_numpy(), means.loc[control].to_numpy()),
                (squares.loc[label].to_numpy(), squares.loc[control].to_numpy()),
                (int(number[label]), int(number[control])),
            )
            for label in labels
        ]
        targets = np.array(labels)[:, None] == cells.var_names.to_numpy(str)
        weights = weights_of(np.stack([t for t, _ in tests]), targets)
        responses = means.loc[labels].to_numpy() - means.loc[control].to_numpy()
        baseline = np.mean(weights * np.abs(responses - responses.mean(axis=0)), axis=1)
        significant = {
            label: int(np.sum(false_discovery_control(p[~target]) < 0.05))
            for label, (_, p), target in zip(labels, tests, targets, strict=True)
        }
        return cls(labels, responses, means.loc[control].to_numpy(), control, weights, baseline, significant)

    def measured(self, predicted: np.ndarray) -> dict[str, Measured]:
        """Metrics of predicted responses [L, G]; score and cosine are one number for all rows."""
        found = score_responses(self.responses, predicted, self.weights, self.baseline)
        rows = len(self.labels)
        return {
            "score": Measured(found.total, rows),
            "gain": Measured.mean(dict(zip(self.labels, found.gains, strict=True))),
            "cosine": Measured(found.cosine, rows),
        }

    def measure_own(self, half: ad.AnnData) -> dict[str, Measured]:
        """Of cells with control cells of their own."""
        means = label_means(log_normalized(half, TOTAL)) / np.log(2)
        return self.measured((means.loc[self.labels] - means.loc[self.label]).to_numpy())


def weights_of(t: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Weights of genes, [L, G], whose rows sum to G.

    Args:
        t: moderated t, [L, G].
        targets: whether a gene is the one that was silenced, [L, G].
    """
    size = np.where(targets, 0.0, np.minimum(np.abs(t) + LEAST, MOST))
    squared = np.square(size / size.max(axis=1, keepdims=True))
    weights: np.ndarray = t.shape[1] * squared / squared.sum(axis=1, keepdims=True)
    return weights
