"""Writes pbmc68k.h5ad: the 700 blood cells that come with scanpy, as counts.

Their file holds none: X is z-scored, and raw is ln(1 + 10,000 count / depth) rounded to three decimals, too few to
prove counts by. It also holds each cell's depth (obs.n_counts), which gives them back.
"""

import numpy as np
import scanpy as sc

cells = sc.datasets.pbmc68k_reduced()
counts = np.expm1(cells.raw.X.toarray()) * cells.obs["n_counts"].to_numpy()[:, None] / 1e4
assert np.abs(counts - counts.round()).max() < 0.1  # what the rounding can move a value by
sc.AnnData(counts.round(), obs=cells.obs, var=cells.raw.var[[]]).write_h5ad("pbmc68k.h5ad")
