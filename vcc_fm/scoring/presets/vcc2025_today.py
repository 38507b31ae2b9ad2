"""The Virtual Cell Challenge 2025 score as cell-eval computes it today.

Significance is corrected within each perturbation, which changes DES alone; the rest is as in the contest, see
:mod:`vcc_fm.scoring.presets.vcc2025`. cell-eval makes a dense copy of
both sides, one after the other: of 120,000 cells and 18,080 genes 9 GB each.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import anndata as ad

from vcc_fm.ground.files import whole_file
from vcc_fm.scoring.preset import Measured
from vcc_fm.scoring.presets.vcc2025 import COUNT, Contest2025


class Vcc2025Today(Contest2025):
    """The scores of cell-eval, called as a library."""

    scorer = "cell-eval"

    def parameters(self) -> dict[str, Any]:
        """See :class:`Preset`; what cell-eval sets where it is given nothing else."""
        return {
            "fdr_scope": "per_pert",
            "p_adj_threshold": 0.05,
            "mean_calc": "geometric",
            "epsilon": 0.0,
            "clip_value": None,
            "control_source": "pred",
            "distance": "l1",
            "rank_denominator": "n",
            "scaled": "log1p of counts scaled to the median depth of each file",
        }

    def compare(
        self, predicted: ad.AnnData, truth: ad.AnnData, control: str, threads: int, kept: Path | None = None
    ) -> dict[str, Measured]:
        """See :class:`Contest2025`; the rank tests of the truth are kept."""
        from cell_eval import MetricPipeline, MetricsEvaluator

        tests = None if kept is None else kept / "real_de.csv"
        with tempfile.TemporaryDirectory(prefix="cell-eval-") as folder:
            evaluator = MetricsEvaluator(
                predicted,
                truth,
                de_real=str(tests) if tests is not None and tests.exists() else None,
                control_pert=control,
                pert_col="perturbation",
                num_threads=threads,
                outdir=folder,
            )
            written = Path(folder) / "real_de.csv"
            if tests is not None and written.exists():
                with whole_file(tests) as path:
                    path.write_bytes(written.read_bytes())
        # The evaluator's own `compute` leaves a metric that fails out of the mean, and knows no single metric by name.
        pipeline = MetricPipeline("vcc", break_on_error=True)
        pipeline.add_metrics(["de_nsig_counts"])
        pipeline.compute_de_metrics(evaluator.de_comparison)
        pipeline.compute_anndata_metrics(evaluator.anndata_pair)
        found = pipeline.get_results().to_pandas().set_index("perturbation")
        return {name: Measured.mean(found[name].to_dict()) for name in (*self.metrics, COUNT)}
