"""A mixed model of responses: the best linear unbiased prediction of any perturbation in any context.

The log ratio ``y`` of group ``i`` (context c, perturbation p) at gene ``g`` is a signal and noise, both normal:

    cov(f_ig, f_jg) = s_g K_ij,   K_ij = A_i A_j (k0 + k1 C_ij + k2 T_ij + k3 C_ij T_ij + k4 F_ij + k5 C_ij F_ij)
    cov(e_ig, e_jg) = u_g R_ij,   R_ij = [i = j] / N_i + C_ij / M_c

``C`` is 1 within a context, ``T`` counts the target genes that two perturbations share, ``F`` is a kernel of features
of the target genes, summed over them: a combination does what its single perturbations do. ``A`` is the amplitude of a
perturbation, near zero where it is inert, ``s_g`` the size of a gene's signal beside the mean gene's. ``N`` is a
group's depth and ``M`` that of its context's control cells, whose noise all groups of a context share.
``u_g = 1 / share_g + alpha_g d`` is the negative-binomial variance of a log ratio at expected counts, times the depth;
``d`` is the mean depth of a cell. Variances at observed counts collapse where counts are few.

The noise of all genes is one matrix times a number, so that one eigendecomposition of ``L^-1 K L^-T``, ``R = L L^T``,
solves every gene: n^3 once and n^2 for a gene, for n groups. The components ``k`` are those that fit the products
of responses, averaged over genes, by non-negative least squares; amplitudes are shrunken to their mean by their own
noise. Henderson, Biometrics 31:423 (1975) for the prediction. Target genes of a perturbation take no part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.linalg
from scipy.optimize import nnls

Group = tuple[str, str]

ROUNDS = 3
"""Amplitudes and components are estimated in turns."""
EXPECTED = 5.0
"""UMI that a group is expected to have of a gene whose products enter the components."""
LEAST_AMPLITUDE = 0.05
CORRELATED = 4.0
"""Genes that count as one where the size of a response is estimated: their effects are not independent."""
GENES_AT_A_TIME = 2000


@dataclass(frozen=True)
class Evidence:
    """Responses and their noise.

    Attributes:
        groups: (context, perturbation) of each row.
        ratio: [n, G] float32 log ratios; 0 where a gene was not measured.
        measured: [n, G] bool.
        own: [n, G] bool, target genes.
        depth: [n] UMI of each group's cells.
        control_depth: context -> UMI of its control cells.
        unit: [G] variance of a log ratio times the depth, ``u``.
    """

    groups: Sequence[Group]
    ratio: np.ndarray
    measured: np.ndarray
    own: np.ndarray
    depth: np.ndarray
    control_depth: Mapping[str, float]
    unit: np.ndarray

    def of(self, rows: np.ndarray) -> Evidence:
        """Of some groups alone."""
        return Evidence(
            [self.groups[row] for row in rows],
            self.ratio[rows],
            self.measured[rows],
            self.own[rows],
            self.depth[rows],
            self.control_depth,
            self.unit,
        )


@dataclass(frozen=True)
class Kernels:
    """How alike two perturbations are.

    Attributes:
        targets: perturbation -> its target genes.
        features: target gene -> feature vector [r]; a gene without one has none in common with any other.
    """

    targets: Callable[[str], Sequence[str]]
    features: Mapping[str, np.ndarray]

    def shared(self, one: Sequence[str], other: Sequence[str]) -> np.ndarray:
        """Number of target genes that perturbations share, [a, b] float64."""
        genes = sorted({gene for label in (*one, *other) for gene in self.targets(label)})
        place = {gene: i for i, gene in enumerate(genes)}

        def table(labels: Sequence[str]) -> np.ndarray:
            rows = np.zeros((len(labels), len(genes)))
            for row, label in zip(rows, labels, strict=True):
                for gene in self.targets(label):
                    row[place[gene]] += 1
            return rows

        return table(one) @ table(other).T

    def alike(self, one: Sequence[str], other: Sequence[str]) -> np.ndarray:
        """Products of the features summed over target genes, [a, b] float64."""
        return self._summed(one) @ self._summed(other).T

    def _summed(self, labels: Sequence[str]) -> np.ndarray:
        width = len(next(iter(self.features.values()))) if self.features else 1
        nothing = np.zeros(width)
        return np.stack(
            [sum((self.features.get(g, nothing) for g in self.targets(label)), nothing) for label in labels]
        )


def principal_features(vectors: Mapping[str, np.ndarray], number: int) -> dict[str, np.ndarray]:
    """Leading principal components of vectors, scaled so that a gene's product with itself is 1 in the mean."""
    if len(vectors) < 3:
        return {}
    table = np.stack(list(vectors.values())).astype(np.float64)
    centred = table - table.mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    scores = (left * values)[:, :number]
    scale = np.sqrt((scores**2).sum(axis=1).mean())
    return dict(zip(vectors, scores / scale, strict=True)) if scale > 0 else {}


class MixedModel:
    """Fitted on training groups; predicts any."""

    def __init__(self, evidence: Evidence, kernels: Kernels):
        self.evidence, self.kernels = evidence, kernels
        self.contexts = np.array([context for context, _ in evidence.groups])
        self.labels = [label for _, label in evidence.groups]
        self._fit()

    # ------------------------------------------------------------------------------------------------------- fitting
    def _fit(self) -> None:
        e = self.evidence
        n = len(e.groups)
        self._bases: list[np.ndarray] = self._basis(self.contexts, self.labels, self.contexts, self.labels)
        same = self.contexts[:, None] == self.contexts[None]
        controls = np.array([1.0 / e.control_depth[context] for context in self.contexts])
        self.noise = np.diag(1.0 / e.depth) + same * controls[:, None]
        used = e.measured & ~e.own
        expected = np.median(e.depth) / e.unit
        weight = np.where(expected > EXPECTED, 1.0, 0.0)
        if not weight.any():
            weight = np.where(expected >= np.quantile(expected, 0.5), 1.0, 0.0)
        # Products of responses, noise taken off, over genes that both groups measured.
        y = np.where(used, e.ratio, 0.0) * np.sqrt(weight).astype(np.float32)
        both = (used * weight.astype(np.float32)) @ used.T
        noise = (used * (weight * e.unit).astype(np.float32)) @ used.T
        both = np.maximum(both, 1e-9)
        product = (y @ y.T).astype(np.float64) / both - self.noise * (noise / both)
        self.amplitude = np.ones(n)
        self.components = np.zeros(len(self._bases))
        for _ in range(ROUNDS):
            self._fit_components(product)
            self._fit_amplitudes(product, both, noise / both)
        self._fit_components(product)
        signal = self._signal(self._bases, self.amplitude, self.amplitude)
        del self._bases, product, both, noise  # as large as all that follows
        self._decompose(signal)

    def _basis(
        self, contexts: np.ndarray, labels: Sequence[str], others: np.ndarray, other_labels: Sequence[str]
    ) -> list[np.ndarray]:
        """The kernels of the components, [a, b] each."""
        names, other_names = sorted(set(labels)), sorted(set(other_labels))
        at = np.searchsorted(names, labels), np.searchsorted(other_names, other_labels)
        here = (contexts[:, None] == others[None]).astype(np.float32)
        shared = self.kernels.shared(names, other_names).astype(np.float32)[np.ix_(*at)]
        found = [np.ones_like(here), here, shared, here * shared]
        if self.kernels.features:
            alike = self.kernels.alike(names, other_names).astype(np.float32)[np.ix_(*at)]
            found += [alike, here * alike]
        return found

    def _fit_components(self, product: np.ndarray) -> None:
        # Least squares over all pairs by their normal equations.
        amplitude, number = self.amplitude.astype(np.float32), len(self._bases)
        gram, right = np.zeros((number, number)), np.zeros(number)
        for row in range(len(product)):
            scaled = np.stack([base[row] for base in self._bases]) * (amplitude[row] * amplitude)
            gram += scaled.astype(np.float64) @ scaled.T
            right += scaled @ product[row]
        ridge = 1e-9 * np.trace(gram) / len(gram)
        lower = np.linalg.cholesky(gram + ridge * np.eye(len(gram)))
        self.components = nnls(lower.T, scipy.linalg.solve_triangular(lower, right, lower=True))[0]

    def _fit_amplitudes(self, product: np.ndarray, genes: np.ndarray, unit: np.ndarray) -> None:
        """One amplitude a perturbation, from the sizes of its responses, shrunken to the mean of all."""
        prior = sum(k * np.diag(base) for k, base in zip(self.components, self._bases, strict=True))
        if not np.all(prior > 0):
            return  # there is no signal that a size could be told of
        names = sorted(set(self.labels))
        rows = np.searchsorted(names, self.labels)
        # A response of variance a^2 k and noise v, over m genes: its mean square has variance 2 (a^2 k + v)^2 / m.
        size, number = np.diag(product) / prior, np.diag(genes)
        noise = np.diag(self.noise) * np.diag(unit) / prior
        variance = 2 * (self.amplitude**2 + noise) ** 2 / np.maximum(number / CORRELATED, 1.0)
        precision = np.bincount(rows, 1 / variance)
        found = np.bincount(rows, size / variance) / precision
        mean = float(np.average(found, weights=1 / (1 / precision + max(found.var(), 1e-12))))
        between = max(float(np.average((found - mean) ** 2 - 1 / precision)), 1e-6 * mean**2)
        shrunken = mean + (found - mean) * between / (between + 1 / precision)
        squared = np.maximum(shrunken / max(mean, 1e-12), LEAST_AMPLITUDE**2)
        self.amplitude = np.sqrt(squared / squared.mean())[rows]

    def _decompose(self, signal: np.ndarray) -> None:
        e = self.evidence
        # Genes that the same groups measured are solved together; there are as many kinds as gene panels.
        _, first, kind = np.unique(np.packbits(e.measured, axis=0), axis=1, return_index=True, return_inverse=True)
        self.scale = np.ones(len(e.unit))
        self._parts = []
        for number, gene in enumerate(first):
            rows, genes = np.flatnonzero(e.measured[:, gene]), np.flatnonzero(kind.ravel() == number)
            if len(rows):
                here = np.ix_(rows, rows) if len(rows) < len(signal) else slice(None)
                part, self.scale[genes] = _Part.of(rows, genes, signal[here], self.noise[here], e)
                self._parts.append(part)

    def _signal(self, bases: list[np.ndarray], one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.outer(one, other) * sum(k * base for k, base in zip(self.components, bases, strict=True))

    # ---------------------------------------------------------------------------------------------------- predicting
    @cached_property
    def _amplitudes(self) -> dict[str, float]:
        return dict(zip(self.labels, self.amplitude.tolist(), strict=True))

    def amplitude_of(self, perturbation: str) -> float:
        """As estimated from training groups; of one that was measured nowhere the mean, 1."""
        return self._amplitudes.get(perturbation, 1.0)

    def predict(self, context: str, perturbation: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the signal, [G] float32 each; of a training group with its own response.

        A gene that no training group measured has the prior's: 0, and the whole standard deviation.
        """
        across, own = self._of(context, perturbation)
        mean, variance = np.zeros(len(self.scale)), np.full(len(self.scale), own)
        for part in self._parts:
            turned, scale = (part.turn @ across[part.rows]).astype(np.float32), self.scale[part.genes]
            mean[part.genes] = scale * (turned @ part.weighted)
            variance[part.genes] = own - scale * (turned**2 @ part.precision)
        deviation = np.sqrt(np.maximum(self.scale * variance, 0.0))
        return mean.astype(np.float32), deviation.astype(np.float32)

    def _of(self, context: str, perturbation: str) -> tuple[np.ndarray, float]:
        """Covariance with the training groups [n], and variance, both without the scale of a gene."""
        amplitude = np.array([self.amplitude_of(perturbation)])
        place = np.array([context])
        across = self._signal(
            self._basis(self.contexts, self.labels, place, [perturbation]), self.amplitude, amplitude
        )[:, 0]
        own = self._signal(self._basis(place, [perturbation], place, [perturbation]), amplitude, amplitude)
        return across, float(own[0, 0])

    def leave_one_out(self, row: int) -> np.ndarray:
        """Mean of the signal of a training group [G] float32 as if it had not been measured; components stay.

        ``S y - S_ii (G y)_i / G_ii`` for the smoother ``S = K G`` and the precision ``G`` of the responses.
        """
        across, _ = self._of(*self.evidence.groups[row])
        mean = np.zeros(len(self.scale))
        for part in self._parts:
            turned = (part.turn @ across[part.rows]).astype(np.float32)
            found = turned @ part.weighted
            if row in part.rows:
                column = part.turn[:, np.flatnonzero(part.rows == row)[0]].astype(np.float32)
                residual = (column @ part.weighted) / (column**2 @ part.precision)
                found -= ((turned * column) @ part.precision) * residual
            mean[part.genes] = self.scale[part.genes] * found
        return mean.astype(np.float32)

    @cached_property
    def log_likelihood(self) -> float:
        """Mean leave-one-out log density of the responses, nats a value; by which kernels can be chosen."""
        total, number = 0.0, 0
        for part in self._parts:
            back = part.turn.T.astype(np.float32)
            for start in range(0, len(part.genes), GENES_AT_A_TIME):
                at = slice(start, start + GENES_AT_A_TIME)
                diagonal = back**2 @ part.precision[:, at]
                residual = (back @ part.weighted[:, at]) / diagonal
                density = 0.5 * (np.log(diagonal) - residual**2 * diagonal - np.log(2 * np.pi))
                there = ~self.evidence.own[np.ix_(part.rows, part.genes[at])]
                total, number = total + float(density[there].sum()), number + int(there.sum())
        return total / max(number, 1)


@dataclass(frozen=True)
class _Part:
    """Genes that the same groups measured, and these groups turned so that their responses are independent.

    Attributes:
        rows: [m] groups.
        genes: [h] genes.
        turn: [m, m], ``U^T L^-1``.
        precision: [m, h] float32 inverse variance of the turned responses.
        weighted: [m, h] float32, these times the turned responses.
    """

    rows: np.ndarray
    genes: np.ndarray
    turn: np.ndarray
    precision: np.ndarray
    weighted: np.ndarray

    @classmethod
    def of(
        cls, rows: np.ndarray, genes: np.ndarray, signal: np.ndarray, noise: np.ndarray, e: Evidence
    ) -> tuple[_Part, np.ndarray]:
        """Solve the groups ``rows`` with covariances ``signal`` and ``noise`` [m, m]; and the genes' scales [h]."""
        lower = np.linalg.cholesky(noise)
        half = scipy.linalg.solve_triangular(lower, signal, lower=True)
        whitened = scipy.linalg.solve_triangular(lower, half.T, lower=True)
        values, vectors = scipy.linalg.eigh((whitened + whitened.T) / 2)
        turn = scipy.linalg.solve_triangular(lower, vectors, lower=True, trans="T").T
        at = np.ix_(rows, genes)
        # What a knock-down does to its own target is no part of this; there the prior's mean stands in for it.
        turned = turn.astype(np.float32) @ np.where(e.own[at], 0.0, e.ratio[at]).astype(np.float32)
        values, unit = np.maximum(values, 0.0), e.unit[genes]
        scale = _gene_scales(values, np.square(turned, dtype=np.float64).sum(axis=0), unit)
        precision = np.empty(turned.shape, np.float32)
        for row, value in enumerate(values):
            precision[row] = 1.0 / (scale * value + unit)
        turned *= precision
        return cls(rows, genes, turn, precision, turned), scale


def _gene_scales(values: np.ndarray, squares: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """How much larger a gene's signal is than the mean gene's [h]: moments, shrunken to 1 by their own noise.

    Args:
        values: [m] signal variances of the turned responses, for a gene whose scale is 1; their noise is ``unit``.
        squares: [h] sums of squares of a gene's turned responses.
        unit: [h] noise.
    """
    signal = float(values.sum())
    if signal == 0:
        return np.ones(len(unit))
    found = (squares - len(values) * unit) / signal
    # Variance of the moment where the scale is 1.
    variance = 2 * ((values**2).sum() + 2 * signal * unit + len(values) * unit**2) / signal**2
    # Weights beside the largest: squares of small numbers vanish.
    weights = (variance.min() / variance) ** 2
    between = max(float(np.average((found - 1) ** 2 - variance, weights=weights)), 0.0)
    return np.maximum(1 + (found - 1) * between / (between + variance), 0.05)
