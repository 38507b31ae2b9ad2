"""A file shows what is in it: no link, raw storage or virtual array leads out, and what it declares it stores."""

from __future__ import annotations

from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr

from vcc_fm.ground.errors import UserError
from vcc_fm.sources import obs
from vcc_fm.sources.anndata_source import AnnDataSource

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:zarr", "ignore::UserWarning:anndata")


@pytest.fixture
def refuses(source_config):
    def check(path: Path, message: str) -> None:
        with pytest.raises(UserError, match=message) as caught:
            AnnDataSource(source_config(path))
        assert len(str(caught.value).splitlines()) == 1

    return check


@pytest.mark.parametrize("name", ["X", "obs/target", "uns/hidden"])
def test_a_link_to_another_file(h5ad_file, refuses, name):
    path, other = h5ad_file(), h5ad_file(name="other.h5ad")
    with h5py.File(path, "r+") as file:
        if name in file:
            del file[name]
        file[name] = h5py.ExternalLink(other.name, "/X")
    refuses(path, rf"{name} is a link to another file; write it anew with anndata, in one file")


def test_a_soft_link_cannot_hide_it(h5ad_file, refuses):
    path = h5ad_file()
    with h5py.File(path, "r+") as file:
        del file["X"]
        file["hidden"] = h5py.ExternalLink("other.h5ad", "/X")
        file["X"] = h5py.SoftLink("/hidden")
    refuses(path, "hidden is a link to another file")


def test_a_soft_link_inside_is_followed_and_a_loop_refused(h5ad_file, source_config, refuses):
    path = h5ad_file()
    with h5py.File(path, "r+") as file:
        file.move("X", "uns/matrix")
        file["X"] = h5py.SoftLink("/uns/matrix")
    with AnnDataSource(source_config(path)) as source:
        assert len(source.cells) == 24
    with h5py.File(path, "r+") as file:
        del file["X"]
        file["X"] = h5py.SoftLink("/X")
    refuses(path, "has no matrix 'X'|is not readable as")


def test_raw_storage_elsewhere_and_virtual_arrays(h5ad_file, refuses, tmp_path):
    (tmp_path / "secret").write_bytes(b"root:x:0:0 " * 24)
    path = h5ad_file()
    with h5py.File(path, "r+") as file:
        file.create_dataset("obs/shown", (24,), "S11", external=[(str(tmp_path / "secret"), 0, h5py.h5f.UNLIMITED)])
    refuses(path, r"the values of obs/shown are in another file")
    path = h5ad_file()
    layout = h5py.VirtualLayout((24, 6), np.float32)
    layout[:] = h5py.VirtualSource(str(h5ad_file(name="other.h5ad")), "X", (24, 6))
    with h5py.File(path, "r+") as file:
        del file["X"]
        file.create_virtual_dataset("X", layout)
    refuses(path, r"the values of X are in another file")


@pytest.mark.parametrize("chunks", [None, (1000, 6)])
def test_rows_that_are_declared_and_not_stored(h5ad_file, refuses, chunks):
    path = h5ad_file()
    with h5py.File(path, "r+") as file:
        attributes = dict(file["X"].attrs)
        del file["X"]
        file.create_dataset("X", (2 * 10**8, 6), np.float32, chunks=chunks).attrs.update(attributes)
    assert path.stat().st_size < 10**6
    refuses(path, r"X: declares 200,000,000 x 6 values and stores fewer \(0 of .*\); get it again")


def test_a_column_longer_than_its_index(h5ad_file, refuses):
    path = h5ad_file()
    with h5py.File(path, "r+") as file:
        attributes = dict(file["obs/gem"].attrs)
        del file["obs/gem"]
        file.create_dataset("obs/gem", data=np.zeros(100)).attrs.update(attributes)
    refuses(path, r"obs/gem: damaged \(it has 100 rows, the index _index 24\)")
    store = path.with_suffix(".zarr")
    anndata.read_h5ad(h5ad_file()).write_zarr(store)
    zarr.open_group(store, mode="r+")["obs/gem"].resize((10**9,))
    zarr.consolidate_metadata(store)
    refuses(store, r"obs/gem: damaged \(it has 1,000,000,000 rows, the index _index 24\)")


def test_a_link_out_of_a_zarr_store(h5ad_file, source_config, refuses, tmp_path):
    store = tmp_path / "screen.zarr"
    anndata.read_h5ad(h5ad_file()).write_zarr(store)
    (tmp_path / "linked.zarr").symlink_to(store)
    with AnnDataSource(source_config(tmp_path / "linked.zarr")) as source:
        assert len(source.cells) == 24
    (store / "X").rename(tmp_path / "X")
    (store / "X").symlink_to(tmp_path / "X")
    refuses(store, r"screen\.zarr\): X is a link out of the store; put what it leads to in its place")


def test_whole_files_of_every_form_pass(h5ad_file, source_config):
    for matrix in (np.ones((24, 6)), sp.csr_matrix((24, 6)), sp.csc_matrix(np.eye(24, 6))):
        with AnnDataSource(source_config(h5ad_file(matrix))) as source:
            assert len(source.cells) == 24


def test_memory_that_runs_out_is_the_files_fault(h5ad_file, refuses, monkeypatch):
    def read(stored: object) -> None:
        raise MemoryError

    monkeypatch.setattr(obs, "read_elem", read)
    refuses(h5ad_file(), r"obs is not readable as AnnData: it takes more memory than there is; get it again$")
