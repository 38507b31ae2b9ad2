"""Screens for the tests of `vcc-fm inspect`."""

import numpy as np
import pandas as pd
import pytest
from inspections import GENES


@pytest.fixture
def counts():
    """[120 cells, 60 genes] counts; every cell has some, with a depth of its own."""
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.5, 2.0, (120, 1))
    return rng.poisson(depth * rng.gamma(0.6, 6.0, (1, 60)), (120, 60)).astype(float)


@pytest.fixture
def obs():
    """Of 120 cells: a control, 5 targets in turn; two lines, three lanes."""
    row = np.arange(120)
    return pd.DataFrame(
        {
            "target_gene": np.array(["non-targeting", *GENES[:5]])[row % 6],
            "cell_line": np.array(["K562", "HepG2"])[row // 6 % 2],
            "lane": row // 40,
        },
        index=[f"cell{i}" for i in row],
    )


@pytest.fixture
def screen(h5ad_file, obs):
    """Writes a screen with the labels of ``obs``."""

    def build(X=None, **keys):
        n_genes = next(
            len(m[0]) if isinstance(m, np.ndarray) else m.shape[1]
            for m in [X, *keys.get("layers", {}).values()]
            if m is not None
        )
        given = {"obs": obs, "var": pd.DataFrame(index=GENES[:n_genes])} | keys
        return h5ad_file(X, **given)

    return build
