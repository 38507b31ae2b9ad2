import hashlib
import tempfile
from pathlib import Path
from types import SimpleNamespace

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from source_counts import combinations, counts_of

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.data import SourceConfig
from vcc_fm.sources import matrix as matrix_module
from vcc_fm.sources.anndata_source import AnnDataSource
from vcc_fm.sources.proof import FEW, REASONS

STORED = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}


def read_all(config, chunk_cells=5):
    with AnnDataSource(config) as source:
        chunks = list(counts_of(source, chunk_cells))
        assert all(len(positions) <= chunk_cells for positions, _ in chunks)
        assert all(counts.has_sorted_indices and (counts.data > 0).all() for _, counts in chunks)
        assert {counts.dtype for _, counts in chunks} <= {np.dtype(np.int32)}
        positions = np.concatenate([positions for positions, _ in chunks])
        np.testing.assert_array_equal(positions, np.arange(len(source)))
        return source, sp.vstack([counts for _, counts in chunks]).toarray()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    counts=hnp.arrays(
        np.int64,
        st.tuples(st.integers(4, 24), st.integers(2, 6)),
        elements=st.one_of(st.just(0), st.integers(0, 30_000)),
    ),
    layout=st.sampled_from(sorted(STORED)),
    place=st.sampled_from(["X", "raw", "layers/umi"]),
    scale=st.sampled_from(["counts", "log1p-counts"]),
    dtype=st.sampled_from([np.float32, np.float64]),
    auto=st.booleans(),
    chunk_cells=st.integers(1, 30),
)
def test_counts_come_back_from_every_storage(
    h5ad_file, source_config, counts, layout, place, scale, dtype, auto, chunk_cells
):
    # Of one value alone nothing tells the base: ln(93) is the log10 of 92.99997 in single precision.
    assume(scale == "counts" or len(np.unique(counts)) > 3)
    stored = STORED[layout]((counts if scale == "counts" else np.log1p(counts)).astype(dtype))
    if place == "X":
        path = h5ad_file(stored)
    elif place == "raw":
        genes = pd.DataFrame(index=[f"R{i}" for i in range(counts.shape[1])])
        path = h5ad_file(np.full((len(counts), 1), 0.5), raw=anndata.AnnData(stored, var=genes))
    else:
        path = h5ad_file(layers={"umi": stored})
    source, found = read_all(source_config(path, matrix=place, values="auto" if auto else scale), chunk_cells)
    np.testing.assert_array_equal(found, counts)
    assert source.genes[0] == ("R0" if place == "raw" else "GENEA")
    assert source.evidence["checked"] == "all"
    assert source.evidence["largest_count"] == counts.max()
    assert source.evidence["n_values"] == np.count_nonzero(counts)
    if counts.any():
        assert source.evidence["found"] == scale


def test_cells_are_labelled_and_dropped_cells_counted(h5ad_file, source_config, screen_obs):
    obs = screen_obs(24)
    obs["gem"] = obs["gem"].astype(float)
    obs["target"] = obs["target"].replace({"A+B": " B + A"})
    obs.loc["cell1", "target"] = np.nan
    obs.loc["cell5", "target"] = ""
    obs.loc["cell9", "target"] = "A+non-targeting"
    obs.loc["cell13", "target"] = "A+A"
    obs["good"] = np.arange(24) < 20
    counts = np.arange(24 * 6).reshape(24, 6)
    path = h5ad_file(sp.csc_matrix(counts), obs=obs)
    config = source_config(path, context=None, context_column="line", batch_column="gem", keep={"good": True})
    source, found = read_all(config)
    rows = [i for i in range(20) if i not in (1, 5)]
    assert source.labels.rows.tolist() == rows
    assert source.labels.rows.dtype == np.int32
    np.testing.assert_array_equal(found, counts[rows])
    assert source.dropped == {"keep good": 4, "no perturbation label": 2}
    assert source.repairs == {
        "labels stripped of spaces": 5,
        "combination parts stripped of spaces": 5,
        "combination parts sorted": 5,
        "combinations with 'non-targeting' read without it": 1,
        "repeated combination parts read once": 1,
    }
    with AnnDataSource(config) as opened:
        cells = opened.cells
    assert cells.columns.tolist() == ["barcode", "context", "batch", "perturbation"]
    assert cells.iloc[1].tolist() == ["cell2", "K562", "1", "B"]
    assert cells.iloc[2].tolist() == ["cell3", "HepG2", "1", "A+B"]
    assert cells.set_index("barcode")["perturbation"][["cell9", "cell13"]].tolist() == ["A", "A"]
    assert set(cells["batch"]) == {"1", "2"}


def test_batch_is_the_source_where_no_column_holds_it(h5ad_file, source_config):
    with AnnDataSource(source_config(h5ad_file())) as source:
        assert set(source.cells["batch"]) == {"s"}
        assert set(source.cells["context"]) == {"K562"}


def test_duplicate_barcodes_are_numbered(h5ad_file, source_config, screen_obs):
    obs = screen_obs(6)
    obs.index = ["a", "a", "a-1", "b", "a", "c"]
    with pytest.warns(UserWarning, match="not unique"):
        path = h5ad_file(np.ones((6, 2)), obs=obs)
    with AnnDataSource(source_config(path)) as source:
        assert source.cells["barcode"].is_unique
        assert source.cells["barcode"][[0, 3, 5]].tolist() == ["a", "b", "c"]
        assert source.repairs["duplicate barcodes numbered"] >= 2


def test_duplicate_genes_are_summed_where_asked(h5ad_file, source_config):
    counts = np.random.default_rng(0).integers(0, 3, (24, 4))
    var = pd.DataFrame({"symbol": ["A", "B", "A", "C"]}, index=list("wxyz"))
    path = h5ad_file(sp.csr_matrix(counts), var=var)
    with pytest.raises(UserError, match="set duplicate_genes to sum"):
        AnnDataSource(source_config(path, symbols="symbol"))
    source, found = read_all(source_config(path, symbols="symbol", duplicate_genes="sum"))
    assert source.genes.tolist() == ["A", "B", "C"]
    np.testing.assert_array_equal(found, np.stack([counts[:, 0] + counts[:, 2], counts[:, 1], counts[:, 3]], axis=1))


def test_a_matrix_by_column_is_turned_in_small_blocks_and_leaves_no_files(
    h5ad_file, source_config, monkeypatch, tmp_path
):
    monkeypatch.setattr(matrix_module, "_ENTRIES", 7)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    counts = np.random.default_rng(0).poisson(0.7, (24, 9))
    with AnnDataSource(source_config(h5ad_file(sp.csc_matrix(counts)))) as source:
        assert not list((tmp_path / "scratch").iterdir())
        np.testing.assert_array_equal(sp.vstack([chunk for _, chunk in counts_of(source, 6)]).toarray(), counts)
        assert list((tmp_path / "scratch").iterdir())
    assert not list((tmp_path / "scratch").iterdir())


def test_a_matrix_by_column_needs_room(h5ad_file, source_config, monkeypatch):
    monkeypatch.setattr(matrix_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    path = h5ad_file(sp.csc_matrix(np.ones((24, 6))))
    with AnnDataSource(source_config(path)) as source, pytest.raises(UserError, match=r"stored by column.*set TMPDIR"):
        next(counts_of(source, 10))


def test_dropped_cells_may_hold_anything(h5ad_file, source_config, screen_obs):
    counts = np.ones((24, 6))
    counts[20:] = np.nan
    obs = screen_obs(24).assign(good=["yes"] * 20 + ["no"] * 4)
    _, found = read_all(source_config(h5ad_file(counts, obs=obs), keep={"good": "yes"}))
    assert found.sum() == 120


def test_stored_zeros_and_unsorted_columns_are_put_right(h5ad_file, source_config):
    counts = np.tile([4, 0, 3, 2, 1, 5], (24, 1))
    path = h5ad_file(sp.csr_matrix(np.ones((24, 6))))
    with h5py.File(path, "r+") as file:
        file["X/indices"][...] = np.tile(np.arange(6)[::-1], 24)
        file["X/data"][...] = counts[:, ::-1].ravel()
    with AnnDataSource(source_config(path)) as source:
        _, found = next(counts_of(source, 24))
    np.testing.assert_array_equal(found.indices[:5], [0, 2, 3, 4, 5])
    np.testing.assert_array_equal(found.toarray(), counts)
    assert found.nnz == 24 * 5


def test_numbers_as_batch_and_context(h5ad_file, source_config, screen_obs):
    obs = screen_obs(4).assign(gem=pd.Categorical([1.0, 2.0, 1.5, 1.0]), line=np.array([3, 4, 3, 4], np.int8))
    path = h5ad_file(np.ones((4, 2)), obs=obs)
    with AnnDataSource(source_config(path, context=None, context_column="line", batch_column="gem")) as source:
        assert source.cells["batch"].tolist() == ["1", "2", "1.5", "1"]
        assert source.cells["context"].tolist() == ["3", "4", "3", "4"]


def test_sha256_is_that_of_the_file(h5ad_file, source_config):
    path = h5ad_file()
    with AnnDataSource(source_config(path)) as source:
        assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


# -------------------------------------------------------------------------------------------------------------- values
def spoilt(value):
    counts = np.ones((600, 6))
    counts[301, 4] = value
    return counts


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-2.0, r"cell 'cell301', gene 'GENEE' holds -2: negative; .*z-scored"),
        (np.nan, r"cell 'cell301', gene 'GENEE' holds nan: not a finite number"),
        (1.5, r"cell 'cell301', gene 'GENEE' holds 1.5: not an integer"),
        (3e9, r"cell 'cell301', gene 'GENEE' holds 3e\+09: too large"),
    ],
)
@pytest.mark.parametrize("layout", sorted(STORED))
def test_one_bad_value_outside_of_the_sample_is_found(h5ad_file, source_config, value, message, layout):
    path = h5ad_file(STORED[layout](spoilt(value)))
    with (
        AnnDataSource(source_config(path, values="counts" if layout == "csc" else "auto")) as source,
        pytest.raises(UserError, match=message),
    ):
        list(counts_of(source, 50))


def test_what_is_not_counts_is_refused_on_opening(h5ad_file, source_config):
    counts = np.random.default_rng(0).poisson(3.0, (24, 6)) + 1.0
    layers = {"umi": counts, "log1p": np.log1p(counts), "half": np.log1p(counts).astype(np.float16)}
    path = h5ad_file(counts / np.sqrt(np.arange(2, 8)), layers=layers)
    with pytest.raises(UserError, match=r"scVI(.|\n)*file also has layers/half, layers/log1p, layers/umi"):
        AnnDataSource(source_config(path))
    with pytest.raises(UserError, match=r"look like log1p of raw counts \(set values to log1p-counts\)$"):
        AnnDataSource(source_config(path, matrix="layers/log1p", values="counts"))
    with pytest.raises(UserError, match=r"look like raw counts \(set values to counts\)$"):
        AnnDataSource(source_config(path, matrix="layers/umi", values="log1p-counts"))
    for values in ("normalised", "log-normalised"):
        with pytest.raises(UserError, match=rf"values is {values}, but they look like raw counts"):
            AnnDataSource(source_config(path, matrix="layers/umi", values=values))
    with pytest.raises(UserError, match="a log in float16 cannot tell this count from its neighbours"):
        AnnDataSource(source_config(path, matrix="layers/half"))
    with pytest.raises(
        UserError, match="has no matrix 'layers/counts'; set matrix to one of X, layers/half, layers/log1p"
    ):
        AnnDataSource(source_config(path, matrix="layers/counts"))
    centred = counts - counts.mean(0)
    for layout in STORED.values():
        with pytest.raises(UserError, match=r"negative; the values look like z-scored(.|\n)*no other matrix"):
            AnnDataSource(source_config(h5ad_file(layout(centred))))
    with pytest.raises(UserError, match="holds values of type bool"):
        AnnDataSource(source_config(h5ad_file(counts > 2)))


# ----------------------------------------------------------------------------------------------------- scaled per cell
def scaled_screen(cells=320, genes=80):
    """Counts, and their log1p after scaling to 1e4; the last three cells have too few values to be proved alone."""
    counts = np.random.default_rng(0).poisson(np.random.default_rng(1).gamma(0.8, 3.0, genes), (cells, genes))
    counts[-3:] = 0
    counts[-3:, 4:9] = [[2, 2, 4, 0, 6], [1, 0, 0, 0, 0], [3, 1, 1, 0, 0]]
    return counts, np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)


@pytest.mark.parametrize(
    ("layout", "dtype", "place"),
    combinations(sorted(STORED), [np.float32, np.float64], ["X", "raw", "layers/norm"], of=3),
)
def test_scaled_cells_come_back_and_unproved_ones_are_counted(
    h5ad_file, source_config, screen_obs, layout, dtype, place
):
    counts, logged = scaled_screen()
    stored = STORED[layout](logged.astype(dtype))
    if place == "X":
        path = h5ad_file(stored)
    elif place == "raw":
        genes = pd.DataFrame(index=[f"R{i}" for i in range(counts.shape[1])])
        path = h5ad_file(np.full((len(counts), 1), 0.5), raw=anndata.AnnData(stored, var=genes))
    else:
        path = h5ad_file(layers={"norm": stored})
    with AnnDataSource(source_config(path, matrix=place)) as source:
        assert source.evidence["checked"] == "sample"
        assert source.dropped == {}
        for _ in range(2):  # reading again counts nothing twice
            chunks = list(counts_of(source, 7))
        np.testing.assert_array_equal(np.concatenate([positions for positions, _ in chunks]), np.arange(317))
        found = sp.vstack([chunk for _, chunk in chunks]).toarray()
    np.testing.assert_array_equal(found, counts[:-3])
    reason = REASONS[FEW]
    assert source.dropped == {reason: 3}
    evidence = source.evidence
    assert evidence["cells_unproved"] == {reason: 3}
    told = ("found", "base", "precision", "target", "target_kind", "totals", "subset", "checked", "n_cells")
    assert [evidence[name] for name in told] == [
        *("log-normalised", "e", np.dtype(dtype).name, 1e4, "a fixed target", "none", False, "all", 320)
    ]
    assert evidence["largest_residual"] < 1e-3
    assert evidence["largest_count"] == counts.max()
    assert "scaled per cell to 10000, a fixed target, then log(1 + x) to base e; " in evidence["sentence"]


def test_depths_prove_every_cell(h5ad_file, source_config, screen_obs):
    counts, logged = scaled_screen()
    obs = screen_obs(len(counts)).assign(
        n_umi=counts.sum(1).astype(float), n_genes=(counts > 0).sum(1), mean=counts.mean(1), text="many"
    )
    path = h5ad_file(sp.csr_matrix(logged[:, ::2].astype(np.float32)), obs=obs)
    source, found = read_all(source_config(path, totals_column="n_umi", keep={"line": "K562"}))
    np.testing.assert_array_equal(found, counts[::2, ::2])
    assert source.evidence["totals"] == "exact"
    assert source.evidence["subset"]
    assert source.evidence["depth_share"] == pytest.approx(np.median(found.sum(1) / counts[::2].sum(1)))
    for column, message in [
        ("n_genes", r"'n_genes' is not the depth from which the cells were scaled: .*give the right column, or none"),
        (
            "mean",
            r"totals_column 'mean' holds [\d.]+ for cell 'cell0'; give the column with the UMI count of each cell",
        ),
        ("text", r"totals_column 'text' holds .*, no numbers"),
        ("umis", r"obs has no column 'umis' \(totals_column\); set it to one of target, line"),
    ]:
        with pytest.raises(UserError, match=message):
            AnnDataSource(source_config(path, totals_column=column))


def test_too_few_proved_cells_are_refused_with_what_would_help(h5ad_file, source_config):
    _, logged = scaled_screen()
    thin = logged * (np.arange(80) < 10)
    thin[:160] = logged[:160]
    message = (
        r"only 50.0% of 256 sampled cells can be proved \(128: fewer than 20 .*\nrecovered asks for 99.0%: set totals"
    )
    with pytest.raises(UserError, match=message):
        AnnDataSource(source_config(h5ad_file(thin)))
    with AnnDataSource(source_config(h5ad_file(thin), recovered=0.4)) as source:
        assert sum(len(positions) for positions, _ in counts_of(source, 50)) == 160
    # A few cells less than are asked for: the sample lets it pass, the whole file does not.
    with (
        AnnDataSource(source_config(h5ad_file(logged), recovered=0.995)) as source,
        pytest.raises(UserError, match=r"only 99.1% of 320 cells can be proved \(3: fewer.*\n.*or lower recovered"),
    ):
        list(counts_of(source, 50))


@pytest.mark.parametrize(("value", "message"), [(-0.5, "negative"), (np.nan, "not a finite number")])
def test_one_bad_value_among_scaled_ones_is_found(h5ad_file, source_config, value, message):
    _, logged = scaled_screen(600)
    logged[301, 4] = value
    with (
        AnnDataSource(source_config(h5ad_file(logged))) as source,
        pytest.raises(UserError, match=f"cell 'cell301', gene 'GENEE' holds {value:g}: {message}"),
    ):
        list(counts_of(source, 50))


# -------------------------------------------------------------------------------------------------------------- labels
@pytest.mark.parametrize(
    ("change", "keys", "message"),
    [
        ({}, {"perturbation_column": "targets"}, r"no column 'targets'; did you mean 'target'\? \(columns: target, "),
        ({}, {"batch_column": "lane"}, "obs has no column 'lane'"),
        ({}, {"perturbation_column": "gem"}, "holds numbers"),
        ({"target": ["1", "2"] * 12}, {}, "holds numbers"),
        ({"target": "A"}, {}, r"no control label 'non-targeting'; set control \(most frequent labels: A\)"),
        ({"target": np.nan}, {}, "has no label for any kept cell"),
        ({"target": ["A", "B", "A", "NTC"] * 6}, {}, r"no control label 'non-targeting'; set control \(likely: NTC\)"),
        ({"target": ["A", "B", "A", "C"] * 6}, {}, r"most frequent labels: A, B, C"),
        (
            {"line": [None] + ["K562"] * 23},
            {"context": None, "context_column": "line"},
            "'line' has no value in 1 of 24",
        ),
        ({}, {"keep": {"line": "HEPG2"}}, "keep.line: no cell has 'HEPG2'; .* holds 'K562', 'HepG2'"),
        ({}, {"keep": {"line": ["K562", "A172"]}}, "keep.line: no cell has 'A172'"),
        ({"good": ["True", "False"] * 12}, {"keep": {"good": True}}, "keep.good: no cell has True; .* holds 'True'"),
        ({}, {"keep": {"line": "HepG2", "target": "B"}}, "keep leaves no cell"),
    ],
)
def test_labels_that_cannot_be_used(h5ad_file, source_config, screen_obs, change, keys, message):
    path = h5ad_file(obs=screen_obs(24).assign(**change))
    with pytest.raises(UserError, match=message):
        AnnDataSource(source_config(path, **keys))


@pytest.mark.parametrize("labels", [["non-targeting"], ["non-targeting", "non-targeting+ non-targeting"]])
def test_a_source_may_hold_controls_alone(h5ad_file, source_config, screen_obs, labels):
    path = h5ad_file(obs=screen_obs(24).assign(target=labels * (24 // len(labels))))
    with AnnDataSource(source_config(path)) as source:
        assert source.labels.names["perturbation"].tolist() == ["non-targeting"]
        assert len(source) == 24


# --------------------------------------------------------------------------------------------------------------- files
def test_files_that_cannot_be_opened(h5ad_file, source_config, tmp_path):
    with pytest.raises(UserError, match=r"no such file; get it from https://x\.org"):
        AnnDataSource(source_config(tmp_path / "none.h5ad", get="https://x.org"))
    with pytest.raises(UserError, match="is a folder"):
        AnnDataSource(source_config(tmp_path))
    content = h5ad_file().read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.h5ad").write_text("cell,gene\n")
    h5py.File(tmp_path / "empty.h5ad", "w").close()
    for name in ("cut.h5ad", "text.h5ad"):
        with pytest.raises(UserError, match="is not readable as HDF5: "):
            AnnDataSource(source_config(tmp_path / name))
    with pytest.raises(UserError, match="not h5ad"):
        AnnDataSource(source_config(tmp_path / "empty.h5ad"))


def test_a_source_has_the_sha256_that_the_recipe_gives(h5ad_file, source_config):
    path = h5ad_file()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with AnnDataSource(source_config(path, sha256=digest.upper())) as source:
        assert source.sha256 == digest
    with AnnDataSource(source_config(path, sha256="0" * 64)) as source:
        with pytest.raises(UserError, match=f"its SHA-256 is {digest}, the recipe says 0+; get it again"):
            _ = source.sha256


def test_a_message_shows_a_path_as_the_recipe_has_it(h5ad_file, source_config, monkeypatch):
    path = h5ad_file()
    monkeypatch.setenv("A_TOKEN", str(path.parent))
    with pytest.raises(UserError, match=r"source 's' \(\$\{A_TOKEN\}/gone.h5ad\): no such file"):
        AnnDataSource(source_config("${A_TOKEN}/gone.h5ad"))


def test_a_group_that_lost_a_part(h5ad_file, source_config):
    path = h5ad_file(sp.csr_matrix(np.ones((24, 6))))
    with h5py.File(path, "r+") as file:
        del file["obs"].attrs["_index"]
    with pytest.raises(UserError, match="obs is not readable as AnnData: "):
        AnnDataSource(source_config(path))


@pytest.mark.parametrize("layout", ["csr", "csc"])
@pytest.mark.parametrize(
    ("part", "place", "value", "message"),
    [
        ("indices", 3, 99, "index 99 is outside"),
        ("indices", 3, -1, "index -1 is outside"),
        ("indptr", 2, 1000, "indptr does not rise"),
        ("indptr", -1, 5, "indptr does not rise"),
    ],
)
def test_damaged_index_arrays(h5ad_file, source_config, layout, part, place, value, message):
    path = h5ad_file(STORED[layout](np.ones((24, 6))))
    with h5py.File(path, "r+") as file:
        array = file["X"][part][:]
        array[place] = value
        file["X"][part][...] = array
    with pytest.raises(UserError, match=f"cut short or damaged.*{message}"):
        read_all(source_config(path))


def test_a_gene_that_comes_twice_in_a_cell(h5ad_file, source_config):
    path = h5ad_file(sp.csr_matrix(np.ones((24, 6))))
    with h5py.File(path, "r+") as file:
        file["X/indices"][1] = 0
    with pytest.raises(UserError, match="comes twice in a cell"):
        read_all(source_config(path))


def test_a_matrix_that_does_not_fit_its_tables(h5ad_file, source_config):
    path = h5ad_file(np.ones((24, 6)))
    with h5py.File(path, "r+") as file:
        del file["X"]
        file["X"] = np.ones((23, 6))
    with pytest.raises(UserError, match=r"shape \(23, 6\), obs and var have 24 and 6"):
        AnnDataSource(source_config(path))


# ----------------------------------------------------------------------------------------------------------- real data
def test_papalexi_2021(real_data, source_config):
    path = real_data / "perturbation/papalexi2021_thp1_crisprko_20729x299_counts.h5ad"
    config = source_config(
        path, perturbation_column="target_gene", context="THP-1", batch_column="bio_rep", keep={"assigned": True}
    )
    reference = anndata.read_h5ad(path)
    source, found = read_all(config, 4096)
    assert len(source) == 16_192
    assert len(source.labels.names["perturbation"]) == 26
    assert source.dropped == {"keep assigned": 4537}
    np.testing.assert_array_equal(found, reference.X[source.labels.rows].toarray())
    np.testing.assert_array_equal(source.genes, reference.var_names.to_numpy(str))


def by_hand(counts, target, base, dtype):
    """The arithmetic of scanpy's normalize_total and log1p."""
    matrix = counts.astype(dtype)
    depth = np.asarray(matrix.sum(axis=1)).ravel()
    goal = np.median(depth) if target is None else target
    matrix.data /= np.repeat(depth / dtype(goal), np.diff(matrix.indptr))
    np.log1p(matrix.data, out=matrix.data)
    if base is not None:
        matrix.data /= dtype(np.log(base))
    return matrix


def by_scanpy(counts, target, base, dtype):
    scanpy = pytest.importorskip("scanpy")
    table = anndata.AnnData(counts.astype(dtype))
    scanpy.pp.normalize_total(table, target_sum=target)
    scanpy.pp.log1p(table, base=base)
    return table.X


@pytest.mark.parametrize("recipe", [by_hand, pytest.param(by_scanpy, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("target", "base", "dtype"),
    [
        (1e4, None, np.float32),
        (None, None, np.float32),
        (1e6, 2, np.float32),
        (1e4, 10, np.float64),
        (None, None, np.float64),
    ],
)
def test_papalexi_2021_scaled_in_five_ways(real_data, tmp_path, source_config, recipe, target, base, dtype):
    table = anndata.read_h5ad(real_data / "perturbation/papalexi2021_thp1_crisprko_20729x299_counts.h5ad")
    counts = table.X
    table.X = recipe(counts, target, base, dtype)
    assert table.X.dtype == dtype
    table.write_h5ad(tmp_path / "scaled.h5ad")
    keys = {"perturbation_column": "target_gene", "context": "THP-1"}
    with AnnDataSource(source_config(tmp_path / "scaled.h5ad", **keys)) as source:
        chunks = list(counts_of(source, 4096))
    proved = np.concatenate([positions for positions, _ in chunks])
    np.testing.assert_array_equal(sp.vstack([chunk for _, chunk in chunks]).toarray(), counts[proved].toarray())
    assert len(proved) == 20_729 - 6
    assert set(range(20_729)) - set(proved.tolist()) == set(np.flatnonzero(np.diff(counts.indptr) < 20).tolist())
    assert source.evidence["target_kind"] == ("a fixed target" if target else "the median of the depths")
    assert source.evidence["target"] == (target or 186.0)
    assert source.evidence["largest_residual"] < 1e-3
    assert source.evidence["expected_common_factors"] < 1e-4
    source, found = read_all(source_config(tmp_path / "scaled.h5ad", totals_column="panel_umi", **keys), 4096)
    np.testing.assert_array_equal(found, counts.toarray())


def test_perturbench_is_read_where_depths_settle_it(real_data: Path, source_config):
    path = real_data / "perturbation/perturbench_devel_5961x500_lognorm.h5ad"
    keys = {"perturbation_column": "condition", "control": "control", "context": None, "context_column": "cell_type"}
    with pytest.raises(
        UserError, match=r"log-normalised, and the counts of only 54.7% of 256(.|\n)*set totals_column"
    ):
        AnnDataSource(source_config(path, **keys))
    for values in ("counts", "log1p-counts"):
        with pytest.raises(UserError, match=r"log-normalised counts \(set values to log-normalised\)"):
            AnnDataSource(source_config(path, values=values, **keys))
    with AnnDataSource(source_config(path, totals_column="ncounts", **keys)) as source:
        chunks = list(counts_of(source, 1024))
    proved = np.concatenate([positions for positions, _ in chunks])
    counts = sp.vstack([chunk for _, chunk in chunks])
    assert len(proved) == 5960
    # The column was counted before genes were left out, so that it bounds the depth that the cells were scaled from.
    assert source.evidence["totals"] == "bound"
    assert (source.evidence["target"], source.evidence["subset"]) == (1e4, True)
    assert source.evidence["depth_share"] == pytest.approx(0.018, abs=0.001)
    assert source.evidence["largest_residual"] < 1e-11
    table = anndata.read_h5ad(path)
    # The file again from the counts: with the depth, an integer, that the first value of each cell tells.
    stored = table.X.tocsr()[proved]
    first = stored.indptr[:-1]
    stored.sort_indices()
    depth = np.rint(counts.data[first] * 1e4 / np.expm1(stored.data[first]))
    assert (depth <= table.obs["ncounts"].to_numpy()[proved]).all()
    again = np.log1p(counts.data * 1e4 / np.repeat(depth, np.diff(counts.indptr)))
    np.testing.assert_allclose(again, stored.data, rtol=2e-15)


@pytest.mark.parametrize("values", ["auto", "counts", "log-normalised", "normalised"])
@pytest.mark.parametrize("raw", [40, 60, 100])
def test_a_mix_of_counts_and_logs_is_read_by_no_scale(tmp_path, values, raw):
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.6, 6.0, 60), (120, 60)).astype(float)
    logs = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    obs = pd.DataFrame({"t": np.array(["NT", "A1"])[np.arange(120) % 2]}, index=[f"c{i}" for i in range(120)])
    mixed = sp.csr_matrix(np.vstack([counts[:raw], logs[raw:]]).astype(np.float32))
    path = tmp_path / "mix.h5ad"
    anndata.AnnData(mixed, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(60)])).write_h5ad(path)
    config = SourceConfig(name="s", path=str(path), values=values, perturbation_column="t", control="NT", context="K")
    with pytest.raises(UserError, match=r"a mix: \d+ of \d+ cells hold integers") as told:
        AnnDataSource(config)
    assert "set values to" not in str(told.value)
    assert "lower recovered" not in str(told.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c, None),
        (lambda c: 3 * c, "most cells hold no 1"),
        (lambda c: np.minimum(c, 1), "no value is above 1"),
        (lambda c: np.rint(c * (1e6 / c.sum(axis=1, keepdims=True))), "rounded after normalisation"),
    ],
)
def test_integers_that_are_hardly_counts_are_doubted_in_the_store_too(h5ad_file, source_config, change, said):
    counts = np.random.default_rng(0).poisson(1.0, (48, 60))
    for stored in (change(counts).astype(np.float32), sp.csr_matrix(change(counts).astype(np.float32))):
        with AnnDataSource(source_config(h5ad_file(stored))) as source:
            source.conclude([source.read(0, 48).evidence.state()])
            doubts = source.evidence.get("doubts", [])
            assert [said in doubt for doubt in doubts] == ([] if said is None else [True])


def test_perturbations_that_are_called_like_controls_are_told(h5ad_file, source_config, screen_obs):
    obs = screen_obs(24)
    labels = obs["target"].astype(str).to_numpy()
    labels[:4] = ["NTC", "Non-Targeting", "CTRL", "NTC"]
    obs["target"] = labels
    var = pd.DataFrame(index=["CTRL", *"ABCDE"])  # a gene is no control
    with AnnDataSource(source_config(h5ad_file(obs=obs, var=var))) as source:
        assert source.evidence["doubts"] == [
            "perturbations called NTC, Non-Targeting: if they are controls, set also_control"
        ]
    with AnnDataSource(source_config(h5ad_file(obs=obs, var=var), also_control=["NTC", "Non-Targeting"])) as source:
        assert "doubts" not in source.evidence
