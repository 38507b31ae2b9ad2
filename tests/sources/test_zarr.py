import json
import shutil
import zipfile
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given
from hypothesis import strategies as st
from source_counts import combinations, counts_of

from vcc_fm.ground.errors import UserError
from vcc_fm.run.layout import file_identity
from vcc_fm.sources.anndata_file import sha256_of
from vcc_fm.sources.anndata_source import AnnDataSource
from vcc_fm.sources.zarr_array import ChunkReader

STORED = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:zarr", "ignore::UserWarning:anndata")


def everything(config, chunk_cells=5):
    """All that a source says, so that two can be compared."""
    with AnnDataSource(config) as source:
        counts = sp.vstack([counts for _, counts in counts_of(source, chunk_cells)]).toarray()
        evidence = json.dumps(source.evidence, default=str, sort_keys=True)
        return source.cells.to_csv(), source.genes.tolist(), counts.tolist(), evidence, source.dropped, source.repairs


def as_zarr(h5ad: Path, zarr_format: int = 3, chunks: tuple[int, ...] | None = None) -> Path:
    """The same AnnData as a zarr store in a folder, the matrices in chunks of that size."""
    path = h5ad.with_suffix(f".v{zarr_format}.zarr")
    shutil.rmtree(path, ignore_errors=True)
    with anndata.settings.override(zarr_write_format=zarr_format):
        anndata.read_h5ad(h5ad).write_zarr(path)
    if chunks is not None:
        for name in ("X", "X/data", "X/indices", "X/indptr"):
            if name in (group := zarr.open_group(path)) and isinstance(group[name], zarr.Array):
                rechunk(path, name, chunks[: group[name].ndim])
    return path


def rechunk(path: Path, name: str, chunks: tuple[int, ...], shards: tuple[int, ...] | None = None) -> None:
    group = zarr.open_group(path, mode="r+")
    values, attributes = group[name][:], dict(group[name].attrs)
    group.create_array(name, data=values, chunks=chunks, shards=shards, overwrite=True).attrs.update(attributes)
    zarr.consolidate_metadata(path)


def zipped(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder))


def chunk_files(path: Path, array: str) -> list[Path]:
    folder = path / array
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name[0] not in ".z")


# ---------------------------------------------------------------------------------------------------------- round trip
@pytest.mark.parametrize(
    ("zarr_format", "place", "layout"), combinations([2, 3], ["X", "raw", "layers/umi"], sorted(STORED), of=3)
)
def test_a_zarr_store_reads_as_the_h5ad_file_does(h5ad_file, source_config, screen_obs, layout, place, zarr_format):
    counts = np.random.default_rng(0).poisson(0.9, (24, 9)).astype(np.float32)
    stored = STORED[layout](counts)
    obs = screen_obs(24).assign(good=np.arange(24) < 20, few=pd.array([1, None] * 12, dtype="Int64"))
    obs.loc["cell3", "target"] = np.nan
    parts = {"X": stored} if place == "X" else {"layers": {"umi": stored}}
    if place == "raw":
        parts = {"X": np.full((24, 1), 0.5), "raw": anndata.AnnData(stored, var=pd.DataFrame(index=[*"ABCDEFGHI"]))}
    h5ad = h5ad_file(obs=obs, **parts)
    keys = {"matrix": place, "context": None, "context_column": "line", "batch_column": "gem", "keep": {"good": True}}
    expected = everything(source_config(h5ad, **keys))
    np.testing.assert_array_equal(expected[2], counts[[row for row in range(20) if row != 3]])
    store = as_zarr(h5ad, zarr_format)
    assert everything(source_config(store, **keys)) == expected
    assert everything(source_config(zipped(store), **keys)) == expected


@pytest.mark.parametrize(
    ("layout", "dtype"),
    combinations(sorted(STORED), ["float16", "float32", "float64", "int8", "int64", "uint32", ">f4"], of=3),
)
def test_every_type_of_value_and_small_chunks(h5ad_file, source_config, dtype, layout):
    counts = np.random.default_rng(0).integers(1, 9, (24, 9)) * (np.arange(9) < 7)
    h5ad = h5ad_file(np.asarray(counts.astype(np.float32)))
    store = as_zarr(h5ad)
    group = zarr.open_group(store, mode="r+")
    del group["X"]
    # scipy makes no sparse matrix of float16, which files hold all the same.
    matrix = STORED[layout](counts + 0.0)
    if layout == "dense":
        group.create_array("X", data=counts.astype(dtype), chunks=(5, 9))
    else:
        sparse = group.create_group("X")
        sparse.attrs.update({"encoding-type": f"{layout}_matrix", "encoding-version": "0.1.0", "shape": [24, 9]})
        for name, values in [
            ("data", matrix.data.astype(dtype)),
            ("indices", matrix.indices),
            ("indptr", matrix.indptr),
        ]:
            sparse.create_array(name, data=values, chunks=(11,))
    zarr.consolidate_metadata(store)
    found = everything(source_config(store))
    np.testing.assert_array_equal(found[2], counts)
    assert np.dtype(json.loads(found[3])["stored"]) == np.dtype(dtype).newbyteorder("=")


def test_scaled_cells_come_back_from_zarr(h5ad_file, source_config):
    counts = np.random.default_rng(0).poisson(np.random.default_rng(1).gamma(0.8, 3.0, 80), (320, 80))
    logged = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4).astype(np.float32)
    h5ad = h5ad_file(sp.csc_matrix(logged))
    found = everything(source_config(as_zarr(h5ad, 2, (1000,))), 50)
    assert found == everything(source_config(h5ad), 50)
    np.testing.assert_array_equal(found[2], counts)


def test_shards_are_files_and_what_their_index_leaves_out_is_zero(h5ad_file, source_config):
    counts = np.random.default_rng(0).poisson(3.0, (24, 6)) + 1
    counts[8:12, 2:4] = 0  # one chunk of the second shard
    h5ad = h5ad_file(counts)
    store = as_zarr(h5ad)
    rechunk(store, "X", (4, 2), (8, 6))
    shards = chunk_files(store, "X")
    assert len(shards) == 3
    assert everything(source_config(store)) == everything(source_config(h5ad))
    shards[1].unlink()
    with pytest.raises(UserError, match="1 of 3 shards are not in the store"):
        AnnDataSource(source_config(store))


# -------------------------------------------------------------------------------------------------------------- damage
@pytest.mark.parametrize(
    ("array", "zarr_format", "packed"),
    combinations(["X/data", "X/indices", "X/indptr"], [2, 3], [False, True], of=2),
)
def test_a_chunk_that_is_not_there_is_not_read_as_zeros(h5ad_file, source_config, array, zarr_format, packed):
    h5ad = h5ad_file(sp.csr_matrix(np.random.default_rng(0).integers(1, 5, (24, 6)).astype(np.float32)))
    store = as_zarr(h5ad, zarr_format, (10,))
    files = chunk_files(store, array)
    files[-1].unlink()
    path = zipped(store) if packed else store
    with pytest.raises(UserError, match=rf"{array}: 1 of {len(files)} chunks are not in the store: lost, or left out"):
        AnnDataSource(source_config(path))


def test_a_block_of_zeros_that_was_left_out_is_refused_until_it_is_written(h5ad_file, source_config):
    counts = np.ones((24, 6), np.float32)
    counts[12:18] = 0
    h5ad = h5ad_file(counts)
    with pytest.raises(UserError, match=r"X: 1 of 4 chunks(.|\n)*array.write_empty_chunks"):
        AnnDataSource(source_config(as_zarr(h5ad, 3, (6, 6))))
    with zarr.config.set({"array.write_empty_chunks": True}):
        store = as_zarr(h5ad, 3, (6, 6))
    assert everything(source_config(store)) == everything(source_config(h5ad))


def test_a_matrix_without_values_has_no_chunks(h5ad_file, source_config):
    for layout in ("csr", "csc"):
        h5ad = h5ad_file(STORED[layout](np.zeros((24, 6), np.float32)))
        assert everything(source_config(as_zarr(h5ad))) == everything(source_config(h5ad))


ASKED_BY = {
    "obs/target/codes": {},
    "obs/target/categories": {},
    "obs/_index": {},
    "var/_index": {},
    "var/name": {"symbols": "name"},
    "obs/gem": {"batch_column": "gem"},
    "obs/umi/values": {"totals_column": "umi"},
    "obs/good": {"keep": {"good": True}},
    "obs/line/codes": {"context": None, "context_column": "line"},
}


@pytest.mark.parametrize(("lost", "zarr_format"), combinations(ASKED_BY, [2, 3], of=2))
def test_labels_that_lost_a_chunk(h5ad_file, source_config, screen_obs, lost, zarr_format):
    keys = ASKED_BY[lost]
    obs = screen_obs(24).assign(good=np.arange(24) < 20, umi=pd.array([6] * 24, dtype="Int64"))
    h5ad = h5ad_file(np.ones((24, 6)), obs=obs, var=pd.DataFrame({"name": [*"ABCDEF"]}, index=[*"UVWXYZ"]))
    store = as_zarr(h5ad, zarr_format)
    (chunk,) = chunk_files(store, lost)
    chunk.unlink()
    with pytest.raises(UserError, match=rf"{lost.replace('/', '(, |/)')}: 1 of 1 chunks are not in the store"):
        AnnDataSource(source_config(store, **keys))
    if keys:  # what is not asked for is no matter
        AnnDataSource(source_config(store)).close()


def test_a_column_that_is_one_value_and_a_mask_of_nothing_need_no_chunk(h5ad_file, source_config, screen_obs):
    obs = screen_obs(24).assign(line="H1", gem=pd.array([1, 2] * 12, dtype="Int64"))
    h5ad = h5ad_file(np.ones((24, 6)), obs=obs)
    keys = {"context": None, "context_column": "line", "batch_column": "gem"}
    store = as_zarr(h5ad)
    assert not chunk_files(store, "obs/line/codes")
    assert not chunk_files(store, "obs/gem/mask")
    assert everything(source_config(store, **keys)) == everything(source_config(h5ad, **keys))


@pytest.mark.parametrize(("layout", "zarr_format"), combinations(sorted(STORED), [2, 3], of=2))
def test_no_file_can_be_lost_or_cut_without_a_word(h5ad_file, source_config, layout, zarr_format):
    counts = np.random.default_rng(0).poisson(2.0, (24, 6)) + 1.0
    store = as_zarr(h5ad_file(STORED[layout](counts)), zarr_format)
    whole, refused = everything(source_config(store)), 0
    for file in [file for part in ("obs", "var", "X") for file in (store / part).rglob("*") if file.is_file()]:
        content = file.read_bytes()
        for left in (None, len(content) - 1):
            file.unlink()
            if left is not None:
                file.write_bytes(content[:left])
            try:
                found = everything(source_config(store))
            except UserError:
                refused += 1
            else:
                assert found == whole, f"{file} cut to {left}"
            file.write_bytes(content)
    assert refused >= 10


# --------------------------------------------------------------------------------------------------------------- files
def test_folders_and_zips_that_hold_no_anndata(h5ad_file, source_config, tmp_path):
    store = as_zarr(h5ad_file())
    (tmp_path / "plain").mkdir()
    with pytest.raises(UserError, match=r"plain\): is a folder, and no zarr store: no zarr.json and no .zgroup in it"):
        AnnDataSource(source_config(tmp_path / "plain"))
    with pytest.raises(UserError, match="zarr, but not AnnData: it is a single array"):
        AnnDataSource(source_config(store / "obs/_index"))
    with pytest.raises(UserError, match="zarr, but not AnnData: it has no obs and var"):
        AnnDataSource(source_config(store / "obs"))
    with pytest.raises(UserError, match=r"has no matrix 'raw'; set matrix to one of X$"):
        AnnDataSource(source_config(store, matrix="raw"))
    (tmp_path / "around").mkdir()
    shutil.copytree(store, tmp_path / "around" / store.name)
    with pytest.raises(
        UserError, match=r"no zarr.json and no .zgroup at its root; zip what is in the store's folder, not the fo"
    ):
        AnnDataSource(source_config(zipped(tmp_path / "around")))
    content = zipped(store).read_bytes()
    (tmp_path / "cut.zarr.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"is not readable as zarr: File is not a zip file; get it again"):
        AnnDataSource(source_config(tmp_path / "cut.zarr.zip"))
    (store / "zarr.json").write_text("{")
    with pytest.raises(UserError, match=r"is not readable as zarr: .*; get it again"):
        AnnDataSource(source_config(store))


def test_a_zip_checks_what_it_holds(h5ad_file, source_config):
    path = zipped(as_zarr(h5ad_file(np.ones((24, 6)))))
    with zipfile.ZipFile(path) as archive:
        chunk = archive.getinfo("X/c/0/0")
    content = bytearray(path.read_bytes())
    content[chunk.header_offset + len("X/c/0/0") + 30 + 8] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="X is not readable as AnnData"):
        everything(source_config(path))


def test_identity_and_digest_follow_the_content_wherever_the_store_lies(h5ad_file, source_config, tmp_path):
    store = as_zarr(h5ad_file(sp.csr_matrix(np.random.default_rng(0).poisson(2.0, (24, 6)))))

    with AnnDataSource(source_config(store)) as source:
        first = source.sha256, file_identity(str(store))
    moved = tmp_path / "elsewhere" / "other.zarr"
    shutil.copytree(store, moved)
    with AnnDataSource(source_config(moved)) as source:
        assert (source.sha256, file_identity(str(moved))) == first
    seen = {first[0]}
    for file in sorted(file for file in moved.rglob("*") if file.is_file()):
        content = file.read_bytes()
        file.write_bytes(content + b" ")
        seen.add(sha256_of(moved))
        assert file_identity(str(moved)) != first[1]
        if file.name == "zarr.json" or "obs" in file.parts:
            file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
            assert file_identity(str(moved)) != first[1]
        file.write_bytes(content)
    assert len(seen) == 1 + sum(file.is_file() for file in moved.rglob("*"))
    chunk_files(moved, "X/data")[0].rename(moved / "X/data/c/1")
    assert file_identity(str(moved)) != first[1]
    assert file_identity(str(moved / "X/data/c")) == "absent"


# --------------------------------------------------------------------------------------------------------------- speed
class Counted:
    """An array in chunks that counts how often each is decoded."""

    def __init__(self, rows, step):
        self.shape, self.dtype, self.chunks = (rows, 2), np.dtype(np.int64), (step, 2)
        self.decoded = np.zeros(-(-rows // step), int)
        self.values = np.arange(2 * rows).reshape(rows, 2)

    def __getitem__(self, rows):
        self.decoded[rows.start // self.chunks[0] : -(-rows.stop // self.chunks[0])] += 1
        return self.values[rows]


@given(st.integers(1, 50), st.integers(1, 12), st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50))))
def test_any_range_of_rows_is_what_the_array_holds(rows, step, ranges):
    array = Counted(rows, step)
    reader = ChunkReader(array)
    for low, high in [sorted((min(a, rows), min(b, rows))) for a, b in ranges]:
        np.testing.assert_array_equal(reader[low:high], array.values[low:high])


@pytest.mark.parametrize("width", [1, 3, 7, 10, 33])
def test_ranges_one_after_the_other_decode_each_chunk_once(width):
    array = Counted(95, 10)
    reader = ChunkReader(array)
    found = [reader[low : min(low + width, 95)] for low in range(0, 95, width)]
    np.testing.assert_array_equal(np.concatenate(found), array.values)
    assert (array.decoded == 1).all()


def test_rows_of_chunks_too_large_to_keep_are_read_as_asked(monkeypatch):
    monkeypatch.setattr("vcc_fm.sources.zarr_array._KEPT_BYTES", 100)
    array = Counted(95, 10)
    reader = ChunkReader(array)
    np.testing.assert_array_equal(reader[3:7], array.values[3:7])
    np.testing.assert_array_equal(reader[3:7], array.values[3:7])
    assert array.decoded[0] == 2
