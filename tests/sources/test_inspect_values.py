import dataclasses
import json

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from inspections import GENES, only, opened, text_of

from vcc_fm.sources import inspect_problems, inspect_values
from vcc_fm.sources.inspect import inspect_file


def normalised(counts, target=1e4):
    return counts / counts.sum(axis=1, keepdims=True) * target


@pytest.mark.parametrize(
    ("stored", "expected", "said"),
    [
        (lambda c: c.astype(np.float32), "counts", "raw counts: each of"),
        (lambda c: np.log1p(c), "log1p-counts", "log1p of raw counts, to base e"),
        (lambda c: np.log1p(c) / np.log(2), "log1p-counts", "to base 2"),
        (lambda c: normalised(c).astype(np.float32), "normalised", "scaled per cell to 10000, a fixed target"),
        (lambda c: np.log1p(normalised(c)), "log-normalised", "counts proved in 120 of 120 cells"),
        (lambda c: np.log1p(normalised(c)).astype(np.float16), None, "too coarse to tell counts"),
        (lambda c: np.log1p(c * 3000).astype(np.float16), None, "float16"),
        (lambda c: (c - c.mean(0)) / (c.std(0) + 1), None, "z-scored, centred"),
        (lambda c: np.where(c == c.max(), np.nan, c), None, "values are missing or infinite"),
        (lambda c: np.random.default_rng(1).gamma(2.0, 1.0, c.shape), None, "denoised or model-based"),
        (lambda c: np.zeros_like(c), None, "no value above zero"),
    ],
)
@pytest.mark.parametrize("every_value", [False, True])
def test_values_are_told(screen, counts, stored, expected, said, every_value):
    found = inspect_file(screen(stored(counts)), every_value=every_value)
    (matrix,) = found.matrices
    assert matrix.found == expected
    assert said in matrix.sentence
    assert matrix.looked_at == 120
    assert (found.recipe is None) == (expected is None)
    if expected is None:
        assert found.targets.reason == "the scale of the values is not known"
        assert "no matrix gives counts" in only(found.problems, "no matrix")
    else:
        assert found.tried
        with opened(found) as source:
            np.testing.assert_array_equal(next(iter(source.counts(200)))[1].toarray(), counts)
        np.testing.assert_allclose(matrix.depth["50"], np.median(counts.sum(axis=1)))
        assert matrix.genes_per_cell["100"] == np.count_nonzero(counts, axis=1).max()
    json.dumps(dataclasses.asdict(found), allow_nan=False)
    assert said.split()[0] in text_of(found)


def test_depths_in_a_column_prove_what_values_cannot(h5ad_file):
    # Seven values a cell tell no unit; the depth of all genes, measured elsewhere, does.
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.5, (300, 7)) + (rng.random((300, 7)) < 0.5)
    depth = counts.sum(axis=1) + rng.integers(500, 900, 300)
    obs = pd.DataFrame({"target_gene": np.array(["control", "GENEA", "GENEB"])[np.arange(300) % 3], "n_umi": depth})
    obs["n_genes"] = (counts > 0).sum(axis=1)
    obs.index = [f"c{i}" for i in range(300)]
    found = inspect_file(h5ad_file(np.log1p(counts / depth[:, None] * 1e4).astype(np.float32), obs=obs))
    (matrix,) = found.matrices
    assert matrix.found == "log-normalised"
    assert [(one.column, one.use) for one in matrix.totals_tried] == [("n_umi", "exact")]
    assert (matrix.totals, matrix.proved) == ("n_umi", matrix.totals_tried[0].proved)
    assert matrix.proved > 0.9
    with opened(found) as source:
        positions, read = next(iter(source.counts(300)))
        np.testing.assert_array_equal(read.toarray(), counts[positions])


def test_cells_that_cannot_be_proved_are_said_and_the_recipe_lets_them_go(screen, counts):
    stored = np.log1p(normalised(counts))
    stored[:6] = 0
    stored[:6, :3] = np.log1p(4.0)  # three equal values: no unit
    found = inspect_file(screen(stored.astype(np.float32)))
    assert found.matrices[0].proved == pytest.approx(114 / 120)
    assert "5.0% of the cells cannot be proved" in only(found.problems, "cannot be proved")
    assert "recovered: 0.87   # 95.0% of the cells" in found.recipe
    assert found.tried


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: (c > 0).astype(float), "no value is above 1"),
        (lambda c: np.rint(normalised(c, 1e6)), "rounded after normalisation"),
        (lambda c: 3 * c, "most cells hold no 1"),
    ],
)
def test_integers_that_are_hardly_counts_are_doubted(screen, counts, change, said):
    found = inspect_file(screen(layers={"a": change(counts), "b": counts}))
    assert found.read == "layers/b"
    assert said in found.matrices[0].doubts[0]
    assert not found.matrices[1].doubts
    alone = inspect_file(screen(change(counts)))
    assert alone.matrices[0].found == "counts"
    only(alone.problems, said)


def test_the_matrix_with_counts_is_read_wherever_it_is(screen, counts):
    raw = anndata.AnnData(sp.csc_matrix(counts), var=pd.DataFrame(index=GENES))
    scaled = normalised(counts[:, :20] + 1)
    found = inspect_file(screen(scaled - scaled.mean(axis=0), layers={"lognorm": np.log1p(scaled)}, raw=raw))
    assert [(m.name, m.encoding, m.found) for m in found.matrices] == [
        ("X", "dense", None),
        ("raw", "CSC", "counts"),
        ("layers/lognorm", "dense", "log-normalised"),
    ]
    assert found.read == "raw"
    assert "stored by column (CSC)" in only(found.problems, "CSC")
    with opened(found) as source:
        np.testing.assert_array_equal(next(iter(source.counts(200)))[1].toarray(), counts)


@pytest.mark.parametrize("scale", ["counts", "log-normalised"])
def test_a_large_matrix_by_column_is_turned_only_where_asked(screen, counts, scale, monkeypatch):
    monkeypatch.setattr(inspect_values, "_TURNED_VALUES", 10)
    stored = counts if scale == "counts" else np.log1p(normalised(counts))
    path = screen(sp.csc_matrix(stored))
    found = inspect_file(path)
    assert found.matrices[0].depth is None
    if scale == "counts":
        assert (found.matrices[0].found, found.tried) == ("counts", True)
    else:
        assert (found.matrices[0].found, found.matrices[0].told) == (None, False)
        assert "only --all can tell" in found.matrices[0].sentence
        assert "values: auto   # not told yet" in found.recipe
        assert "see --all" in found.targets.reason
    assert inspect_file(path, every_value=True).matrices[0].found == scale


def test_all_finds_what_the_sample_does_not_hold(h5ad_file, monkeypatch):
    monkeypatch.setattr(inspect_values, "SAMPLE_CELLS", 16)
    monkeypatch.setattr(inspect_values, "VALUES_AT_A_TIME", 64)
    counts = np.random.default_rng(0).poisson(2.0, (24, 6)).astype(float)
    counts[2, 2] = 0.5  # between two cells of the sample
    path = h5ad_file(sp.csr_matrix(counts))
    assert inspect_file(path).matrices[0].found == "counts"
    found = inspect_file(path, every_value=True)
    assert found.matrices[0].found is None
    assert "raw counts, in the sample; row 2, column 2 holds 0.5: not an integer" in found.matrices[0].sentence
    assert found.recipe is None


def test_all_says_how_far_it_is(screen, counts, monkeypatch):
    monkeypatch.setattr(inspect_values, "VALUES_AT_A_TIME", 2000)
    told = []
    found = inspect_file(
        screen(sp.csr_matrix(counts)),
        every_value=True,
        progress=lambda what: lambda done, total: told.append((what, done, total)),
    )
    assert [name for name, _, _ in told[:-1]] == ["X"] * (len(told) - 1)
    assert [done for _, done, _ in told[:-1]] == sorted({done for _, done, _ in told[:-1]})
    assert told[-2:] == [("X", 120, 120), ("knock-down", 120, 120)]
    assert found.matrices[0].evidence["n_values"] == np.count_nonzero(counts)


def test_a_giant_dense_matrix_is_named(screen, counts, monkeypatch):
    monkeypatch.setattr(inspect_problems, "_GIANT", 100)
    assert "stored dense" in only(inspect_file(screen(counts)).problems, "dense")
    assert "dense" not in str(inspect_file(screen(sp.csr_matrix(counts))).problems)
