"""The generative model of a simulated CRISPRi screen whose truth is known.

Logs are natural; "N" is a standard normal draw; indices are c context, b batch, t perturbation,
g gene, i cell.

1. Gene factors z[g] ~ N in 6 dimensions. The protein of g has 150 to 600 residues drawn from softmax(log background +
   z[g] A): its composition reveals z[g] up to sampling noise.
2. Base expression (relative): log base[c,g] = 1.3 (sqrt(0.85) N[g] + sqrt(0.15) N[c,g]), correlated 0.85 between
   contexts. Target genes are drawn from the more expressed half, as screens choose them.
3. Batch: log shift[c,b,g] = 0.1 N, and a depth factor exp(0.1 N), centred over the batches of a context.
4. Effect (log fold change at full efficiency), before sparsity of unit variance:

       part[t,g]     = sqrt(1/4) generic[g] + sqrt(3/4) (sqrt(predictable) z[t] W z[g] / sqrt(6)
                                                         + sqrt(1 - predictable) N[t,g]),   W a rotation
       dense[c,t,g]  = sqrt(shared) common part[t,g] + sqrt(1 - shared) part of context c[t,g]
       delta[c,t,g]  = strength[t] sign(dense) max(|dense| - 1, 0), within [-3, 3]

   The common part and each context's own are drawn alike, with a generic response and a rotation of their own: what a
   context does differently can be learned from some perturbations in it, as in real screens, and no better than the
   rest. ``predictable`` is the share of a part beyond its generic response. The threshold
   leaves about 0.3 of the genes responding, and turns a correlation of 0.75 between contexts into about 0.6.
   strength ~ 0.8 exp(0.35 N), and 0 where the perturbation is inert. delta is 0 at the target gene itself, which has
   its knock-down instead.
5. A perturbed cell escapes with probability 0.07 (efficiency 0), else its efficiency ~ Beta(17, 3), mean 0.85.
   The target gene's expression is multiplied by (1 - efficiency); the effect on other genes is exp(efficiency delta).
6. Expression is scaled to sum 1 over genes and multiplied by the cell's depth, so that depth stays what was captured
   and a measured LFC is delta, weakened by the efficiency, plus one constant per perturbation.
   depth[i] = median depth x batch factor x exp(0.25 N), UMI.
7. Counts ~ negative binomial, variance mu + alpha mu^2, alpha[g] = 0.3 exp(0.3 N).
8. Poisson(cells) cells per perturbation and context, never fewer than 8, and Poisson(controls) control cells, never
   fewer than 8 or than one per batch; each group is spread evenly over the batches.

What a recipe can add, each by a key of its own and from streams of its own. Effects, batches, depths and efficiencies
stay what they are without it; with combinations there are more cells, and so all are drawn anew.

- ``combinations``: pairs of target genes. delta = sqrt(1 - interaction) (sum of the two) + sqrt(interaction) x (own
  part, sparse and shared between contexts as effects are, in the size of the sum). Both genes are knocked down, by one
  efficiency a cell.
- ``expression: measured``: means and dispersions as in :mod:`vcc_fm.sources.measured_expression`.
- ``programs``: log expression of a cell += activities[i] x loadings[g], activities ~ N; loadings ~ N program_sd /
  sqrt(programs), one set for all contexts.
- ``depth_slope``: log expression of a cell += slope[g] log(depth[i] / median depth), slope ~ N depth_slope.

Each context draws from a stream of its own: adding one at the end changes none before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import sparse, special

from vcc_fm.recipe.data import SimulateConfig
from vcc_fm.sources import measured_expression, truth

SEPARATOR = "+"
FACTORS = 6
FEWEST_CELLS = 8
COMBINATIONS, DISPERSION, PROGRAMS, DEPTH = range(4)
"""Streams of what a recipe can add."""
LARGEST = 3.0
"""Log fold change."""
# Values of a dense block of counts held at a time: bounds memory at many genes.
BLOCK_VALUES = 2_000_000
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Screen:
    """What all contexts have in common: T perturbations, S of them single ones, G genes, P programs."""

    seed: int
    factors: Floats  # [G, FACTORS]
    base: Floats  # [G], unit variance
    dispersion: Floats  # [G]
    targets: Integers  # [S], gene index
    strength: Floats  # [S], 0 is inert
    common: Floats  # [S, G]
    pairs: Integers  # [T - S, 2], position in targets
    interaction: Floats  # [T - S, G], unit variance
    loadings: Floats  # [P, G]
    slope: Floats  # [G]

    @property
    def knocked_down(self) -> Floats:
        """1 at the target genes of a perturbation, else 0, [T + 1, G]; the last row is the control's."""
        singles, pairs = len(self.targets), len(self.pairs)
        rows = np.zeros((singles + pairs + 1, len(self.base)))
        rows[np.arange(singles), self.targets] = 1.0
        for column in self.targets[self.pairs].T:
            rows[np.arange(singles, singles + pairs), column] = 1.0
        return rows

    def labels(self, symbols: NDArray[np.str_]) -> list[str]:
        """Labels of all perturbations."""
        names = symbols[self.targets]
        return [*names.tolist(), *(SEPARATOR.join(pair) for pair in names[self.pairs].tolist())]


@dataclass(frozen=True)
class Context:
    """What one context adds, and its N cells: B batches."""

    base: Floats  # [G], log relative expression
    dispersion: Floats  # [G]
    shift: Floats  # [B, G], log
    delta: Floats  # [T, G], log fold change
    perturbation: Integers  # [N], T is control
    batch: Integers  # [N]
    depth: Floats  # [N], UMI
    efficiency: Floats  # [N]
    activity: Floats  # [N, P]


def _stream(seed: int, what: int, context: int | None = None) -> Generator:
    """Random stream of something that a recipe can add: apart from the streams that are always drawn from."""
    key = (what, 0 if context is None else 1 + context)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def draw_screen(config: SimulateConfig, seed: int, rng: Generator) -> Screen:
    """What all contexts have in common, from ``rng``, and from streams made of ``seed`` what a recipe adds."""
    factors = rng.standard_normal((config.genes, FACTORS))
    base = rng.standard_normal(config.genes)
    dispersion = 0.3 * np.exp(0.3 * rng.standard_normal(config.genes))
    expressed = np.argsort(-base)[: max(config.perturbations, config.genes // 2)]
    targets = np.sort(rng.choice(expressed, config.perturbations, replace=False))
    strength = 0.8 * np.exp(0.35 * rng.standard_normal(config.perturbations))
    strength[rng.permutation(config.perturbations)[: round(config.inert * config.perturbations)]] = 0.0
    common = _draw_part(config, factors, targets, rng)

    rng = _stream(seed, COMBINATIONS)
    every = np.stack(np.triu_indices(config.perturbations, 1), axis=1)
    pairs = every[np.sort(rng.choice(len(every), config.combinations, replace=False))]
    interaction = rng.standard_normal((config.combinations, config.genes))
    loadings = config.program_sd * _stream(seed, PROGRAMS).standard_normal((config.programs, config.genes))
    loadings /= np.sqrt(max(config.programs, 1))
    slope = config.depth_slope * _stream(seed, DEPTH).standard_normal(config.genes)
    return Screen(seed, factors, base, dispersion, targets, strength, common, pairs, interaction, loadings, slope)


def _draw_part(
    config: SimulateConfig, factors: NDArray[np.float64], targets: NDArray[np.int64], rng: Generator
) -> NDArray[np.float64]:
    """A part of the effects, [T, G], of unit variance: generic, predictable from factors, and neither."""
    rotation = np.linalg.qr(rng.standard_normal((FACTORS, FACTORS)))[0]
    bilinear = factors[targets] @ rotation @ factors.T / np.sqrt(FACTORS)
    own = np.sqrt(config.predictable) * bilinear
    own += np.sqrt(1 - config.predictable) * rng.standard_normal(bilinear.shape)
    return np.sqrt(0.25) * rng.standard_normal(config.genes) + np.sqrt(0.75) * own


def draw_context(config: SimulateConfig, screen: Screen, number: int, rng: Generator) -> Context:
    """The context of that number, and its cells but for their counts, from its stream ``rng``."""
    own = rng.standard_normal(config.genes)
    base, dispersion = 1.3 * (np.sqrt(0.85) * screen.base + np.sqrt(0.15) * own), screen.dispersion
    if config.expression == "measured":
        base = measured_expression.log_expression(screen.base, own)
        steady, own = (_stream(screen.seed, DISPERSION, c).standard_normal(config.genes) for c in (None, number))
        dispersion = measured_expression.dispersion(base, steady, own)
    delta = _draw_delta(config, screen, number, rng)

    shift = 0.1 * rng.standard_normal((config.batches, config.genes))
    batch_depth = 0.1 * rng.standard_normal(config.batches)
    batch_depth -= batch_depth.mean()
    perturbations = len(delta)
    sizes = np.append(
        np.maximum(rng.poisson(config.cells, perturbations), FEWEST_CELLS),
        max(rng.poisson(config.controls), FEWEST_CELLS, config.batches),
    )
    n = int(sizes.sum())
    perturbation = np.repeat(np.arange(perturbations + 1), sizes)
    # Round-robin from a random start: batches of one group differ by one cell at most.
    batch = (np.arange(n) + np.repeat(rng.integers(config.batches, size=perturbations + 1), sizes)) % config.batches
    order = rng.permutation(n)
    perturbation, batch = perturbation[order], batch[order]
    depth = config.depth * np.exp(batch_depth[batch] + 0.25 * rng.standard_normal(n))
    active = (perturbation < perturbations) & (rng.random(n) >= truth.ESCAPE)
    efficiency = np.where(active, rng.beta(*truth.EFFICIENCY, n), 0.0)
    activity = _stream(screen.seed, PROGRAMS, number).standard_normal((n, config.programs))
    return Context(base, dispersion, shift, delta, perturbation, batch, depth, efficiency, activity)


def _draw_delta(config: SimulateConfig, screen: Screen, number: int, rng: Generator) -> Floats:
    """Log fold changes of one context at full efficiency, [T, G]."""
    own = _draw_part(config, screen.factors, screen.targets, rng)
    singles = screen.strength[:, None] * _sparse(config, screen.common, own)
    singles = np.clip(singles, -LARGEST, LARGEST)
    singles[np.arange(len(singles)), screen.targets] = 0.0
    if not len(screen.pairs):
        return singles
    summed = singles[screen.pairs].sum(axis=1)
    own = _stream(screen.seed, COMBINATIONS, number).standard_normal(screen.interaction.shape)
    new = _sparse(config, screen.interaction, own)
    new *= np.sqrt((summed**2).mean(axis=1, keepdims=True) / (new**2).mean(axis=1, keepdims=True))
    pairs = np.sqrt(1 - config.interaction) * summed + np.sqrt(config.interaction) * new
    pairs = np.clip(pairs, -LARGEST, LARGEST) * (1 - screen.knocked_down[len(singles) : -1])
    return np.vstack([singles, pairs])


def _sparse(config: SimulateConfig, common: Floats, own: Floats) -> Floats:
    """What is common to all contexts and what is one's own, both of unit variance, together and without small ones."""
    dense = np.sqrt(config.shared) * common
    dense += np.sqrt(1 - config.shared) * own
    return np.sign(dense) * np.maximum(np.abs(dense) - 1.0, 0.0)


def unperturbed(screen: Screen, context: Context, cells: Integers | slice, median_depth: float) -> Floats:
    """Log relative expression of cells, were they not perturbed, [n, G]."""
    log_expression = context.base + context.shift[context.batch[cells]]
    if screen.slope.any():
        log_expression += np.log(context.depth[cells] / median_depth)[:, None] * screen.slope
    if len(screen.loadings):
        log_expression += context.activity[cells] @ screen.loadings
    return log_expression


def draw_counts(config: SimulateConfig, screen: Screen, context: Context, rng: Generator) -> sparse.csr_matrix:
    """Steps 5 to 7 of the model for all cells of a context, [N, G] CSR float32."""
    genes = len(context.base)
    # The control's row: no effect, no target gene.
    delta, knocked_down = np.vstack([context.delta, np.zeros(genes)]), screen.knocked_down
    rows = max(1, BLOCK_VALUES // genes)
    blocks = []
    for start in range(0, len(context.batch), rows):
        part = slice(start, start + rows)
        perturbation, efficiency = context.perturbation[part], context.efficiency[part, None]
        log_expression = unperturbed(screen, context, part, config.depth) + efficiency * delta[perturbation]
        log_expression += np.log1p(-efficiency) * knocked_down[perturbation]
        mean = context.depth[part, None] * special.softmax(log_expression, axis=1)
        rate = rng.standard_gamma(np.broadcast_to(1 / context.dispersion, mean.shape)) * context.dispersion * mean
        blocks.append(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    return sparse.vstack(blocks, format="csr")
