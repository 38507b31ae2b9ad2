import dataclasses
import json

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from inspections import GENES, only, opened, prepared, text_of
from source_counts import combinations, counts_of

from vcc_fm.inspection import values
from vcc_fm.inspection.inspect import inspect_file


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
        (lambda c: np.where(c == c.max(), np.nan, c), None, "missing or infinite: "),
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
            np.testing.assert_array_equal(next(iter(counts_of(source, 200)))[1].toarray(), counts)
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
        positions, read = next(iter(counts_of(source, 300)))
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
    assert "stored by column (CSC)" in only(found.notes, "CSC")
    with opened(found) as source:
        np.testing.assert_array_equal(next(iter(counts_of(source, 200)))[1].toarray(), counts)


@pytest.mark.parametrize("scale", ["counts", "log-normalised"])
def test_a_large_matrix_by_column_is_turned_only_where_asked(screen, counts, scale, monkeypatch):
    monkeypatch.setattr(values, "_TURNED_VALUES", 10)
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
    monkeypatch.setattr(values, "SAMPLE_CELLS", 16)
    monkeypatch.setattr(values, "VALUES_AT_A_TIME", 64)
    counts = np.random.default_rng(0).poisson(2.0, (24, 6)).astype(float)
    counts[2, 2] = 0.5  # between two cells of the sample
    path = h5ad_file(sp.csr_matrix(counts))
    assert inspect_file(path).matrices[0].found == "counts"
    found = inspect_file(path, every_value=True)
    assert found.matrices[0].found is None
    assert "integers, except in 1 value of 1 cell (first: cell cell2, gene GENEC, 0.5)" in found.matrices[0].sentence
    assert found.matrices[0].looked_at == 24
    assert found.recipe is None


def test_all_says_how_far_it_is(screen, counts, monkeypatch):
    monkeypatch.setattr(values, "VALUES_AT_A_TIME", 2000)
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


# ------------------------------------------------------------------------------------------------------- nearly counts
@pytest.mark.parametrize(
    ("dtype", "form"),
    combinations(
        ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"],
        [sp.csr_matrix, sp.csc_matrix, np.asarray],
        of=3,
    ),
)
def test_counts_of_any_integer_type(screen, counts, dtype, form):
    counts = np.minimum(counts, 100)
    found = inspect_file(screen(np.log1p(normalised(counts)), layers={"counts": form(counts.astype(dtype))}))
    assert found.read == "layers/counts"
    assert (found.matrices[1].stored, found.matrices[1].found) == (dtype, "counts")
    with opened(found) as source:
        np.testing.assert_array_equal(next(iter(counts_of(source, 200)))[1].toarray(), counts)


@pytest.mark.parametrize("every_value", [False, True])
@pytest.mark.parametrize(("value", "said"), [(0.5, "0.5"), (-3.0, "-3"), (np.nan, "nan")])
def test_integers_but_for_a_few_values(screen, counts, obs, value, said, every_value):
    # Depths that fit, and a factor of its own for each cell, would make scaled counts of them.
    obs["n_counts"] = counts.sum(axis=1).astype(int)
    counts[[7, 30], 3] = value
    found = inspect_file(screen(counts, obs=obs), every_value=every_value)
    assert found.matrices[0].found is None
    expected = f"integers, except in 2 values of 2 cells (first: cell cell7, gene {GENES[3]}, {said})"
    assert expected in found.matrices[0].sentence
    assert expected in only(found.problems, "integers")
    assert (found.recipe, found.read) == (None, None)


@pytest.mark.parametrize("every_value", [False, True])
@pytest.mark.parametrize("raw", [20, 60, 118])
def test_raw_cells_among_logged_ones(screen, counts, raw, every_value):
    mixed = np.vstack([counts[:raw], np.log1p(normalised(counts[raw:]))])
    found = inspect_file(screen(sp.csr_matrix(mixed)), every_value=every_value)
    assert f"a mix: {raw} of 120 cells hold integers, {120 - raw} hold" in only(found.problems, "mix")
    assert f"first: cell cell{raw}, gene" in found.matrices[0].sentence
    assert found.recipe is None


def test_all_finds_raw_cells_that_the_sample_does_not_hold(screen, counts, monkeypatch):
    mixed = counts.copy()
    mixed[100] = np.log1p(normalised(counts[100:101]))
    monkeypatch.setattr(values, "SAMPLE_CELLS", 16)
    path = screen(sp.csr_matrix(mixed))
    assert inspect_file(path).matrices[0].found == "counts"
    assert "a mix: 119 of 120 cells hold integers, 1 hold" in inspect_file(path, every_value=True).matrices[0].sentence


def test_what_is_lost_is_said_in_cells(screen, counts):
    stored = np.log1p(normalised(counts))
    stored[:6] = 0
    stored[:6, :3] = np.log1p(4.0)
    found = inspect_file(screen(stored.astype(np.float32)))
    assert "about 6 of 120 cells would be lost" in only(found.problems, "cannot be proved")
    assert "about 6 cells would be lost" in found.recipe


def test_all_tells_of_all_cells_what_a_column_proves(screen, counts, obs, monkeypatch):
    obs["n_counts"] = counts.sum(axis=1).astype(int)
    obs.loc["cell5", "n_counts"] += 1  # between two cells of the sample
    path = screen(sp.csr_matrix(np.log1p(normalised(counts))), obs=obs)
    monkeypatch.setattr(values, "SAMPLE_CELLS", 16)
    assert inspect_file(path).matrices[0].totals_tried[0].proved == 1.0
    (matrix,) = inspect_file(path, every_value=True).matrices
    assert [one.proved for one in matrix.totals_tried] == [matrix.proved] == [pytest.approx(119 / 120)]


# ------------------------------------------------------------------------------------------------ what to read of many
def test_spliced_counts_are_less_than_what_they_are_a_part_of(screen, counts):
    spliced = np.floor(0.7 * counts)
    layers = {"spliced": spliced, "unspliced": counts - spliced}
    found = inspect_file(screen(np.log1p(normalised(counts)), layers=layers))
    assert [one.found for one in found.matrices] == ["log-normalised", "counts", "counts"]
    assert (found.read, found.problems) == ("X", [])
    # Of the same depth, counts need no proof.
    assert inspect_file(screen(np.log1p(normalised(counts)), layers={"c": counts})).read == "layers/c"
    found = inspect_file(screen(layers=layers))
    assert found.read == "layers/spliced"


@pytest.mark.parametrize("form", [sp.csr_matrix, np.asarray])
def test_cells_without_a_count_are_counted(screen, counts, form, monkeypatch):
    counts[[3, 50]] = 0
    found = inspect_file(screen(form(counts)))
    assert "2 of 120 cells without a count" in only(found.notes, "minimum_depth")
    assert "2 cells without a count" in text_of(found)
    monkeypatch.setattr(values, "SAMPLE_CELLS", 16)
    assert inspect_file(screen(sp.csr_matrix(counts))).matrices[0].empty_cells == 2  # not in the sample


# ---------------------------------------------------------------------------------------------- depths before a filter
def test_a_depth_from_before_the_filter_is_found_and_a_number_of_genes_is_none(h5ad_file, tmp_path):
    rng = np.random.default_rng(3)
    share = rng.gamma(0.3, 1.0, 4000)
    counts = rng.poisson(rng.lognormal(8.5, 0.4, 300)[:, None] * share / share.sum())
    obs = pd.DataFrame(
        {
            "target": np.array(["NT", "GENEA0", "NT"])[np.arange(300) % 3],
            "total_counts": counts.sum(1).astype(np.float32),
            "n_genes_by_counts": (counts > 0).sum(1),
            "nFeature_RNA": (counts > 0).sum(1),
            "row": rng.permutation(300) + 100_000,
        },
        index=[f"cell{i}" for i in range(300)],
    )
    counts = counts[:, (counts > 0).sum(0) >= 3]
    some = np.argsort(-counts.mean(0))[np.r_[0:2, 300 : counts.shape[1] : 90]]
    logs = np.log1p(normalised(counts, np.median(counts.sum(1))))[:, some].astype(np.float32)
    names = pd.DataFrame(index=["GENEA0", *(f"OTHER{i}" for i in range(1, len(some)))])
    found = inspect_file(h5ad_file(sp.csr_matrix(logs), obs=obs, var=names))
    (matrix,) = found.matrices
    assert [one.column for one in matrix.totals_tried] == ["total_counts"]
    assert (matrix.totals, matrix.evidence["target"]) == ("total_counts", np.median(counts.sum(1)))
    assert matrix.proved > 0.99
    assert found.problems == []
    with opened(found) as source:
        positions, read = next(iter(counts_of(source, 300)))
        np.testing.assert_array_equal(read.toarray(), counts[:, some][positions])
    assert len(prepared(found, tmp_path)) == round(matrix.proved * 300)


# ---------------------------------------------------------------------------------------------- hardly a cell proved
def test_lines_that_would_lose_most_cells_are_not_suggested(h5ad_file):
    # Deep cells of a small panel: 60 values in each, hardly one of them precise enough in a log of float32.
    rng = np.random.default_rng(2)
    share = rng.gamma(0.8, 1.0, 60)
    counts = rng.poisson(rng.lognormal(np.log(60_000), 0.4, 300)[:, None] * share / share.sum())
    target = np.array(["NT", "GENEA0"])[np.arange(300) % 2]
    obs = pd.DataFrame({"target": target}, index=[f"c{i}" for i in range(300)])
    path = h5ad_file(np.log1p(normalised(counts, np.median(counts.sum(1)))).astype(np.float32), obs=obs)
    found = inspect_file(path)
    assert found.matrices[0].proved < 0.5
    assert "fewer than 20 values that are precise to 0.001 of a count" in found.matrices[0].sentence
    assert "no lines are suggested that lose most cells" in only(found.problems, "cannot be proved")
    assert found.recipe is None
    assert "UMI a cell" not in text_of(found) or "of the cells with proved counts" in text_of(found)


def test_the_depth_of_some_cells_is_said_to_be_theirs(screen, counts):
    stored = np.log1p(normalised(counts))
    stored[:40] = 0
    stored[:40, :3] = np.log1p(4.0)
    printed = text_of(inspect_file(screen(stored.astype(np.float32))))
    assert "UMI a cell (5 %, median, 95 %), of the cells with proved counts (66.7%)" in printed


def test_one_is_no_plural(screen, counts, obs):
    one = obs.copy()
    one["target_gene"] = np.where(np.arange(120) % 2, "GENEA0", "non-targeting")
    printed = text_of(inspect_file(screen(counts, obs=one.assign(cell_line="K562"))))
    assert "1 perturbation " in printed
    assert "median of 1 target)" in printed
    one.loc["cell1", "target_gene"] = GENES[1]
    printed = text_of(inspect_file(screen(counts[:, :1].repeat(60, axis=1), obs=one)))
    assert not [
        word for word in (" 1 cells", " 1 perturbations", " 1 values ", " 1 genes", " 1 labels") if word in printed
    ]
