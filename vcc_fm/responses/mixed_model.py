"""A mixed model of responses: the best linear unbiased prediction of any perturbation in any context.

The log ratio ``y`` of group ``i`` (context, perturbation) at gene ``g`` is a signal and noise, both normal around 0:

    cov(f_ig, f_jg) = s_g K_ij,   K_ij = sum over kernels k of (a_k + b_k C_ij) X_ik . X_jk
    cov(e_ig, e_jg) = u_g R_ij,   R_ij = q_i ([i = j] / N_i + C_ij / M_i)

``C`` is 1 within a context. The coordinates ``X`` of a perturbation are those of its target genes, summed, times its
amplitude ``A``, which is near zero where it is inert: a constant, an axis for each target gene, one for each measured
combination, and vectors such as the genes' proteins. So ``a`` and ``b`` are the variances of what all perturbations
do, of what one does, of what a combination does beyond its single perturbations, and of what those of like target
genes do: everywhere, and in one context.

``s_g`` is the size of a gene's signal beside the mean gene's. ``N`` is a group's depth, ``M`` that of its context's
control cells, whose noise all groups of a context share. ``u_g q`` is the negative-binomial variance of a log ratio at
expected counts, times the depth: at observed counts it collapses where these are few. ``q`` is how much noisier the
gene is in the group's context; genes whose ``q`` are alike share them.

So the noise of such genes is one matrix times a number, and one eigendecomposition of ``L^-1 K L^-T``, ``R = L L^T``,
solves all of them: n^3 once and n^2 a gene, for n groups. The components ``a`` and ``b`` are those that fit the
products of responses, averaged over genes, by non-negative least squares; amplitudes are posterior means
under their own distribution (:mod:`vcc_fm.responses.amplitudes`). Henderson, Biometrics 31:423 (1975), has the
prediction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy.linalg
from scipy.optimize import nnls

from vcc_fm.responses.amplitudes import AmplitudePrior
from vcc_fm.responses.evidence import Evidence, noise_profile
from vcc_fm.responses.kernels import Kernels, Weights
from vcc_fm.store.cells import evenly_spaced

ROUNDS = 3
"""Amplitudes and components are estimated in turns."""
EXPECTED = 5.0
"""Counts that a group must be expected to have of a gene, in precision, for its products to enter the components."""
MOMENT_GENES = 4000
"""Genes, evenly spaced over the axis, whose products enter the components."""
CORRELATED = 4.0
"""Genes that count as one where the size of a response is estimated: their effects are not independent."""
GENES_AT_A_TIME, ROWS_AT_A_TIME = 1024, 512


class Predicted(NamedTuple):
    """Signals of q groups: mean and standard deviation [q, G] float32 (natural log), amplitude [q]."""

    mean: np.ndarray
    deviation: np.ndarray
    amplitude: np.ndarray


class MixedModel:
    """Fitted on training groups; predicts any.

    Attributes:
        components: [kernels, 2] variances everywhere and in one context: the constant, target genes, combinations
            where there are any, each table.
        amplitude: [n] of the training groups' perturbations; root mean square 1.
        scale: [G] of the signal's variance.
    """

    def __init__(self, evidence: Evidence, kernels: Kernels):
        self.evidence, self.kernels = evidence, kernels
        self.contexts = np.array([context for context, _ in evidence.groups])
        self._names = sorted({label for _, label in evidence.groups})
        self._at = np.searchsorted(self._names, [label for _, label in evidence.groups])
        self._axes = kernels.axes(self._names)
        weights = [dict.fromkeys(kernels.targets(label), 1.0) for label in self._names]
        self._coordinates = kernels.coordinates(weights, self._axes)
        self._alike = [(one @ one.T).astype(np.float32) for one in self._coordinates]
        self.amplitude = np.ones(len(evidence.groups))
        self._sizes: AmplitudePrior | None = None
        self.components = np.zeros((len(self._alike), 2))
        self._fit()

    # Fitting

    def _fit(self) -> None:
        product, genes, noise = self._products()
        for _ in range(ROUNDS):
            self._fit_components(product, genes)
            self._fit_amplitudes(product, genes, noise)
        self._fit_components(product, genes)
        del product
        self._decompose()

    def _products(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mean products of responses less their noise [n, n], genes in each [n, n], mean noise of a response [n]."""
        e = self.evidence
        chosen = evenly_spaced(np.arange(e.ratio.shape[1]), MOMENT_GENES)
        unit = np.stack([e.unit[context][chosen] for context in self.contexts]).astype(np.float32)
        used = e.measured[:, chosen] & ~e.own[:, chosen]
        level = unit / e.depth[:, None].astype(np.float32)
        precise = used & (level < 1.0 / EXPECTED)
        if not precise.any():  # no gene is well measured: the better half
            precise = used & (level <= (np.median(level[used]) if used.any() else 0.0))
        precise = precise.astype(np.float32)
        y = precise * e.ratio[:, chosen]
        genes = precise @ precise.T
        product = (y @ y.T) / np.maximum(genes, 1.0)
        diagonal = np.einsum("ig,ig->i", precise, unit) / np.maximum(np.diag(genes), 1.0) / e.depth
        for context in np.unique(self.contexts):
            here = np.flatnonzero(self.contexts == context)
            square = np.ix_(here, here)
            shared = (precise[here] * unit[here]) @ precise[here].T / np.maximum(genes[square], 1.0)
            product[square] -= shared / e.control_depth[context]
        product[np.diag_indices(len(product))] -= diagonal
        return product, genes, diagonal

    def _bases(self, rows: np.ndarray) -> np.ndarray:
        """Kernels of training groups, some with all, everywhere and in one context: [2 kernels, rows, n] float32."""
        here = self.contexts[rows, None] == self.contexts
        scale = np.outer(self.amplitude[rows], self.amplitude).astype(np.float32)
        found = [alike[np.ix_(self._at[rows], self._at)] * scale for alike in self._alike]
        return np.stack([base for one in found for base in (one, one * here)])

    def _fit_components(self, product: np.ndarray, genes: np.ndarray) -> None:
        """Least squares over all pairs of groups, weighted by their genes, by the normal equations."""
        number = self.components.size
        gram, right = np.zeros((number, number)), np.zeros(number)
        for start in range(0, len(product), ROWS_AT_A_TIME):
            rows = np.arange(start, min(start + ROWS_AT_A_TIME, len(product)))
            bases = self._bases(rows).reshape(number, -1)
            weighted = bases * genes[rows].ravel()
            gram += weighted @ bases.T
            right += weighted @ product[rows].ravel()
        # With one context, say, two bases are the same; the ridge shares their variance.
        gram += np.eye(number) * max(1e-6 * np.trace(gram) / number, 1e-300)
        lower = np.linalg.cholesky(gram)
        found, _ = nnls(lower.T, scipy.linalg.solve_triangular(lower, right, lower=True))
        self.components = found.reshape(-1, 2)

    def _fit_amplitudes(self, product: np.ndarray, genes: np.ndarray, noise: np.ndarray) -> None:
        """One amplitude a perturbation; all stay 1 where nothing but noise is left of the responses."""
        if ((prior := self._variance()) > 0).all():
            spread = 2 * (self.amplitude**2 + noise / prior) ** 2 / np.maximum(np.diag(genes) / CORRELATED, 1.0)
            self._sizes = AmplitudePrior.of(np.diag(product) / prior, 1.0 / spread, self._at)
            self.amplitude = self._sizes.amplitude

    def _variance(self) -> np.ndarray:
        """Variance of the signal of each training group's perturbation at the mean gene, were its amplitude 1: [n]."""
        each = [np.diag(alike)[self._at] for alike in self._alike]
        return np.asarray(self.components.sum(axis=1) @ each)

    def _decompose(self) -> None:
        e, n = self.evidence, len(self.contexts)
        signal = np.empty((n, n))
        for start in range(0, n, ROWS_AT_A_TIME):
            rows = np.arange(start, min(start + ROWS_AT_A_TIME, n))
            signal[rows] = np.tensordot(self.components.ravel(), self._bases(rows), 1)
        self._profile = noise_profile(e)
        # Genes that the same groups measured, and that are noisy in the same contexts, are solved together.
        kinds = np.vstack([np.packbits(e.measured, axis=0), self._profile.kind[None].astype(np.uint8)])
        _, first, kind = np.unique(kinds, axis=1, return_index=True, return_inverse=True)
        self.scale = np.ones(e.ratio.shape[1])
        self._parts = []
        for number, gene in enumerate(first):
            rows, genes = np.flatnonzero(e.measured[:, gene]), np.flatnonzero(kind.ravel() == number)
            if len(rows):
                unit = self._profile.unit[genes]
                part = _Part.of(rows, genes, signal[np.ix_(rows, rows)], self._noise(rows, gene), unit, e)
                self.scale[genes] = part.scale
                self._parts.append(part)

    def _noise(self, rows: np.ndarray, gene: int) -> np.ndarray:
        """Covariance of the noise [rows, rows] of a gene whose unit is 1."""
        context, depth = self.contexts[rows], self.evidence.depth[rows]
        factor = np.array([self._profile.factor[one][self._profile.kind[gene]] for one in context])
        controls = np.array([self.evidence.control_depth[one] for one in context])
        return np.diag(factor / depth) + (context[:, None] == context) * (factor / controls)[:, None]

    # Predicting

    @cached_property
    def reliability(self) -> np.ndarray:
        """[G] float32: share of the signal in the variance of a training response of mean size and median depth.

        Times the share of groups that measured the gene. Near 0 where counts are few: what the model says there is
        its prior.
        """
        signal = self.scale * float(np.mean(self._variance() * self.amplitude**2))
        share = signal / (signal + self._profile.unit / np.median(self.evidence.depth))
        return (share * self.evidence.measured.mean(axis=0)).astype(np.float32)

    @cached_property
    def _amplitudes(self) -> dict[str, float]:
        return {self._names[at]: float(a) for at, a in zip(self._at, self.amplitude, strict=True)}

    def _weights(self, perturbation: str) -> Weights:
        """Weight of each target gene: the perturbation's amplitude, or where it was never measured the gene's."""
        known, targets = self._amplitudes, self.kernels.targets(perturbation)
        return {gene: known.get(perturbation, known.get(gene, self.mean_amplitude)) for gene in targets}

    @cached_property
    def mean_amplitude(self) -> float:
        """Mean over the training perturbations: what one that was measured nowhere is expected to have."""
        return float(np.mean(list(self._amplitudes.values())))

    def predict(self, context: str, perturbation: str) -> tuple[np.ndarray, np.ndarray, float]:
        """Mean and standard deviation [G] float32 of a signal given all training responses, and its amplitude.

        A training group is given its own response, too. A gene that no training group measured has the prior's: 0, and
        the whole standard deviation. Where a gene is some training perturbation's own target, the deviation counts
        that response as known.
        """
        weights = [self._weights(perturbation)]
        asked, squares = (of(weights, self._axes) for of in (self.kernels.coordinates, self.kernels.squares))
        across, variance, here = np.zeros(len(self.contexts)), np.zeros(1), self.contexts == context
        parts = zip(self.components, self._coordinates, asked, squares, strict=True)
        for (everywhere, inside), known, new, square in parts:
            across += (known @ new[0])[self._at] * (everywhere + inside * here)
            variance += (everywhere + inside) * square
        mean, deviation, amplitude = self._solve((across * self.amplitude)[:, None], variance, asked[0][:, 0])
        return mean[0], deviation[0], float(amplitude[0])

    def leave_one_out(self, rows: np.ndarray | None = None) -> Predicted:
        """Signals of training groups, each as if it had not been measured: what a held-out group would get.

        By ``k' G y - (k' G)_i (G y)_i / G_ii`` for the precision ``G`` of the responses. Components, scales and the
        other groups' amplitudes stay; its own is that of its perturbation's other groups. Where a gene is a target of
        some training perturbation, what stands in for that response (what the others predict) stays, too.
        """
        rows = np.arange(len(self.contexts)) if rows is None else rows
        amplitude = self.amplitude[rows] if self._sizes is None else self._sizes.without(rows, self.mean_amplitude)
        change = amplitude / self.amplitude[rows]
        across = np.empty((len(self.contexts), len(rows)))
        for place, row in enumerate(rows):
            across[:, place] = self.components.ravel() @ self._bases(np.array([row]))[:, 0]
        variance = across[rows, np.arange(len(rows))] * change**2
        return self._solve(across * change, variance, amplitude, rows)

    def leave_together_out(self, rows: np.ndarray) -> Predicted:
        """Signals of training groups [q] of one perturbation, as if none of them had been measured.

        As :meth:`leave_one_out`, with blocks ``G_bb`` of the precision in place of ``G_ii``. The amplitude is the mean
        of all perturbations.
        """
        change = self.mean_amplitude / self.amplitude[rows[0]]
        across = np.tensordot(self.components.ravel(), self._bases(rows), 1).T
        variance = across[rows, np.arange(len(rows))] * change**2
        return self._solve(across * change, variance, np.full(len(rows), self.mean_amplitude), rows, together=True)

    def _solve(
        self,
        across: np.ndarray,
        variance: np.ndarray,
        amplitude: np.ndarray,
        without: np.ndarray | None = None,
        together: bool = False,
    ) -> Predicted:
        """Signals from covariances with the responses [n, q] and variances [q].

        Each perhaps without one response, or all without these responses ``together``.
        """
        mean = np.zeros((across.shape[1], len(self.scale)), np.float32)
        squared = np.outer(variance, self.scale).astype(np.float32)
        for part in self._parts:
            turned = (part.turn @ across[part.rows]).astype(np.float32)
            column, there = None, np.zeros(0, np.int64)
            if without is not None:
                there = np.flatnonzero(np.isin(without, part.rows))
                column = part.turn[:, np.searchsorted(part.rows, without[there])].astype(np.float32)
            for genes, precision, weighted in part.blocks():
                scale = self.scale[genes].astype(np.float32)
                found = turned.T @ weighted
                told = scale * (np.square(turned).T @ precision)
                if column is not None and together:
                    more, known = _of_block(turned, column, precision, weighted)
                    found -= more
                    told -= scale * known
                elif column is not None:
                    own = np.square(column).T @ precision
                    shared = (turned[:, there] * column).T @ precision
                    found[there] -= shared * (column.T @ weighted) / own
                    told[there] -= scale * shared**2 / own
                mean[:, genes] = scale * found
                squared[:, genes] -= scale * told
        return Predicted(mean, np.sqrt(np.maximum(squared, 0.0)), amplitude)

    @cached_property
    def log_density(self) -> np.ndarray:
        """Log density of each group's responses given all others' [n], nats a gene; kernels can be chosen by it."""
        total, number = np.zeros(len(self.contexts)), np.zeros(len(self.contexts))
        for part in self._parts:
            turn = part.turn.astype(np.float32)
            for genes, precision, weighted in part.blocks():
                own = np.square(turn).T @ precision
                density = 0.5 * (np.log(own) - (turn.T @ weighted) ** 2 / own - np.log(2 * np.pi))
                there = ~self.evidence.own[np.ix_(part.rows, genes)]
                total[part.rows] += (density * there).sum(axis=1, dtype=np.float64)
                number[part.rows] += there.sum(axis=1)
        return total / np.maximum(number, 1.0)


@dataclass(frozen=True)
class _Part:
    """Genes that the same groups measured alike, and these groups turned so that their responses are independent.

    Attributes:
        rows: [m] groups, in rising order.
        genes: [h] genes.
        scale: [h] of their signal.
        turn: [m, m], ``U' L^-1``.
        precision: [m, h] float32 inverse variances of the turned responses.
        weighted: [m, h] float32, these times the turned responses.
    """

    rows: np.ndarray
    genes: np.ndarray
    scale: np.ndarray
    turn: np.ndarray
    precision: np.ndarray
    weighted: np.ndarray

    @classmethod
    def of(
        cls, rows: np.ndarray, genes: np.ndarray, signal: np.ndarray, noise: np.ndarray, unit: np.ndarray, e: Evidence
    ) -> _Part:
        """Solve the groups ``rows`` with covariances ``signal`` and ``noise`` [m, m], times ``unit`` [h]."""
        lower = np.linalg.cholesky(noise)
        half = scipy.linalg.solve_triangular(lower, signal, lower=True)
        whitened = scipy.linalg.solve_triangular(lower, half.T, lower=True, overwrite_b=True)
        values, vectors = scipy.linalg.eigh((whitened + whitened.T) / 2, overwrite_a=True)
        turn = scipy.linalg.solve_triangular(lower, vectors, lower=True, trans="T").T
        at, values = np.ix_(rows, genes), np.maximum(values, 0.0)
        turned = turn.astype(np.float32) @ np.where(e.own[at], np.float32(0), e.ratio[at])
        scale = _gene_scales(values, turned, unit)
        precision = np.empty_like(turned)
        for row, value in enumerate(values):
            precision[row] = 1.0 / (scale * value + unit)
        turned *= precision
        _leave_out(e.own[at], turn, precision, turned)
        return cls(rows, genes, scale, turn, precision, turned)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Some genes at a time: genes [h], and their columns of ``precision`` and ``weighted``."""
        for start in range(0, len(self.genes), GENES_AT_A_TIME):
            at = slice(start, start + GENES_AT_A_TIME)
            yield self.genes[at], self.precision[:, at], self.weighted[:, at]


def _of_block(
    turned: np.ndarray, column: np.ndarray, precision: np.ndarray, weighted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What responses, turned to ``column`` [m, b], tell of q signals: of their means and their variances [q, h]."""
    block = np.einsum("mb,mh,mc->hbc", column, precision, column, optimize=True)
    shared = np.einsum("mq,mh,mb->hbq", turned, precision, column, optimize=True)
    solved = np.linalg.solve(block, shared)
    return np.einsum("hbq,bh->qh", solved, column.T @ weighted), np.einsum("hbq,hbq->qh", solved, shared)


def _leave_out(own: np.ndarray, turn: np.ndarray, precision: np.ndarray, weighted: np.ndarray) -> None:
    """Give responses ``own`` [m, h] what the others predict there, as if they had not been measured."""
    for gene in np.flatnonzero(own.any(axis=0)):
        column = turn[:, own[:, gene]]
        there = column * precision[:, gene, None]
        weighted[:, gene] -= there @ np.linalg.solve(column.T @ there, column.T @ weighted[:, gene])


def _gene_scales(values: np.ndarray, turned: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """How much larger a gene's signal is than the mean gene's [h]: moments, shrunken to 1 by their own noise."""
    signal = float(values.sum())
    if signal == 0:
        return np.ones(len(unit))
    found = (np.square(turned).sum(axis=0, dtype=np.float64) - len(values) * unit) / signal
    # Variance of the moment where the scale is 1.
    variance = 2 * ((values**2).sum() + 2 * signal * unit + len(values) * unit**2) / signal**2
    # Weights beside the largest: squares of small numbers vanish.
    weights = (variance.min() / variance) ** 2
    between = max(float(np.average((found - 1) ** 2 - variance, weights=weights)), 0.0)
    return np.maximum(1 + (found - 1) * between / (between + variance), 0.05)
