"""A small simulated screen for the scoring tests."""

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from vcc_fm.scoring.table import VALUES, ScoreTable

CONTROL = "non-targeting"


def make_screen(
    seed: int, effect: float = 1.5, contexts: tuple[str, ...] = ("alpha", "beta"), draw: int = 0, depth: float = 3000.0
) -> ad.AnnData:
    """Counts of 6 perturbations x 24 cells and 80 controls a context, 80 genes; ``draw`` varies the cells only."""
    means, cells = np.random.default_rng(seed), np.random.default_rng([seed, draw])
    genes = [f"G{number:02d}" for number in range(80)]
    base = means.lognormal(0, 1, len(genes))
    effects = {gene: means.normal(0, effect, len(genes)) * (means.random(len(genes)) < 0.4) for gene in genes[:6]}
    counts, labels = [], []
    for context in contexts:
        profile = base * np.exp(means.normal(0, 0.2, len(genes)))
        for label, number in {CONTROL: 80, **dict.fromkeys(effects, 24)}.items():
            mean = profile * np.exp(effects.get(label, 0.0))
            depths = depth * np.exp(cells.normal(0, 0.2, (number, 1)))
            noise = cells.gamma(5, 1 / 5, (number, len(genes)))
            counts.append(sp.csr_matrix(cells.poisson(depths * mean / mean.sum() * noise).astype(np.float32)))
            labels += [(context, label, f"b{cell % 2}") for cell in range(number)]
    obs = pd.DataFrame(labels, columns=["context", "perturbation", "batch"])
    obs.index = [f"cell{number}" for number in range(len(obs))]
    return ad.AnnData(sp.vstack(counts, format="csr"), obs=obs, var=pd.DataFrame(index=genes))


def perturbed(screen: ad.AnnData) -> ad.AnnData:
    """A prediction file's cells: no controls."""
    return screen[screen.obs["perturbation"] != CONTROL].copy()


def table_of(**given: Any) -> ScoreTable:
    """A score table with the fields ``given``; the others say nothing."""
    nothing: dict[str, Any] = dict.fromkeys(("rows", "means", "anchors", "significant"), pd.DataFrame())
    nothing |= {
        "values": pd.DataFrame(columns=list(VALUES)),
        "notes": [],
        "preset": "p",
        "scorer": "s",
        "version": "1",
    }
    nothing |= {"parameters": {}, "seconds": 1.5, "metrics": {}, "needed": 4, "members": None}
    return ScoreTable(**nothing | {"low": "nothing", "high": "a replicate", "ceiling": "replicate"} | given)


def value(table: ScoreTable, entry: str, context: str, metric: str, column: str = "scaled") -> Any:
    """One field of the table's rows."""
    rows = table.rows
    chosen = rows[(rows["entry"] == entry) & (rows["context"] == context) & (rows["metric"] == metric)]
    return chosen[column].item()
