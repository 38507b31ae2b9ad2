"""What the report shows of cells, beside plain computations of the same."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import rankdata
from scoring_screens import CONTROL

from vcc_fm.scoring import inputs
from vcc_fm.scoring.inputs import read_blocks, read_labels
from vcc_fm.scoring.report.groups import (
    Context,
    cosines,
    largest_and_some,
    own_ranks,
    pseudobulks,
    read_contexts,
    spread,
)
from vcc_fm.scoring.report.page import _discrimination, _effects
from vcc_fm.scoring.report.rows import data_of


@pytest.fixture
def shuffled(screen, tmp_path):
    """The truth with its cells in any order: contexts and perturbations meet in every block."""
    cells = ad.read_h5ad(screen.truth)
    path = tmp_path / "shuffled.h5ad"
    cells[np.random.default_rng(0).permutation(len(cells))].copy().write_h5ad(path)
    return path


def test_blocks_hold_every_cell_once_and_no_more_than_their_size(shuffled):
    cells, labels = ad.read_h5ad(shuffled), read_labels(shuffled)
    asked = ["G00", "G03"]
    blocks = list(read_blocks(labels, "beta", asked, size=37))
    chosen = (cells.obs["context"] == "beta") & cells.obs["perturbation"].isin(asked)
    assert len(blocks) > 3
    assert max(block.shape[0] for _, block in blocks) <= 37
    assert np.concatenate([names for names, _ in blocks]).tolist() == cells.obs["perturbation"][chosen].tolist()
    assert (sp.vstack([block for _, block in blocks]) != cells.X[chosen.to_numpy()]).nnz == 0
    assert list(read_blocks(labels, "nowhere", asked)) == []


def test_a_dense_file_gives_the_same_blocks(shuffled, tmp_path):
    cells = ad.read_h5ad(shuffled)
    cells.X = cells.X.toarray()
    cells.write_h5ad(tmp_path / "dense.h5ad")
    ours, theirs = (
        sp.vstack([block for _, block in read_blocks(read_labels(path), "alpha", ["G01"], 50)])
        for path in (shuffled, tmp_path / "dense.h5ad")
    )
    assert (ours != theirs).nnz == 0


def test_a_file_is_never_read_whole(screen, shuffled, monkeypatch):
    def refuse(*_):
        raise AssertionError("a context was loaded")

    monkeypatch.setattr(inputs, "read_context", refuse)
    monkeypatch.setattr(ad.AnnData, "to_memory", refuse)
    contexts, _ = read_contexts(shuffled, screen.good, CONTROL, pd.DataFrame(), 3)
    assert [context.name for context in contexts] == read_labels(shuffled).contexts()


def test_pseudobulks_and_spread_are_sums_and_variances_within_groups(shuffled):
    cells, names = ad.read_h5ad(shuffled), ["G02", "G00", "G05"]
    found = pseudobulks(read_labels(shuffled), "alpha", names)
    groups = [
        cells.X[((cells.obs["context"] == "alpha") & (cells.obs["perturbation"] == name)).to_numpy()].toarray()
        for name in names
    ]
    assert found.cells.tolist() == [24, 24, 24]
    assert found.sums == pytest.approx(np.stack([group.sum(axis=0) for group in groups]))
    assert sorted(found.depths) == pytest.approx(sorted(np.concatenate(groups).sum(axis=1)))
    got = spread(found)
    variance = np.mean([group.var(axis=0, ddof=1) for group in groups], axis=0)
    mean = np.mean([group.mean(axis=0) for group in groups], axis=0)
    square = np.mean([group.mean(axis=0) ** 2 for group in groups], axis=0)
    assert got.variance == pytest.approx(variance, rel=1e-5)
    assert got.mean == pytest.approx(mean, rel=1e-5)
    assert got.dispersion == pytest.approx((variance - mean) / square, rel=1e-4)


def test_dispersion_finds_that_of_a_negative_binomial(tmp_path):
    rng = np.random.default_rng(0)
    means = np.array([2.0, 5.0])[:, None, None] * np.ones((2, 3000, 4))
    counts = rng.poisson(means * rng.gamma(4, 1 / 4, means.shape)).reshape(6000, 4)
    obs = pd.DataFrame({"context": "c", "perturbation": np.repeat(["a", "b"], 3000)}, index=map(str, range(6000)))
    ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs).write_h5ad(tmp_path / "f.h5ad")
    found = spread(pseudobulks(read_labels(tmp_path / "f.h5ad"), "c", ["a", "b"]))
    assert found.dispersion == pytest.approx(0.25, abs=0.03)


def test_cosines_leave_the_predicted_target_gene_out_on_both_sides():
    rng = np.random.default_rng(1)
    predicted, measured = rng.normal(size=(2, 4, 9))
    target = np.array([3, -1, 0, 8])
    found = cosines(predicted, measured, target)
    for i, gene in enumerate(target):
        keep = np.arange(9) != gene
        for j in range(4):
            a, b = predicted[i, keep], measured[j, keep]
            assert found[i, j] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_a_change_in_the_target_alone_is_like_nothing():
    measured = np.array([[0.0, 0.3, 0.0], [1.0, 2.0, 0.5]])
    found = cosines(np.ones((2, 3)), measured, np.array([1, -1]))
    assert np.isnan(found[0, 0])
    assert np.isfinite(found[[0, 1, 1], [1, 0, 1]]).all()


def test_own_rank_is_the_place_in_the_row_and_ties_share_theirs():
    similarity = np.array([[0.5, 0.9, 0.5, 0.1], [0.2, 0.3, 0.1, np.nan], [0, 0, np.nan, 0], [0.1, 0.2, 0.3, 0.0]])
    assert own_ranks(similarity)[[0, 1, 3]].tolist() == [2.5, 1.0, 4.0]
    assert np.isnan(own_ranks(similarity)[2])
    full = np.random.default_rng(0).normal(size=(20, 20))
    assert own_ranks(full).tolist() == [rankdata(-row)[place] for place, row in enumerate(full)]


def test_contexts_keep_changes_of_the_most_significant_and_the_factor_finds_the_size(screen, table):
    contexts, rows = read_contexts(screen.truth, screen.truth, CONTROL, table.significant, 5)
    assert rows["significant"].tolist() == sorted(table.significant["significant"], reverse=True)
    kept = {(context.name, label) for context in contexts for label in context.changes}
    assert kept == set(zip(rows["context"][:5], rows["perturbation"][:5], strict=True))
    for context in contexts:
        # The truth predicts itself.
        assert context.factor == pytest.approx(1.0)
        assert (context.rows["rank"] == 1).all()
        assert context.rows["size"].tolist() == context.rows["predicted"].tolist()
    # A replicate of strong effects hardly asks for another size, and is told apart.
    contexts, _ = read_contexts(screen.truth, screen.good, CONTROL, table.significant, 5)
    for context in contexts:
        assert context.factor == pytest.approx(1.0, abs=0.05)
        assert (context.rows["rank"] == 1).all()


def test_without_numbers_of_significant_genes_the_largest_changes_stand_first(screen):
    _, rows = read_contexts(screen.truth, screen.good, CONTROL, pd.DataFrame(), 5)
    assert rows["significant"].isna().all()
    assert rows["size"].is_monotonic_decreasing


def test_the_largest_genes_of_either_side_are_kept_and_the_others_evenly():
    rng = np.random.default_rng(0)
    measured, predicted = rng.normal(size=(2, 1000))
    picked = largest_and_some(measured, predicted, 50, 100)
    assert len(picked) == len(set(picked)) == 150
    assert (np.diff(picked) > 0).all()
    largest = np.argsort(-np.maximum(abs(measured), abs(predicted)))[:50]
    assert set(largest) <= set(picked)
    others = np.setdiff1d(picked, largest)
    assert np.diff(others).max() < 30
    assert largest_and_some(measured, predicted, 600, 400).tolist() == list(range(1000))
    assert largest_and_some(measured[:7], predicted[:7], 50, 100).tolist() == list(range(7))


def test_a_large_screen_leaves_most_out_and_the_page_says_so(table):
    rng, labels = np.random.default_rng(0), [f"P{i}" for i in range(70)]
    genes = np.array([f"G{i}" for i in range(9000)])
    columns = dict.fromkeys(("cells", "emitted", "size", "predicted", "r", "rank"), 1.0)
    significant = {"significant": np.arange(70.0)[::-1]}
    rows = pd.DataFrame({"context": "K", "perturbation": labels, **columns, **significant})
    changes = {label: tuple(rng.normal(size=(2, len(genes)))) for label in labels[:50]}
    context = Context("K", genes, rows, changes, np.eye(70), 1.0, {})
    data = data_of(table, [context], rows)
    assert len(data["rows"]) == 70
    assert [effect["perturbation"] for effect in data["effects"]] == labels[:50]
    for effect in data["effects"]:
        assert len(effect["at"]) == len(effect["measured"]) == len(effect["predicted"]) == 1500
        assert effect["all"] == 9000
        at = [int(data["genes"][place][1:]) for place in effect["at"]]
        measured, predicted = (change[at] for change in changes[effect["perturbation"]])
        assert np.array(effect["measured"]) / 1000 == pytest.approx(measured, abs=6e-4)
        assert np.array(effect["predicted"]) / 1000 == pytest.approx(predicted, abs=6e-4)
    assert len(json.dumps(data)) < 2_000_000
    assert "20 perturbations with fewer significant genes cannot be chosen" in _effects(rows)
    assert "The figure has the 60 perturbations with the most significant genes of K." in _discrimination([context])
