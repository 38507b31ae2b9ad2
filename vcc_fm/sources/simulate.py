"""Draw a simulated screen and write it: the demo's data, and the ground for tests."""

from __future__ import annotations

import re
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import special

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import sha256_file
from vcc_fm.recipe.data import SimulateConfig, SourceConfig
from vcc_fm.sources import truth
from vcc_fm.sources.simulated_screen import (
    FACTORS,
    Context,
    Floats,
    Screen,
    draw_context,
    draw_counts,
    draw_screen,
    unperturbed,
)

CONTROL = "non-targeting"
TRUTH_CELLS = 400
"""Cells over which an expectation is taken; exact to batches, close to programs and depths."""
# Frequencies of the amino acids in known proteins, per cent (UniProtKB/Swiss-Prot statistics, rounded).
BACKGROUND = {
    "A": 8.3, "C": 1.4, "D": 5.5, "E": 6.7, "F": 3.9, "G": 7.1, "H": 2.3, "I": 5.9, "K": 5.8, "L": 9.6,
    "M": 2.4, "N": 4.1, "P": 4.7, "Q": 3.9, "R": 5.5, "S": 6.6, "T": 5.4, "V": 6.9, "W": 1.1, "Y": 2.9,
}  # fmt: skip


def simulate(config: SimulateConfig, seed: int, folder: Path) -> list[SourceConfig]:
    """Draw a screen and write it: ``<context>.h5ad`` each, ``proteins.fasta``, ``truth.npz`` for oracles.

    An h5ad holds raw counts in X (CSR float32, cells in random order), obs ``perturbation``, ``context`` and ``batch``
    (categorical; control label ``non-targeting``) and gene symbols as var index. The truth is what
    :class:`vcc_fm.sources.truth.Truth` holds, and delta [C, T, G], base [C, G], shift [C, B, G] (all natural log),
    dispersion [C, G], targets [S] (gene index), pairs [T - S, 2] (position in targets), strength [S], inert [S],
    factors [G, 6], loadings [programs, G], slope [G], and for the cells of all files in order cell_context,
    efficiency, depth (UMI, before sampling) and activity [cells, programs].

    Args:
        config: Size and make-up of the screen.
        seed: Seed of everything drawn; on one machine, the same seed and config give the same bytes.
        folder: Where the files go; made if it is not there.

    Returns:
        One source per context, in the order of ``config.contexts``.

    Raises:
        UserError: There are fewer genes than perturbations or fewer pairs than combinations, or the contexts' names
            repeat or are no file names.
    """
    _check(config)
    folder.mkdir(parents=True, exist_ok=True)
    shared_stream, protein_stream, *context_streams = (
        np.random.default_rng(stream) for stream in np.random.SeedSequence(seed).spawn(2 + len(config.contexts))
    )
    symbols = np.array([f"SIM{number:04d}" for number in range(1, config.genes + 1)])
    screen = draw_screen(config, seed, shared_stream)
    _write_proteins(folder / "proteins.fasta", symbols, screen.factors, protein_stream)
    contexts = []
    for number, (name, stream) in enumerate(zip(config.contexts, context_streams, strict=True)):
        context = draw_context(config, screen, number, stream)
        counts = draw_counts(config, screen, context, stream)
        data = anndata.AnnData(counts, _cell_table(name, context, screen.labels(symbols)), pd.DataFrame(index=symbols))
        data.uns["vcc_fm"] = {"simulated": True, "config": config.model_dump_json(), "seed": str(seed)}
        # gzip at its fastest level: lzf is faster still, but writes other bytes for the same data from run to run.
        data.write_h5ad(folder / f"{name}.h5ad", compression="gzip", compression_opts=1)
        contexts.append(context)
    _write_truth(folder, config, symbols, screen, contexts)
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
    pairs = config.perturbations * (config.perturbations - 1) // 2
    if config.combinations > pairs:
        raise UserError(
            f"data.simulate.combinations={config.combinations} is more than the {pairs} pairs of "
            f"{config.perturbations} target genes; lower it, or raise perturbations"
        )
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


def _write_truth(
    folder: Path, config: SimulateConfig, symbols: NDArray[np.str_], screen: Screen, contexts: list[Context]
) -> None:
    log_ratio = []
    for context in contexts:
        # Cells that escaped are as controls are.
        controls = np.flatnonzero(context.efficiency == 0)[:TRUTH_CELLS]
        log_expression = unperturbed(screen, context, controls, config.depth)
        log_ratio.append(
            truth.expected_log_ratio(context.delta, screen.knocked_down[:-1], log_expression, context.depth[controls])
        )
    np.savez(
        folder / truth.FILE,
        contexts=np.array(config.contexts),
        labels=np.array(screen.labels(symbols)),
        genes=symbols,
        sha256=np.array([sha256_file(folder / f"{name}.h5ad") for name in config.contexts]),
        log_ratio=np.stack(log_ratio).astype(np.float32),
        delta=np.stack([context.delta for context in contexts]).astype(np.float32),
        base=np.stack([context.base for context in contexts]),
        shift=np.stack([context.shift for context in contexts]),
        dispersion=np.stack([context.dispersion for context in contexts]),
        targets=screen.targets,
        pairs=screen.pairs,
        strength=screen.strength,
        inert=screen.strength == 0,
        factors=screen.factors,
        loadings=screen.loadings,
        slope=screen.slope,
        cell_context=np.repeat(np.arange(len(contexts)), [len(context.batch) for context in contexts]),
        efficiency=np.concatenate([context.efficiency for context in contexts]),
        depth=np.concatenate([context.depth for context in contexts]),
        activity=np.concatenate([context.activity for context in contexts]),
    )


def _cell_table(name: str, context: Context, perturbations: list[str]) -> pd.DataFrame:
    n, batches = len(context.batch), len(context.shift)
    columns = {
        "perturbation": (context.perturbation, [*perturbations, CONTROL]),
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
