"""A simulated CRISPRi screen whose truth is known: the demo's data, and the ground for tests.

The generative model. Logs are natural; "N" is a standard normal draw; indices are c context, b batch, t perturbation,
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

Each context draws from a stream of its own: adding one at the end changes none before it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import sparse, special

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.data import SimulateConfig, SourceConfig

CONTROL = "non-targeting"
FACTORS = 6
FEWEST_CELLS = 8
ESCAPE = 0.07
# Values of a dense block of counts held at a time: bounds memory at many genes.
BLOCK_VALUES = 2_000_000
# Frequencies of the amino acids in known proteins, per cent (UniProtKB/Swiss-Prot statistics, rounded).
BACKGROUND = {
    "A": 8.3, "C": 1.4, "D": 5.5, "E": 6.7, "F": 3.9, "G": 7.1, "H": 2.3, "I": 5.9, "K": 5.8, "L": 9.6,
    "M": 2.4, "N": 4.1, "P": 4.7, "Q": 3.9, "R": 5.5, "S": 6.6, "T": 5.4, "V": 6.9, "W": 1.1, "Y": 2.9,
}  # fmt: skip

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class _Screen:
    """What all contexts have in common: T perturbations, G genes."""

    factors: Floats  # [G, FACTORS]
    base: Floats  # [G], unit variance
    dispersion: Floats  # [G]
    targets: Integers  # [T], gene index
    strength: Floats  # [T], 0 is inert
    common: Floats  # [T, G]


@dataclass(frozen=True)
class _Context:
    """What one context adds, and its N cells: B batches."""

    base: Floats  # [G], log relative expression
    shift: Floats  # [B, G], log
    delta: Floats  # [T, G], log fold change
    perturbation: Integers  # [N], T is control
    batch: Integers  # [N]
    depth: Floats  # [N], UMI
    efficiency: Floats  # [N]


def simulate(config: SimulateConfig, seed: int, folder: Path) -> list[SourceConfig]:
    """Draw a screen and write it: ``<context>.h5ad`` each, ``proteins.fasta`` and, for tests only, ``truth.npz``.

    An h5ad holds raw counts in X (CSR float32, cells in random order), obs ``perturbation``, ``context`` and ``batch``
    (categorical; control label ``non-targeting``) and gene symbols as var index. The truth is delta [C, T, G], base
    [C, G], shift [C, B, G] (all natural log), dispersion [G], targets [T] (gene index), strength [T], inert [T],
    factors [G, 6], and for the cells of all files in order cell_context, efficiency and depth (UMI, before sampling).

    Args:
        config: Size and make-up of the screen.
        seed: Seed of everything drawn; on one machine, the same seed and config give the same bytes.
        folder: Where the files go; made if it is not there.

    Returns:
        One source per context, in the order of ``config.contexts``.

    Raises:
        UserError: There are fewer genes than perturbations, or the contexts' names repeat or are no file names.
    """
    _check(config)
    folder.mkdir(parents=True, exist_ok=True)
    shared_stream, protein_stream, *context_streams = (
        np.random.default_rng(stream) for stream in np.random.SeedSequence(seed).spawn(2 + len(config.contexts))
    )
    symbols = np.array([f"SIM{number:04d}" for number in range(1, config.genes + 1)])
    screen = _draw_screen(config, shared_stream)
    _write_proteins(folder / "proteins.fasta", symbols, screen.factors, protein_stream)
    contexts = []
    for name, stream in zip(config.contexts, context_streams, strict=True):
        context = _draw_context(config, screen, stream)
        counts = _draw_counts(screen, context, stream)
        data = anndata.AnnData(
            counts, _cell_table(name, context, symbols[screen.targets]), pd.DataFrame(index=symbols)
        )
        data.uns["vcc_fm"] = {"simulated": True, "config": config.model_dump_json(), "seed": str(seed)}
        # gzip at its fastest level: lzf is faster still, but writes other bytes for the same data from run to run.
        data.write_h5ad(folder / f"{name}.h5ad", compression="gzip", compression_opts=1)
        contexts.append(context)
    np.savez(
        folder / "truth.npz",
        delta=np.stack([context.delta for context in contexts]).astype(np.float32),
        base=np.stack([context.base for context in contexts]),
        shift=np.stack([context.shift for context in contexts]),
        dispersion=screen.dispersion,
        targets=screen.targets,
        strength=screen.strength,
        inert=screen.strength == 0,
        factors=screen.factors,
        cell_context=np.repeat(np.arange(len(contexts)), [len(context.batch) for context in contexts]),
        efficiency=np.concatenate([context.efficiency for context in contexts]),
        depth=np.concatenate([context.depth for context in contexts]),
    )
    return simulated_sources(config, folder)


def simulated_sources(config: SimulateConfig, folder: Path) -> list[SourceConfig]:
    """The sources that :func:`simulate` writes into ``folder``, one per context."""
    return [
        SourceConfig(
            name=name,
            path=str(folder / f"{name}.h5ad"),
            values="counts",
            perturbation_column="perturbation",
            control=CONTROL,
            context_column="context",
            batch_column="batch",
        )
        for name in config.contexts
    ]


def _check(config: SimulateConfig) -> None:
    if not config.contexts:
        raise UserError("data.simulate.contexts is empty; name at least one context")
    if config.genes < config.perturbations:
        raise UserError(
            f"data.simulate.genes={config.genes} is fewer than data.simulate.perturbations={config.perturbations}; "
            "every target gene is on the gene axis, so raise genes or lower perturbations"
        )
    for name in config.contexts:
        if re.fullmatch(r"\w[\w.-]*", name) is None:
            raise UserError(
                f"data.simulate.contexts: {name!r} cannot name a file; use letters, digits, '_', '-' and '.'"
            )
    # Two names that differ by case only are one file on some file systems.
    if len({name.casefold() for name in config.contexts}) < len(config.contexts):
        raise UserError(f"data.simulate.contexts: names must differ by more than case, found {config.contexts}")


def _draw_screen(config: SimulateConfig, rng: Generator) -> _Screen:
    factors = rng.standard_normal((config.genes, FACTORS))
    base = rng.standard_normal(config.genes)
    dispersion = 0.3 * np.exp(0.3 * rng.standard_normal(config.genes))
    expressed = np.argsort(-base)[: max(config.perturbations, config.genes // 2)]
    targets = np.sort(rng.choice(expressed, config.perturbations, replace=False))
    strength = 0.8 * np.exp(0.35 * rng.standard_normal(config.perturbations))
    strength[rng.permutation(config.perturbations)[: round(config.inert * config.perturbations)]] = 0.0
    return _Screen(factors, base, dispersion, targets, strength, _draw_part(config, factors, targets, rng))


def _draw_part(
    config: SimulateConfig, factors: NDArray[np.float64], targets: NDArray[np.int64], rng: Generator
) -> NDArray[np.float64]:
    """A part of the effects, [T, G], of unit variance: generic, predictable from factors, and neither."""
    rotation = np.linalg.qr(rng.standard_normal((FACTORS, FACTORS)))[0]
    bilinear = factors[targets] @ rotation @ factors.T / np.sqrt(FACTORS)
    own = np.sqrt(config.predictable) * bilinear
    own += np.sqrt(1 - config.predictable) * rng.standard_normal(bilinear.shape)
    return np.sqrt(0.25) * rng.standard_normal(config.genes) + np.sqrt(0.75) * own


def _draw_context(config: SimulateConfig, screen: _Screen, rng: Generator) -> _Context:
    perturbations, genes = screen.common.shape
    base = 1.3 * (np.sqrt(0.85) * screen.base + np.sqrt(0.15) * rng.standard_normal(genes))
    dense = np.sqrt(config.shared) * screen.common
    dense += np.sqrt(1 - config.shared) * _draw_part(config, screen.factors, screen.targets, rng)
    sparse_effect = np.sign(dense) * np.maximum(np.abs(dense) - 1.0, 0.0)
    delta = np.clip(screen.strength[:, None] * sparse_effect, -3.0, 3.0)
    delta[np.arange(perturbations), screen.targets] = 0.0

    shift = 0.1 * rng.standard_normal((config.batches, genes))
    batch_depth = 0.1 * rng.standard_normal(config.batches)
    batch_depth -= batch_depth.mean()
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
    active = (perturbation < perturbations) & (rng.random(n) >= ESCAPE)
    efficiency = np.where(active, rng.beta(17.0, 3.0, n), 0.0)
    return _Context(base, shift, delta, perturbation, batch, depth, efficiency)


def _draw_counts(screen: _Screen, context: _Context, rng: Generator) -> sparse.csr_matrix:
    """Steps 5 to 7 of the model for all cells of a context, [N, G] CSR float32."""
    genes = len(context.base)
    # The control's row: no effect, and its efficiency is 0, so that whichever target it is given is left alone.
    delta = np.vstack([context.delta, np.zeros(genes)])
    targets = np.append(screen.targets, 0)
    rows = max(1, BLOCK_VALUES // genes)
    blocks = []
    for start in range(0, len(context.batch), rows):
        part = slice(start, start + rows)
        perturbation, efficiency = context.perturbation[part], context.efficiency[part]
        log_expression = context.base + context.shift[context.batch[part]] + efficiency[:, None] * delta[perturbation]
        log_expression[np.arange(len(perturbation)), targets[perturbation]] += np.log1p(-efficiency)
        mean = context.depth[part, None] * special.softmax(log_expression, axis=1)
        rate = rng.standard_gamma(np.broadcast_to(1 / screen.dispersion, mean.shape)) * screen.dispersion * mean
        blocks.append(sparse.csr_matrix(rng.poisson(rate).astype(np.float32)))
    return sparse.vstack(blocks, format="csr")


def _cell_table(name: str, context: _Context, target_symbols: NDArray[np.str_]) -> pd.DataFrame:
    n, batches = len(context.batch), len(context.shift)
    columns = {
        "perturbation": (context.perturbation, [*target_symbols, CONTROL]),
        "context": (np.zeros(n, np.int64), [name]),
        "batch": (context.batch, [f"{name}-batch{number}" for number in range(1, batches + 1)]),
    }
    return pd.DataFrame(
        {column: pd.Categorical.from_codes(codes, pd.Index(labels)) for column, (codes, labels) in columns.items()},
        index=[f"{name}-{number:06d}" for number in range(1, n + 1)],
    )


def _write_proteins(path: Path, symbols: NDArray[np.str_], factors: Floats, rng: Generator) -> None:
    letters = np.array(list(BACKGROUND))
    loadings = 0.3 * rng.standard_normal((FACTORS, len(letters)))
    frequencies = special.softmax(np.log(list(BACKGROUND.values())) + factors @ loadings, axis=1)
    lengths = rng.integers(150, 601, len(symbols))
    proteins = ("".join(rng.choice(letters, length, p=row)) for length, row in zip(lengths, frequencies, strict=True))
    path.write_text("".join(f">{symbol}\n{protein}\n" for symbol, protein in zip(symbols, proteins, strict=True)))
