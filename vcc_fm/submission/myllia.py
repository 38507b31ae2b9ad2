"""Myllia's "Echoes of Silenced Genes": a table of predicted responses, a row a perturbation and a column a gene.

A response is the mean over cells of log2(1 + 1e4 count / depth), less that of the measured control cells. Depth is
over all genes of the cell store, of which the platform's may be a part: let the store keep what was measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from vcc_fm.ground.errors import UserError, reading
from vcc_fm.ground.files import whole_file
from vcc_fm.ground.words import listed, many
from vcc_fm.scoring.inputs import read_labels
from vcc_fm.scoring.presets.myllia import ID, TOTAL, checked
from vcc_fm.sources.controls import contexts_with, require_controls
from vcc_fm.submission.cells import Part, from_predictions, from_store
from vcc_fm.submission.challenge import Inputs, Progresses, Submission

NAME = "pert"
"""The column of ``pert_ids_all.csv`` with the silenced gene."""


class Myllia(Submission):
    """The file of ``--genes sample_submission.csv`` and ``--perturbations pert_ids_all.csv``."""

    suffix = ".csv"
    next = "upload it on the competition's page"

    def __init__(self, inputs: Inputs):
        """See :class:`Submission`."""
        self.notes: list[str] = []
        self.genes = _table(inputs.genes, [ID]).columns.drop(ID)
        self.names = _table(inputs.perturbations, [ID, NAME]).set_index(ID)[NAME]
        labels = read_labels(inputs.predictions)
        contexts = inputs.contexts or labels.contexts()
        if len(contexts) != 1:
            raise UserError(f"{labels.path}: the challenge has one context, found {listed(contexts)}; give --contexts")
        groups = labels.groups(contexts[0])
        for what, lost, key in (
            ("perturbation", [name for name in self.names if name not in groups], inputs.perturbations),
            ("gene", self.genes.difference(labels.genes, sort=False).tolist(), inputs.genes),
        ):
            if lost:
                raise UserError(f"{labels.path}: lacks {many(len(lost), what)} of {key}: {listed(lost)}; predict them")
        chosen = labels.cells[(labels.cells["context"] == contexts[0]) & labels.cells["perturbation"].isin(self.names)]
        self._predicted = from_predictions(labels, chosen.index.to_numpy(), chosen)
        cells = inputs.cells()
        require_controls(contexts, contexts_with(cells.control, cells.group_cells), cells.control, str(cells.folder))
        control = cells.rows(contexts[0], cells.control)
        self._control = from_store(cells, control, pd.DataFrame({"perturbation": [cells.control] * len(control)}))

    def write(self, output: Path, memory: float, progress: Progresses) -> dict[str, Any]:
        """See :class:`Submission`."""
        means = mean_logs(self._predicted) - mean_logs(self._control).iloc[0]
        responses = means.loc[self.names, self.genes].set_axis(self.names.index)
        with whole_file(output) as partial:
            responses.to_csv(partial, index_label=ID)
            written = pd.read_csv(partial, dtype={ID: str}, float_precision="round_trip")
            again = checked(written, self.genes.tolist(), self.names.index.tolist())
            if not np.array_equal(again.loc[self.names.index], responses):
                raise UserError(f"{output}: what was written reads back differently; make it again on another disk")
            size = partial.stat().st_size
        self.notes.append(f"{output}: {many(len(responses), 'row')} x {len(self.genes):,} genes, read back and equal")
        return {"file": str(output), "bytes": size, "rows": len(responses), "genes": len(self.genes)}


def mean_logs(part: Part) -> pd.DataFrame:
    """Mean over cells of log2(1 + 1e4 count / depth) by perturbation, float64 [perturbations, genes]."""
    codes, names = pd.factorize(part.labels["perturbation"].astype(str))
    sums, rest = np.zeros((len(names), len(part.genes))), codes
    for block in part.blocks(part.genes):
        logs = (sp.diags(TOTAL / np.maximum(block.depth, 1)) @ block.counts).log1p() / np.log(2)
        here, rest = np.split(rest, [len(block.depth)])
        sums += sp.csr_matrix((np.ones(len(here)), (here, np.arange(len(here)))), (len(names), len(here))) @ logs
    return pd.DataFrame(sums / np.bincount(codes)[:, None], index=names, columns=part.genes)


def _table(path: Path, columns: list[str]) -> pd.DataFrame:
    """A CSV table of the platform, with ``columns`` and one row an id.

    Raises:
        UserError: it is none.
    """
    with reading(path, "CSV", "give the platform's file"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if lost := [name for name in columns if name not in table]:
        raise UserError(f"{path}: no column {lost[0]}; give the platform's file")
    if len(again := table[ID][table[ID].duplicated()]):
        raise UserError(f"{path}: {again.iloc[0]} stands twice in its column {ID}")
    return table
