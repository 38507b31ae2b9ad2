"""A streamed h5ad holds the pieces that were appended, and appears when it is whole."""

import os
import signal
import time

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from vcc_fm.store import counts_file
from vcc_fm.store.counts_file import CountsFile, join_counts_files

GENES = ["g1", "g2", "g3", "g4"]


def pieces(sizes: list[int]) -> list[tuple[sp.csr_matrix, pd.DataFrame]]:
    rng = np.random.default_rng(0)
    return [
        (
            sp.csr_matrix(rng.poisson(0.7, (n, len(GENES)))),
            pd.DataFrame({"context": f"c{number % 2}", "perturbation": [f"p{i % 2}" for i in range(n)]}),
        )
        for number, n in enumerate(sizes)
    ]


def write(path, parts):
    with CountsFile(path, GENES, {"values": "counts", "simulated": True}) as file:
        for counts, labels in parts:
            file.append(counts, labels)


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_the_file_equals_the_pieces(tmp_path, monkeypatch, block):
    monkeypatch.setattr(counts_file, "BLOCK", block)
    parts = pieces([3, 1, 7, 0, 2])
    write(tmp_path / "new" / "x.h5ad", parts)
    read = anndata.read_h5ad(tmp_path / "new" / "x.h5ad")
    assert sp.isspmatrix_csr(read.X)
    assert read.X.dtype == np.int32
    np.testing.assert_array_equal(read.X.toarray(), sp.vstack([counts for counts, _ in parts]).toarray())
    labels = pd.concat([labels for _, labels in parts], ignore_index=True)
    for column in labels:
        assert isinstance(read.obs[column].dtype, pd.CategoricalDtype)
        assert read.obs[column].astype(str).tolist() == labels[column].tolist()
    assert read.obs_names.tolist() == [str(i) for i in range(13)]
    assert read.var_names.tolist() == GENES
    assert dict(read.uns) == {"values": "counts", "simulated": True}
    assert anndata.read_h5ad(tmp_path / "new" / "x.h5ad", backed="r").shape == (13, 4)


def test_more_values_fit_than_32_bits_can_address(tmp_path):
    write(tmp_path / "x.h5ad", pieces([3, 2]))
    with h5py.File(tmp_path / "x.h5ad") as file:
        assert file["X/indptr"].dtype == np.int64


def test_cells_without_counts_and_files_without_cells(tmp_path):
    nothing = pd.DataFrame({"context": ["c"] * 2})
    write(tmp_path / "x.h5ad", [(sp.csr_matrix((2, 4), dtype=int), nothing), (sp.csr_matrix((0, 4)), nothing[:0])])
    read = anndata.read_h5ad(tmp_path / "x.h5ad")
    assert read.shape == (2, 4)
    assert read.X.nnz == 0


def test_parts_are_joined_in_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(counts_file, "ROWS", 2)
    parts = pieces([3, 4, 2])
    write(tmp_path / "whole.h5ad", parts)
    write(tmp_path / "a.h5ad", parts[:1])
    write(tmp_path / "b.h5ad", parts[1:])
    join_counts_files([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], tmp_path / "joined.h5ad")
    whole, joined = (anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("whole", "joined"))
    np.testing.assert_array_equal(whole.X.toarray(), joined.X.toarray())
    pd.testing.assert_frame_equal(whole.obs, joined.obs)
    pd.testing.assert_frame_equal(whole.var, joined.var)
    assert dict(joined.uns) == dict(whole.uns)


def test_a_writer_that_fails_leaves_the_old_file_alone(tmp_path):
    write(tmp_path / "x.h5ad", pieces([3]))
    old = (tmp_path / "x.h5ad").read_bytes()

    def fail() -> None:
        with CountsFile(tmp_path / "x.h5ad", GENES, {}) as file:
            file.append(*pieces([5])[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5ad"]
    assert (tmp_path / "x.h5ad").read_bytes() == old


def test_a_killed_writer_leaves_nothing_under_the_final_name(tmp_path):
    path = tmp_path / "x.h5ad"
    process = os.fork()
    if process == 0:
        with CountsFile(path, GENES, {}) as file:
            file.append(*pieces([5])[0])
            (tmp_path / "begun").touch()
            time.sleep(20)
        os._exit(0)
    while not (tmp_path / "begun").exists():
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert not path.exists()
    write(path, pieces([2]))
    assert anndata.read_h5ad(path).shape == (2, 4)
    assert not list(tmp_path.glob("*.partial"))
