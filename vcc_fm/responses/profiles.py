"""Control profiles: what a gene's share of the counts is in the unperturbed cells of a batch."""

from __future__ import annotations

import numpy as np

from vcc_fm.sources.controls import contexts_with, require_controls
from vcc_fm.store.cells import CellStore

BATCH_PRIOR = 2e5
"""UMI of the context's profile that a batch's own controls are mixed with; steadies batches with few controls."""
CONTEXT_PRIOR = 0.5
"""UMI that every measured gene is granted in a context, so that one never seen in controls has a finite log share."""


def control_log_shares(store: CellStore) -> np.ndarray:
    """Log of each gene's share of the counts in the control cells of each batch.

    The share of a batch is the posterior mean under a Dirichlet prior with the context's shares as mean and
    ``BATCH_PRIOR`` counts as weight; the context's shares get ``CONTEXT_PRIOR`` counts a gene. Where the batches of a
    context measured different genes, a gene's counts are divided by the counts, over the genes that all measured, of
    the batches that measured it: else a gene would look rarer for being measured in fewer of them.

    Returns:
        [number of batches, G] float32, natural log; -inf where the batch's source did not measure the gene. The
        exponentials of a row sum to one.

    Raises:
        UserError: a context has no control cells.
    """
    shares = np.zeros((len(store.batches), len(store.genes)))
    having = contexts_with(store.control, store.group_cells)
    require_controls(store.contexts, having, store.control, str(store.folder))
    groups, control = store.groups, store.control_code
    for code in range(len(store.contexts)):
        batches = np.unique(groups.batch[groups.context == code])
        runs = [i for i in np.flatnonzero(groups.context == code) if groups.perturbation[i] == control]
        sums = {int(groups.batch[i]): store.sums(np.arange(groups.start[i], groups.end[i])) for i in runs}
        measured = store.measured[batches]
        common = measured.all(axis=0)
        exposure = np.array([sums[int(batch)][common].sum() if int(batch) in sums else 0 for batch in batches]) + 1.0
        pooled = sum(sums.values()) * (exposure.sum() / np.maximum(exposure @ measured, 1.0)) + CONTEXT_PRIOR
        for batch, mask in zip(batches, measured, strict=True):
            context_share = np.where(mask, pooled, 0.0)
            context_share /= context_share.sum()
            posterior = sums.get(int(batch), 0) * mask + BATCH_PRIOR * context_share
            shares[batch] = posterior / posterior.sum()
    with np.errstate(divide="ignore"):
        return np.log(shares).astype(np.float32)


def with_unmeasured(log_shares: np.ndarray) -> np.ndarray:
    """Log shares [U, G] of which those of a gene that a batch did not measure are its mean share in the others."""
    share = np.exp(log_shares.astype(np.float64))
    known = share > 0
    mean = share.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    with np.errstate(divide="ignore"):
        return np.where(known, log_shares, np.log(mean)).astype(np.float32)
