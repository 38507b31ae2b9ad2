"""Cells of a scaled file whose counts cannot be proved: left out of the store, and counted there."""

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from tiny_screens import CONTROL, Screen, screen, store_of, write_screen, write_store

from vcc_fm.recipe.data import SourceConfig
from vcc_fm.sources.proof import FEW, REASONS

REASON = REASONS[FEW]


def scaled_source(folder, name, counts, obs):
    """An h5ad file with the log1p of counts per 10,000, and its entry in a recipe."""
    logged = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4).astype(np.float32)
    genes = pd.DataFrame(index=[f"g{i}" for i in range(counts.shape[1])])
    anndata.AnnData(sp.csr_matrix(logged), obs=obs, var=genes).write_h5ad(folder / f"{name}.h5ad")
    return SourceConfig(
        name=name,
        path=str(folder / f"{name}.h5ad"),
        recovered=0.5,
        perturbation_column="perturbation",
        control=CONTROL,
        context_column="context",
        batch_column="batch",
    )


def a_screen():
    """300 cells; those of B and some of A are too thin to be proved."""
    counts = np.random.default_rng(0).poisson(3.0, (300, 40)) + 1
    labels = np.array([CONTROL, "A", "B", "C", CONTROL, "A"])[np.arange(300) % 6]
    thin = (labels == "B") | ((labels == "A") & (np.arange(300) < 60))
    counts[thin, 5:] = 0
    obs = pd.DataFrame({"context": "K", "batch": "1", "perturbation": labels}, index=[f"c{i}" for i in range(300)])
    return counts, obs, thin


def test_the_store_holds_the_proved_cells_and_says_what_is_missing(tmp_path):
    counts, obs, thin = a_screen()
    store = write_store(tmp_path / "store", [scaled_source(tmp_path, "s", counts, obs)], chunk_values=300)
    assert sorted(store.barcodes) == sorted(obs.index[~thin])
    assert store.perturbations == ["A", "C", CONTROL]
    rows = obs.index.get_indexer(list(store.barcodes))
    np.testing.assert_array_equal(store.dense(np.arange(len(store))), counts[rows])
    np.testing.assert_array_equal(store.depth, counts[rows].sum(1))
    assert [store.perturbations[code] for code in store.perturbation] == obs["perturbation"].iloc[rows].tolist()
    source = store.meta["sources"][0]
    assert source["dropped"] == {REASON: int(thin.sum())}
    assert source["values"]["cells_proved"] == len(store) == store.groups.end[-1]


def test_what_is_left_of_a_perturbation_may_be_too_few(tmp_path):
    counts, obs, thin = a_screen()
    proved_a = int((~thin & (obs["perturbation"] == "A")).sum())
    store = write_store(
        tmp_path / "store", [scaled_source(tmp_path, "s", counts, obs)], minimum_cells=proved_a + 1, chunk_values=1500
    )
    assert store.perturbations == [CONTROL]
    n_c = int((obs["perturbation"] == "C").sum())
    # A is too small for want of proof; a cell is dropped for one reason only.
    assert store.meta["sources"][0]["dropped"] == {
        REASON: int(thin.sum()),
        f"perturbation with fewer than {proved_a + 1} cells": n_c + proved_a,
    }


def test_a_scaled_source_beside_counts(tmp_path):
    counts, obs, thin = a_screen()
    other = screen(np.full((4, 2), 3), "H", "1", [CONTROL, "A", "A", "C"], ["g1", "g0"])
    configs = [write_screen(tmp_path, "counts", other), scaled_source(tmp_path, "scaled", counts, obs)]
    store = write_store(tmp_path / "store", configs)
    assert len(store) == 4 + int((~thin).sum())
    np.testing.assert_array_equal(store.dense(store.rows("H"))[:, :2], 3)
    assert [source["values"]["found"] for source in store.meta["sources"]] == ["counts", "log-normalised"]


def test_nothing_changes_where_every_cell_is_proved(tmp_path):
    counts, obs, thin = a_screen()
    whole, kept = counts[~thin], obs[~thin]
    scaled = write_store(tmp_path / "scaled", [scaled_source(tmp_path, "s", whole, kept)])
    raw = store_of(tmp_path / "raw", Screen(whole, kept, [f"g{i}" for i in range(40)]))
    np.testing.assert_array_equal(scaled.dense(np.arange(len(raw))), raw.dense(np.arange(len(raw))))
    assert list(scaled.barcodes) == list(raw.barcodes)
