"""The quality filters: depth and genes, and the knock-down filter against cell-load's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from source_counts import counts_of

from vcc_fm.recipe.data import KnockDownConfig, QualityConfig, SourceConfig
from vcc_fm.sources.anndata_source import AnnDataSource
from vcc_fm.sources.quality import ControlSums, KnockDown, TargetGenes, knocked_down, sufficient

NEEDS_CELL_LOAD = "needs cell-load, the peer: pip install 'vcc-fm[peers]'"
NOT_MEASURED = "knock-down: target gene not measured"
SILENT = "knock-down: target gene not expressed in control cells"
PERTURBATION = "knock-down: perturbation not below 0.3 of control"
CELL = "knock-down: cell not below 0.5 of control"
FEW = "knock-down: fewer than 30 cells left"


class Screen(NamedTuple):
    """Counts [N, G] of cells with a label and a context."""

    counts: sp.csr_matrix
    genes: np.ndarray
    labels: np.ndarray
    contexts: np.ndarray


def random_screen(seed: int, contexts: int = 1) -> Screen:
    """Twelve perturbations from fully down to untouched, one silent in controls and one not measured."""
    rng = np.random.default_rng(seed)
    genes = np.array([f"G{n}" for n in rng.permutation(20)])
    names = ["non-targeting", *(f"G{n}" for n in range(12)), "ABSENT"]
    labels = rng.permutation(np.repeat(names, [60, *rng.integers(15, 70, 12), 40]))
    means = rng.gamma(2.0, 4.0, len(genes)) * rng.gamma(4.0, 0.25, (len(labels), 1))
    means[:, genes == "G0"] *= labels[:, None] != "non-targeting"
    down = dict(zip(names[1:], [0.5, *rng.uniform(0.0, 0.02, 4), *rng.uniform(0.0, 0.5, 6), 0.6, 1.0], strict=True))
    for name, factor in down.items():
        means[np.ix_(labels == name, genes == name)] *= factor
    counts = sp.csr_matrix(rng.poisson(means).astype(np.int32))
    return Screen(counts, genes, labels, rng.integers(0, contexts, len(labels)))


def expression(counts: sp.csr_matrix, scale: str) -> np.ndarray:
    """Counts per 10,000, written out."""
    dense = counts.toarray().astype(np.float64)
    scaled = dense / np.maximum(dense.sum(axis=1, keepdims=True), 1) * 1e4
    return np.log1p(scaled) if scale == "log1p" else scaled


def of_cell_load(screen: Screen, scale: str, **thresholds: Any) -> np.ndarray:
    """Which cells cell-load keeps, [N] bool."""
    peer = pytest.importorskip("cell_load.utils.data_utils", reason=NEEDS_CELL_LOAD)
    cells = anndata.AnnData(
        sp.csr_matrix(expression(screen.counts, scale)),
        obs=pd.DataFrame({"gene": screen.labels.astype(object)}, index=[f"{n}" for n in range(len(screen.labels))]),
        var=pd.DataFrame({"gene_name": screen.genes}, index=screen.genes),
    )
    kept = peer.filter_on_target_knockdown(cells, **thresholds)
    return cells.obs_names.isin(kept.obs_names)


def ours(screen: Screen, control: str = "non-targeting", chunks: list[np.ndarray] | None = None, **keys: Any) -> Any:
    """Run the filter over chunks of cells, [k] int64 each; what it keeps, and what was measured for it."""
    config = KnockDownConfig(**keys)
    names, codes = np.unique(screen.labels, return_inverse=True)
    targets = TargetGenes(names.tolist(), control, "+", screen.genes, config.scale)
    n_contexts = screen.contexts.max() + 1
    own = np.full((len(codes), targets.index.shape[1]), -1, np.float32)
    sums = ControlSums(np.zeros((n_contexts, len(targets.columns))), np.zeros(n_contexts, np.int64))
    for rows in [np.arange(len(codes))] if chunks is None else chunks:
        own[rows] = targets.measure(screen.counts[rows], codes[rows])
        controls = rows[codes[rows] == targets.control]
        more = targets.control_sums(screen.counts[controls], screen.contexts[controls], n_contexts)
        sums = ControlSums(sums.expression + more.expression, sums.cells + more.cells)
    contexts = [f"context {n}" for n in range(n_contexts)]
    return knocked_down(codes, screen.contexts, own, sums, targets, contexts, config), own, sums


def adds_up(screen: Screen, found: KnockDown, control: str = "non-targeting") -> None:
    """Every lost cell has one reason, and the report has every perturbed cell."""
    assert sum(found.dropped.values()) == int((~found.keep).sum())
    assert all(found.dropped.values())
    perturbed = screen.labels != control
    assert sum(found.report["before"]) == perturbed.sum()
    assert sum(found.report["after"]) == (perturbed & found.keep).sum()
    assert json.loads(json.dumps(found.report)) == found.report


# ----------------------------------------------------------------------------------------------------------- cell-load
@pytest.mark.parametrize("scale", ["linear", "log1p"])
@pytest.mark.parametrize("seed", range(5))
def test_one_context_keeps_what_cell_load_keeps(scale: str, seed: int) -> None:
    screen = random_screen(seed)
    found, _, _ = ours(screen, scale=scale)
    np.testing.assert_array_equal(found.keep, of_cell_load(screen, scale))
    adds_up(screen, found)
    assert found.dropped[NOT_MEASURED] == 40
    assert found.dropped[SILENT] == (screen.labels == "G0").sum()
    assert found.dropped[PERTURBATION] > 0
    assert found.dropped[CELL] > 0
    assert found.dropped[FEW] > 0
    assert found.keep[screen.labels != "non-targeting"].any()


@pytest.mark.parametrize("seed", range(3))
def test_thresholds_are_those_of_cell_load(seed: int) -> None:
    screen = random_screen(seed)
    found, _, _ = ours(screen, perturbation=0.45, cell=0.6, minimum_cells=12)
    peer = of_cell_load(screen, "linear", residual_expression=0.45, cell_residual_expression=0.6, min_cells=12)
    np.testing.assert_array_equal(found.keep, peer)
    adds_up(screen, found)


def test_each_context_is_filtered_like_a_file_of_its_own() -> None:
    screen = random_screen(7, contexts=3)
    found, _, _ = ours(screen, minimum_cells=8)
    for context in range(3):
        rows = np.flatnonzero(screen.contexts == context)
        alone = Screen(screen.counts[rows], screen.genes, screen.labels[rows], np.zeros(len(rows), np.int64))
        np.testing.assert_array_equal(found.keep[rows], of_cell_load(alone, "linear", min_cells=8))
    adds_up(screen, found)


def by_hand(cells: dict[str, list[list[int]]]) -> Screen:
    """Label -> counts of A and B in each cell; a third gene fills every cell up to 100 UMI."""
    labels = np.repeat(list(cells), [len(rows) for rows in cells.values()])
    pair = np.array([row for rows in cells.values() for row in rows])
    counts = sp.csr_matrix(np.column_stack([pair, 100 - pair.sum(axis=1)]).astype(np.int32))
    return Screen(counts, np.array(["A", "B", "FILL"]), labels, np.zeros(len(labels), np.int64))


@pytest.mark.parametrize(("low", "stay"), [(30, True), (29, False)])
def test_thirty_cells_are_enough_and_a_cell_at_the_threshold_is_not(low: int, stay: bool) -> None:
    # Half of the control's 10 is 5, which is not below half; nor is the second perturbation's mean of 3 below 0.3.
    screen = by_hand({"non-targeting": [[10, 10]] * 4, "A": [[0, 10]] * low + [[5, 10]] * 3, "B": [[10, 3]] * 40})
    found, _, _ = ours(screen)
    np.testing.assert_array_equal(found.keep, of_cell_load(screen, "linear"))
    expected = {CELL: 3, PERTURBATION: 40} | ({} if stay else {FEW: 29})
    assert found.dropped == expected
    assert found.report == {
        "context": ["context 0"] * 2,
        "perturbation": ["A", "B"],
        "ratio": [round(15 / (low + 3) / 10, 4), 0.3],
        "before": [low + 3, 40],
        "after": [30 if stay else 0, 0],
    }


def test_real_cells_are_kept_as_cell_load_keeps_them(real_data: Path) -> None:
    path = real_data / "perturbation" / "papalexi2021_thp1_crisprko_20729x299_counts.h5ad"
    config = SourceConfig(
        name="papalexi", path=str(path), perturbation_column="target_gene", context="THP-1", keep={"assigned": True}
    )
    with AnnDataSource(config) as source:
        counts = sp.vstack([counts for _, counts in counts_of(source, 1 << 15)], format="csr")
        labels = source.cells["perturbation"].to_numpy(str)
        screen = Screen(counts, source.genes, labels, np.zeros(len(labels), np.int64))
    found, _, _ = ours(screen, perturbation=0.6, cell=0.8)
    peer = of_cell_load(screen, "linear", residual_expression=0.6, cell_residual_expression=0.8)
    np.testing.assert_array_equal(found.keep, peer)
    adds_up(screen, found)
    assert np.count_nonzero(found.report["after"]) >= 2


# --------------------------------------------------------------------------------------------- what cell-load has not
def test_every_target_gene_of_a_combination_must_pass() -> None:
    screen = by_hand(
        {
            "ctrl": [[10, 20]] * 4,
            "A": [[1, 20]] * 2,
            "A+B": [[1, 2], [1, 2], [6, 2], [1, 11], [6, 11]],  # means 3 and 5.6 of 10 and 20
            "A+B+C": [[0, 0]],
            "B+FILL": [[0, 0]],
        }
    )
    found, own, _ = ours(screen, control="ctrl", perturbation=0.31, minimum_cells=2)
    kept = screen.labels[found.keep].tolist()
    assert kept == ["ctrl"] * 4 + ["A"] * 2 + ["A+B"] * 2
    # FILL rises from 70 to 100 of 100 UMI.
    assert found.dropped == {CELL: 3, NOT_MEASURED: 1, "knock-down: perturbation not below 0.31 of control": 1}
    assert dict(zip(found.report["perturbation"], found.report["ratio"], strict=True)) == {
        "A": 0.1,
        "A+B": 0.3,
        "A+B+C": 0.0,
        "B+FILL": round(10 / 7, 4),
    }
    np.testing.assert_array_equal(np.isnan(own).sum(axis=1), [3] * 4 + [2] * 2 + [1] * 5 + [1] + [1])
    adds_up(screen, found, "ctrl")


def test_what_cannot_be_judged_is_kept_where_asked() -> None:
    screen = by_hand(
        {"non-targeting": [[10, 0]] * 4, "ABSENT": [[9, 0]], "B": [[9, 5]], "A+ABSENT": [[9, 0]], "A+B": [[0, 9]] * 2}
    )
    dropping, _, _ = ours(screen, minimum_cells=2)
    assert dropping.dropped == {NOT_MEASURED: 2, SILENT: 3}
    keeping, _, _ = ours(screen, minimum_cells=2, unmeasured="keep")
    # One cell of ABSENT or B is fewer than two, but nothing was judged of them; of combinations the rest is.
    assert screen.labels[keeping.keep].tolist() == ["non-targeting"] * 4 + ["ABSENT", "B", "A+B", "A+B"]
    assert keeping.dropped == {PERTURBATION: 1}
    assert keeping.report["ratio"] == [0.9, 0.0, None, None]
    for found in (dropping, keeping):
        adds_up(screen, found)


def test_a_context_without_controls_cannot_be_judged() -> None:
    screen = by_hand({"non-targeting": [[10, 10]] * 4, "A": [[0, 10]] * 6})
    screen.contexts[-3:] = 1
    found, _, _ = ours(screen, minimum_cells=1)
    assert found.dropped == {SILENT: 3}
    assert found.report["context"] == ["context 0", "context 1"]
    assert ours(screen, minimum_cells=1, unmeasured="keep")[0].keep.all()


def test_a_screen_of_unmeasured_target_genes_keeps_its_controls() -> None:
    screen = by_hand({"non-targeting": [[10, 10]] * 4, "ABSENT": [[0, 10]] * 40})
    found, own, sums = ours(screen)
    np.testing.assert_array_equal(found.keep, screen.labels == "non-targeting")
    np.testing.assert_array_equal(found.keep, of_cell_load(screen, "linear"))
    assert sums.expression.shape == (1, 0)
    assert np.isnan(own).all()


# -------------------------------------------------------------------------------------------------------- measurements
@pytest.mark.parametrize("scale", ["linear", "log1p"])
def test_expression_is_that_of_the_written_out_matrix(scale: str) -> None:
    screen = random_screen(3, contexts=2)
    empty = np.flatnonzero((screen.labels == "non-targeting") & (screen.contexts == 0))[0]
    screen.counts.data[screen.counts.indptr[empty] : screen.counts.indptr[empty + 1]] = 0
    screen.counts.eliminate_zeros()
    _, own, sums = ours(screen, scale=scale)
    full = pd.DataFrame(expression(screen.counts, scale), columns=screen.genes)
    assert own.dtype == np.float32
    for cell in range(0, len(own), 7):
        label = screen.labels[cell]
        expected = full.at[cell, label] if label in full else np.nan
        np.testing.assert_allclose(own[cell], [expected], rtol=1e-6)
    control = screen.labels == "non-targeting"
    targets = screen.genes[np.isin(screen.genes, [f"G{n}" for n in range(12)])]
    for context in range(2):
        chosen = control & (screen.contexts == context)
        np.testing.assert_allclose(sums.expression[context], full.loc[chosen, targets].sum(), rtol=1e-7)
        assert sums.cells[context] == chosen.sum()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), pieces=st.integers(1, 12), scale=st.sampled_from(["linear", "log1p"]))
def test_chunks_in_any_order_give_the_same_bits(seed: int, pieces: int, scale: str) -> None:
    screen = random_screen(seed, contexts=2)
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, len(screen.labels) + 1, pieces - 1))  # chunks without a cell among them
    chunks = np.split(np.arange(len(screen.labels)), cuts)
    whole = ours(screen, scale=scale, minimum_cells=5)
    parts = ours(screen, chunks=[chunks[n] for n in rng.permutation(pieces)], scale=scale, minimum_cells=5)
    np.testing.assert_array_equal(parts[1], whole[1])
    np.testing.assert_array_equal(parts[2].expression, whole[2].expression)
    np.testing.assert_array_equal(parts[2].cells, whole[2].cells)
    np.testing.assert_array_equal(parts[0].keep, whole[0].keep)
    assert parts[0][1:] == whole[0][1:]


# ----------------------------------------------------------------------------------------------------- depth and genes
def test_a_shallow_cell_is_counted_once() -> None:
    counts = sp.csr_matrix(np.array([[9, 0, 0], [1, 1, 1], [5, 5, 0], [0, 0, 0], [10, 0, 0]], np.int32))
    keep, dropped = sufficient(counts, QualityConfig(minimum_depth=9, minimum_genes=2))
    assert keep.tolist() == [False, False, True, False, False]
    assert dropped == {"depth below 9 UMI": 2, "fewer than 2 genes with a count": 2}
    keep, dropped = sufficient(counts, QualityConfig())
    assert keep.all()
    assert dropped == {}
    keep, dropped = sufficient(counts[:0], QualityConfig(minimum_depth=1))
    assert keep.shape == (0,)
    assert dropped == {}


def test_depth_does_not_overflow() -> None:
    counts = sp.csr_matrix(np.full((1, 3), 2**30, np.int32))
    assert sufficient(counts, QualityConfig(minimum_depth=3 * 2**30))[0].all()
