"""Several processes prepare one store; a store in several files is one to everybody who reads it."""

import anndata
import datasets
import numpy as np
import pytest
import scipy.sparse as sp
import yaml
from program import QUIET, TINY, vcc_fm
from tiny_screens import CONTROL, screen, write_screen, write_store

from vcc_fm.recipe.data import DataConfig
from vcc_fm.recipe.read import load_recipe
from vcc_fm.run.stages import run_stage, stages_of
from vcc_fm.store import merge
from vcc_fm.store.cells import CellStore
from vcc_fm.store.verify import verify


def recipe_of(folder, configs):
    """A recipe with these sources, of which only the cells are made."""
    folder.mkdir()
    data = DataConfig(sources=configs, memory_mb=1).model_dump(mode="json")
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump({**TINY, "output": str(folder), "data": data}))
    return path


def sources(folder, cells=1500, genes=40):
    """Two files of more cells than one chunk of 1 MB holds."""
    rng = np.random.default_rng(0)
    labels = np.array([CONTROL, "A", "B", "C"])[rng.integers(4, size=cells)]
    names = [f"g{number}" for number in range(genes)]
    screens = [
        screen(rng.poisson(0.8, (cells, genes)), "K", rng.integers(2, size=cells).astype(str), labels, names)
        for _ in range(2)
    ]
    configs = [write_screen(folder, f"s{number}", one) for number, one in enumerate(screens)]
    # The second one is stored by column: one process turns it, and the others wait for that and read it as well.
    data = anndata.read_h5ad(configs[1].path)
    data.X = sp.csc_matrix(data.X)
    data.write_h5ad(configs[1].path)
    return configs


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_number_of_processes_changes_no_byte(tmp_path, processes):
    configs = sources(tmp_path)
    alone, shared = recipe_of(tmp_path / "alone", configs), recipe_of(tmp_path / "shared", configs)
    recipe = load_recipe(alone)
    run_stage(stages_of(recipe)[0], recipe, QUIET)
    done = vcc_fm("prepare", shared, "--processes", processes)
    assert done.returncode == 0, done.stderr
    stores = []
    for path in (alone, shared):
        (store,) = path.parent.glob("**/cells/store.json")
        stores.append({path.name: path.read_bytes() for path in store.parent.iterdir()})
        assert not list(store.parent.parent.glob("*.shards"))
    assert stores[0] == stores[1]
    assert len(CellStore(store.parent)) == 3000
    recipe = load_recipe(shared)
    assert not run_stage(stages_of(recipe)[0], recipe, QUIET)


def test_a_refusal_in_one_process_ends_all_and_stands_alone(tmp_path):
    configs = sources(tmp_path)
    wrong = configs[1].model_copy(update={"values": "log1p-counts"})
    recipe = recipe_of(tmp_path / "out", [configs[0], wrong])
    done = vcc_fm("prepare", recipe, "--processes", 2)
    assert done.returncode == 2
    assert "source 's1'" in done.stderr
    assert done.stderr.count("error: ") <= 2, done.stderr
    assert not list(tmp_path.glob("out/**/cells"))


@pytest.mark.parametrize("shard_bytes", [200, 10**9])
def test_a_store_in_many_files_reads_as_one(tmp_path, monkeypatch, shard_bytes):
    rng = np.random.default_rng(1)
    config = write_screen(
        tmp_path, "s", screen(rng.poisson(1.0, (200, 9)), "K", "1", np.array([CONTROL, "A"])[np.arange(200) % 2])
    )
    whole = write_store(tmp_path / "whole", [config])
    monkeypatch.setattr(merge, "BATCH_ROWS", 7)
    monkeypatch.setattr(merge, "SHARD_BYTES", shard_bytes)
    store = write_store(tmp_path / "shards", [config], chunk_values=100)
    assert (len(store.meta["shards"]) > 20) == (shard_bytes == 200)
    assert sum(shard["rows"] for shard in store.meta["shards"]) == 200
    np.testing.assert_array_equal(store.barcodes, whole.barcodes)
    rows = rng.permutation(200)[:77]
    np.testing.assert_array_equal(store.dense(rows), whole.dense(rows))
    np.testing.assert_array_equal(store.sparse(rows).toarray(), whole.dense(rows))
    read = datasets.load_from_disk(str(store.folder))
    assert read["barcode"][:] == store.barcodes.tolist()
    assert verify(store.folder)["shards"] == len(store.meta["shards"])
