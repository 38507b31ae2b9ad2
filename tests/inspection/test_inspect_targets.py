import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from vcc_fm.inspection import targets, values
from vcc_fm.inspection.targets import knock_down
from vcc_fm.sources.matrix import CsrMatrix


def measured(counts, perturbation, context, genes, reading=0.0, separator="+", progress=lambda done, total: None):
    stored = sp.csr_matrix(counts)
    matrix = CsrMatrix(stored.data, stored.indices, stored.indptr.astype(np.int64), stored.shape, "here")
    cells = pd.DataFrame({"perturbation": perturbation, "context": context})
    columns = pd.Index(pd.unique(pd.Series(genes))).get_indexer(pd.Index(genes))
    return knock_down(
        matrix,
        reading,
        columns,
        pd.unique(pd.Series(genes)),
        cells,
        np.arange(len(cells)),
        "ctrl",
        separator,
        10.0,
        progress,
    )


def test_ratios_are_of_depth_normalised_means_within_a_context():
    # In context x control cells have a tenth of their counts in A, in y a half; the perturbation halves it in both.
    # Its cells are mostly of y: a comparison over all contexts would find it raised.
    kinds = {("ctrl", "x"): (0.1, 60), ("A", "x"): (0.05, 20), ("ctrl", "y"): (0.5, 20), ("A", "y"): (0.25, 60)}
    rows, labels, contexts = [], [], []
    for (label, context), (share, number) in kinds.items():
        for cell in range(number):
            depth = 100 * (1 + cell % 3)
            rows.append([share * depth / 2, share * depth / 2, (1 - share) * depth])
            labels.append(label)
            contexts.append(context)
    found = measured(np.array(rows), labels, contexts, ["A", "A", "B"])
    assert [(one.perturbation, one.cells) for one in found.targets] == [("A", 80)]
    assert found.targets[0].ratio == pytest.approx(0.5)
    assert found.low == 0
    # The same from normalised and from log values, which need no depth.
    scaled = np.array(rows) / np.array(rows).sum(axis=1, keepdims=True)
    reading = values.Reading(0.0, np.dtype(float))
    assert measured(scaled, labels, contexts, ["A", "A", "B"], reading).targets[0].ratio == pytest.approx(0.5)
    reading = values.Reading(2.0, np.dtype(float))
    logs = np.log2(1 + scaled)
    assert measured(logs, labels, contexts, ["A", "A", "B"], reading).targets[0].ratio == pytest.approx(0.5)


def test_targets_that_cannot_be_judged_are_said_and_not_measured():
    rng = np.random.default_rng(0)
    labels = np.array(["ctrl"] * 100 + ["A"] * 40 + ["RARE"] * 40 + ["FEW"] * 5 + ["GONE"] * 40 + ["A+FEW"] * 40)
    counts = rng.poisson(5.0, (len(labels), 4)).astype(float)
    counts[:, 1] = np.arange(len(labels)) % 25 == 0
    counts[labels == "A", 0] = 0
    found = measured(counts, labels, "x", ["A", "RARE", "FEW", "OTHER"])
    assert [(one.perturbation, one.ratio) for one in found.targets] == [("A", 0.0)]
    assert (found.hardly_expressed, found.too_few_cells, found.not_measured) == (["RARE"], ["FEW"], ["GONE"])
    assert (found.perturbations, found.read, found.low, found.median) == (4, 3, 1, 0.0)
    assert measured(counts, labels, "x", list("wxyz")).reason == "no target gene is in the matrix"


def test_a_value_beyond_the_sample_spoils_no_ratio():
    counts = np.ones((40, 2))
    counts[7, 1] = np.nan
    found = measured(counts, ["ctrl", "A"] * 20, "x", ["A", "B"])
    assert (found.reason or "").startswith("a value is not a finite number")


@pytest.mark.parametrize("mixed", [True, False])
def test_a_sample_is_spread_over_all_groups(monkeypatch, mixed):
    monkeypatch.setattr(targets, "SAMPLE_CELLS", 600)
    rng = np.random.default_rng(0)
    labels = np.repeat(["ctrl", "A", "B", "C"], [3000, 1000, 1000, 40])
    labels = rng.permutation(labels) if mixed else labels
    counts = rng.poisson(8.0, (len(labels), 4)).astype(float)
    counts[labels == "B", 1] = np.rint(counts[labels == "B", 1] / 8)
    found = measured(counts, labels, "x", list("ABCD"), progress=None)
    assert found.of_cells == 5040
    assert 250 < found.cells <= 600
    cells = {one.perturbation: one.cells for one in found.targets}
    assert cells == {"A": 160, "B": 160, "C": 40}
    ratio = {one.perturbation: one.ratio for one in found.targets}
    assert ratio["A"] == pytest.approx(1.0, abs=0.1)
    assert ratio["B"] == pytest.approx(0.16, abs=0.1)
    everything = measured(counts, labels, "x", list("ABCD"))
    assert everything.cells == 5040


def test_more_perturbations_than_a_sample_holds_are_left_to_all(monkeypatch):
    monkeypatch.setattr(targets, "SAMPLE_CELLS", 500)
    names = [f"G{i}" for i in range(20)]
    labels = np.repeat(["ctrl", *names], 100)
    counts = np.full((len(labels), 20), 3.0)
    found = measured(counts, labels, "x", names, progress=None)
    assert (found.perturbations, found.read, len(found.targets)) == (20, 8, 8)
    assert all(one.cells == 50 for one in found.targets)
