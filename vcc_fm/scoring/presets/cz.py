"""Predicted cells as cz-benchmarks judges them, now and when it began.

Genes are ranked by scanpy's rank-sum test of log1p of counts per 10,000, a perturbation's cells against control cells.

*Now*: the package's task, given what its data sets bring along: of each perturbation, half of the genes with an
adjusted p below 1e-4 and a fold change of two (five at least), drawn by the package, and a control cell for each
predicted one, drawn here. It correlates (Spearman) the test's log fold change with ln(mean predicted / mean control)
of counts per 10,000, or with their difference where a mean is 0.

*When it began*: the task of cz-benchmarks 0.9 (`PerturbationTask`), which the package has no longer. Squared error of
mean expression, Pearson's r of its change from the mean control cell (0 where the prediction has no change; there: no
value), over all genes and the 20 and 100 best, and the Jaccard index of the best of truth and prediction. The best
have the largest signed score: all are up-regulated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import anndata as ad
import numpy as np
import pandas as pd

from vcc_fm.scoring.anchors import Anchors, anchors_folder, load_anchors
from vcc_fm.scoring.cz import SCORER, quiet_and_seeded
from vcc_fm.scoring.preset import NO_VALUE, ContextScorer, Measured, Metric, Preset, Scale
from vcc_fm.scoring.presets.delta import correlation
from vcc_fm.scoring.profiles import label_means, log_normalized
from vcc_fm.scoring.replicate import replicate

TOTAL = 10_000.0
SUBSETS = {"": None, "_top20": 20, "_top100": 100}
"""What ends the name of a metric -> how many of the best genes it is taken over."""


class Cz(Preset):
    """Spearman's rho of log fold changes, and the metrics of the package's first task."""

    scorer = SCORER
    metrics: ClassVar[dict[str, Metric]] = {"spearman": Metric("Spearman")} | {
        f"{name}{suffix}": Metric(f"{label} {number or ''}".strip(), low_is_good=name == "mse")
        for suffix, number in SUBSETS.items()
        for name, label in (("mse", "MSE"), ("pearson", "r"), ("jaccard", "J"))
        if number or name != "jaccard"
    }
    needed = 4
    low, high = "mean of the controls", "the truth"

    def parameters(self) -> dict[str, Any]:
        """See :class:`Preset`."""
        return {"values": "log1p of counts per 10,000", "ranked_by": "scanpy wilcoxon", "control_source": "real"}

    def open(self, real: ad.AnnData, context: str, control: str, cache: Path, digest: str) -> ContextScorer:
        """See :class:`Preset`."""
        truth = _Truth(real, control)

        def measure() -> Anchors:
            low, scales = truth.of_mean_control(), {}
            for name, metric in self.metrics.items():
                scale = Scale(low[name].value, 0.0 if metric.low_is_good else 1.0)
                scales[name] = scale if low[name].parts else Scale(reason=NO_VALUE)
            ceiling = replicate(real, lambda half, other, _: _Truth(other, control).of_half(half))
            return Anchors(scales, low, ceiling, dict(truth.significant))

        load_anchors(anchors_folder(cache, digest, context, control, self), measure).give(truth)
        return truth


@quiet_and_seeded()
def ranked(log: ad.AnnData, control: str) -> dict[str, pd.DataFrame]:
    """Genes from best to worst (names, scores, logfoldchanges, pvals_adj) of each perturbation of two cells or more.

    Args:
        log: log-normalised cells with controls, obs ``perturbation``.
        control: label of the controls.
    """
    import scanpy as sc

    cells = ad.AnnData(log.X, obs=log.obs[["perturbation"]].astype("category"), var=log.var[[]])
    number = cells.obs["perturbation"].value_counts()
    labels = [label for label in sorted(number.index[number > 1]) if label != control]
    sc.tl.rank_genes_groups(cells, "perturbation", groups=labels, reference=control, method="wilcoxon")
    tables = {label: sc.get.rank_genes_groups_df(cells, label) for label in labels}
    return {label: table.sort_values("scores", ascending=False) for label, table in tables.items()}


def first_metrics(
    truth: tuple[pd.Series, list[str]], predicted: tuple[pd.Series, list[str]], control: pd.Series
) -> dict[str, float]:
    """Metrics of the first task by name.

    Args:
        truth: mean expression of a perturbation by gene [G], and the genes from best to worst.
        predicted: likewise.
        control: the mean control cell [G].
    """
    found = {}
    for suffix, number in SUBSETS.items():
        genes, ours = truth[1][:number], predicted[1][:number]
        changes = [(mean - control)[genes].to_numpy() for mean, _ in (truth, predicted)]
        found[f"mse{suffix}"] = float(np.mean(np.square(changes[0] - changes[1])))
        found[f"pearson{suffix}"] = correlation(*changes)
        found[f"jaccard{suffix}"] = len({*genes} & {*ours}) / len({*genes, *ours})
    return found


class _Truth(ContextScorer):
    """Measured cells of one context."""

    def __init__(self, cells: ad.AnnData, control: str):
        self._control, self.notes, log = control, [], log_normalized(cells, TOTAL)
        self._tables, self._means = ranked(log, control), label_means(log).T
        self._controls = self._split(log)[1]
        self.significant = {label: int((one["pvals_adj"] < 0.05).sum()) for label, one in self._tables.items()}

    def measure(self, predicted: ad.AnnData) -> dict[str, Measured]:
        """Against the truth's control cells."""
        return self._compare(log_normalized(predicted, TOTAL), self._controls)

    def of_half(self, cells: ad.AnnData) -> dict[str, Measured]:
        """Scores of cells with controls of their own."""
        return self._compare(*self._split(log_normalized(cells, TOTAL)))

    def of_mean_control(self) -> dict[str, Measured]:
        """Scores of the mean control cell for every perturbation: no gene changes, and none is best."""
        low = self._first(dict.fromkeys(self._tables, (self._means[self._control], [])))
        return low | {"spearman": Measured.mean(dict.fromkeys(self._targets()[1], 0.0))}

    def _split(self, log: ad.AnnData) -> tuple[ad.AnnData, ad.AnnData]:
        controls = (log.obs["perturbation"] == self._control).to_numpy()
        return log[~controls], log[controls]

    def _compare(self, predicted: ad.AnnData, controls: ad.AnnData) -> dict[str, Measured]:
        cells = ad.concat([predicted, controls], index_unique="-")
        means, tables = label_means(cells).T, ranked(cells, self._control)
        first = self._first({label: (means[label], one["names"].tolist()) for label, one in tables.items()})
        return first | {"spearman": self._spearman(cells)}

    def _first(self, found: dict[str, tuple[pd.Series, list[str]]]) -> dict[str, Measured]:
        values = {}
        for label in sorted(self._tables.keys() & found.keys()):
            truth = self._means[label], self._tables[label]["names"].tolist()
            values[label] = first_metrics(truth, found[label], self._means[self._control])
        names = [name for name in Cz.metrics if name != "spearman"]
        return {name: Measured.mean({label: one[name] for label, one in values.items()}) for name in names}

    @quiet_and_seeded()
    def _targets(self) -> tuple[pd.DataFrame, dict[str, list[str]]]:
        """The tests that pass the package's limits, and its draw of each perturbation's genes."""
        from czbenchmarks.datasets import Organism, SingleCellPerturbationDataset
        from czbenchmarks.datasets.single_cell_perturbation import sample_de_genes

        # For its limits alone: it wants a file that is there, and reads none.
        data = SingleCellPerturbationDataset(Path(__file__), Organism.HUMAN)
        names = {"names": "gene_id", "logfoldchanges": "logfoldchange", "pvals_adj": "pval_adj"}
        tests = pd.concat([one.assign(condition=label) for label, one in self._tables.items()]).rename(columns=names)
        large = tests["logfoldchange"].abs() >= data.min_logfoldchange
        tests = tests[large & (tests["pval_adj"] < data.pval_threshold)]
        chosen = data.percent_genes_to_mask, data.min_de_genes_to_mask
        return tests, sample_de_genes(tests, *chosen, "condition", "gene_id", data.random_seed)

    @quiet_and_seeded()
    def _spearman(self, log: ad.AnnData) -> Measured:
        """Spearman correlation of log-normalised cells with controls."""
        from czbenchmarks.constants import RANDOM_SEED
        from czbenchmarks.tasks import PerturbationExpressionPredictionTask as Task
        from czbenchmarks.tasks import PerturbationExpressionPredictionTaskInput as Input

        tests, targets = self._targets()
        of_label = log.obs.groupby("perturbation").groups
        drawn = np.random.default_rng(RANDOM_SEED).permutation(of_label[self._control])
        own = {label: of_label.get(label, []) for label in targets}
        pairs = {label: dict(zip(mine, np.resize(drawn, len(mine)), strict=True)) for label, mine in own.items()}
        given = {"de_results": tests, "target_conditions_dict": targets, "control_cells_map": pairs, "config": {}}
        data = ad.AnnData(obs=log.obs[[]], var=log.var[[]], uns=given)
        results = Task().run(log.X.expm1(), Input(adata=data, gene_index=log.var_names, cell_index=log.obs_names))
        return Measured.mean({one.params["condition"]: float(one.value) for one in results})
