"""The embedding store: vectors come back as they were written, under their keys."""

import datasets
import numpy as np
import pytest
from tiny_screens import CONTROL, screen, store_of

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.ground.errors import UserError
from vcc_fm.splits.split import Split
from vcc_fm.store.arrow import DATA_FILE
from vcc_fm.store.embeddings import EmbeddingStore, write_embeddings

META = {"encoder": "expression", "parameters": {"width": 3}, "licence": "CC0", "citation": "none"}


def write(folder, keys, vectors, chunk=4, key="barcode"):
    folder.mkdir(exist_ok=True)
    parts = [(keys[i : i + chunk], vectors[i : i + chunk]) for i in range(0, len(keys), chunk)]
    write_embeddings(folder, key, parts, vectors.shape[1], "e" * 64, META)
    return EmbeddingStore(folder)


@pytest.mark.parametrize("chunk", [4, 100])
def test_vectors_come_back(tmp_path, chunk):
    keys = np.array([f"gene{i}" for i in range(11)])
    vectors = np.random.default_rng(0).standard_normal((11, 3)).astype(np.float32)
    vectors[2] = np.inf
    store = write(tmp_path / "proteins", keys, vectors, chunk, "symbol")
    np.testing.assert_array_equal(store.vectors, vectors)
    assert store.vectors.dtype == np.float32
    assert store.keys.tolist() == keys.tolist()
    assert (store.width, store.fingerprint) == (3, "e" * 64)
    assert META.items() <= store.meta.items()
    opened = datasets.load_from_disk(str(tmp_path / "proteins"))
    assert opened[4] == {"symbol": "gene4", "embedding": vectors[4].tolist()}
    assert (opened.info.license, opened.info.citation) == ("CC0", "none")


def test_a_store_cut_short_or_of_another_schema_is_refused(tmp_path):
    folder = write(tmp_path / "vectors", np.array(["a", "b"]), np.ones((2, 3), np.float32)).folder
    text = (folder / "store.json").read_text()
    (folder / "store.json").write_text(text.replace('"schema": 3', '"schema": 7'))
    with pytest.raises(UserError, match="store schema 7, this program reads 3; embed it again"):
        EmbeddingStore(folder)
    (folder / "store.json").write_text(text)
    (folder / DATA_FILE).write_bytes((folder / DATA_FILE).read_bytes()[:100])
    with pytest.raises(UserError, match=f"{DATA_FILE}: 100 bytes, but store.json says"):
        EmbeddingStore(folder)


def test_a_dataset_refuses_vectors_of_other_cells(tmp_path):
    cells = store_of(tmp_path, screen(np.ones((4, 2)), "K", "1", [CONTROL, "A", CONTROL, "A"]))
    proteins = write(tmp_path / "proteins", np.array(["A"]), np.ones((1, 3), np.float32), key="symbol")
    split = Split("perturbations", 0, 1, 0, {("K", "A"): "train"}, {("K", "A"): 2}, [])
    right = write(tmp_path / "right", cells.barcodes, np.ones((4, 3), np.float32))
    Dataset(cells, right, proteins, split, "+")
    for name, keys in (("order", cells.barcodes[::-1]), ("fewer", cells.barcodes[:3])):
        other = write(tmp_path / name, keys, np.ones((len(keys), 3), np.float32))
        with pytest.raises(UserError, match=rf"{name}: its barcodes are not those of .*store; embed the cells again"):
            Dataset(cells, other, proteins, split, "+")
