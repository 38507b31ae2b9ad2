"""Log-normalised cells, and the mean cell of every label."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp


def log_normalized(cells: ad.AnnData, total: float | None = None) -> ad.AnnData:
    """Natural log1p of counts scaled to ``total`` a cell, or to the median depth of these cells; float32."""
    from cell_eval2.norm import to_normalization

    return to_normalization(cells, "counts", "lognorm", target_sum=total)


def label_means(cells: ad.AnnData) -> pd.DataFrame:
    """The mean cell of every perturbation label, the control among them.

    Args:
        cells: obs ``perturbation``, X sparse (cells, genes).

    Returns:
        float64 [labels, genes], labels sorted.
    """
    codes, labels = pd.factorize(cells.obs["perturbation"].astype(str), sort=True)
    share = 1 / np.bincount(codes)[codes]
    members = sp.csr_matrix((share, (codes, np.arange(len(codes)))), shape=(len(labels), len(codes)))
    return pd.DataFrame((members @ cells.X).toarray(), index=labels, columns=cells.var_names)
