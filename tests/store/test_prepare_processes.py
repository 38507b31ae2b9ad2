"""Several processes prepare one store; a store in several files is one to everybody who reads it."""

import io
import os

import anndata
import datasets
import numpy as np
import pytest
import scipy.sparse as sp
import yaml
from program import QUIET, TINY, at_once, vcc_fm, write_recipe
from rich.console import Console
from safetensors import safe_open
from tiny_screens import CONTROL, screen, write_screen, write_store

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.data import DataConfig
from vcc_fm.recipe.read import load_recipe
from vcc_fm.run.prepare import check_sources, prepare_source
from vcc_fm.run.stages import run_stage, stages_of
from vcc_fm.store import chunks, first_pass, merge, prepare
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


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
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


@pytest.mark.slow
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


def files_of(folder):
    (store,) = folder.glob("**/cells/store.json")
    return {path.name: path.read_bytes() for path in store.parent.iterdir()}


@pytest.mark.slow
def test_jobs_by_source_and_a_join_write_the_same_store(tmp_path):
    configs = sources(tmp_path, 300)
    alone, jobs = recipe_of(tmp_path / "alone", configs), recipe_of(tmp_path / "jobs", configs)
    recipe = load_recipe(alone)
    run_stage(stages_of(recipe)[0], recipe, QUIET)
    with pytest.raises(UserError, match="--join: 2 sources of 2 not read as the recipe and the files are now: s0, s1"):
        check_sources(load_recipe(jobs))
    # The last one first, both at once, and one of them twice at once.
    done = at_once(*(("prepare", jobs, "--source", name) for name in ("s1", "s0", "s1")))
    assert [job.returncode for job in done] == [0, 0, 0]
    before = {path: path.stat().st_mtime_ns for path in jobs.parent.glob("**/chunk-*")}
    assert len(before) == 2
    prepare_source(load_recipe(jobs), "s0", QUIET)
    assert {path: path.stat().st_mtime_ns for path in jobs.parent.glob("**/chunk-*")} == before
    joined = vcc_fm("prepare", jobs, "--join")
    assert joined.returncode == 0, joined.stderr
    assert files_of(jobs.parent) == files_of(alone.parent)
    assert not list(jobs.parent.glob("**/*.shards"))
    said = Console(record=True, file=io.StringIO())
    prepare_source(load_recipe(jobs), "s0", said)
    assert "the cell store is whole" in said.export_text()


def test_a_join_misses_a_source_that_changed_or_was_stopped(tmp_path, monkeypatch):
    configs = sources(tmp_path, 60)
    recipe = load_recipe(recipe_of(tmp_path / "jobs", configs))
    prepare_source(recipe, "s1", QUIET)
    with pytest.raises(UserError, match=r"1 source of 2 not read as the recipe and the files are now: s0; run"):
        check_sources(recipe)
    with monkeypatch.context() as patched:
        patched.setattr(first_pass, "write_chunk", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare_source(recipe, "s0", QUIET)
    with pytest.raises(UserError, match="are now: s0;"):
        check_sources(recipe)
    prepare_source(recipe, "s0", QUIET)
    check_sources(recipe)
    os.utime(configs[0].path)
    with pytest.raises(UserError, match="are now: s0, s1;"):
        check_sources(load_recipe(tmp_path / "jobs" / "r.yaml"))


def test_sources_that_cannot_be_read_alone(tmp_path):
    recipe = load_recipe(recipe_of(tmp_path / "jobs", sources(tmp_path, 60)))
    with pytest.raises(UserError, match="--source: choose one of s0, s1, found s2"):
        prepare_source(recipe, "s2", QUIET)
    drawn = load_recipe(write_recipe(tmp_path / "drawn"))
    with pytest.raises(UserError, match="are for files of a recipe's sources; it has none"):
        prepare_source(drawn, "alpha", QUIET)
    assert "leave --join and --processes away" in vcc_fm("prepare", "r.yaml", "--source", "s0", "--join").stderr


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_a_chunk_is_opened_only_for_shards_that_have_its_cells(tmp_path, monkeypatch):
    """Two sources of one context each: the shards of one need no chunk of the other; one file is open at a time."""
    rng = np.random.default_rng(0)
    labels = np.array([CONTROL, "A", "B"])[np.arange(60) % 3]
    screens = [screen(rng.poisson(2.0, (60, 8)), context, "1", labels) for context in ("K", "H")]
    configs = [write_screen(tmp_path, f"s{number}", one) for number, one in enumerate(screens)]
    opened, most = [], []

    class Counted:
        def __init__(self, path, **keys):
            self.path, self.file = path, safe_open(path, **keys)

        def __enter__(self):
            opened.append(self.path.name)
            most.append(most[-1] + 1 if most else 1)
            return self.file.__enter__()

        def __exit__(self, *error):
            most.append(most[-1] - 1)
            return self.file.__exit__(*error)

    monkeypatch.setattr(merge, "BATCH_ROWS", 60)
    monkeypatch.setattr(merge, "SHARD_BYTES", 60)
    shards = merge.shard_batches
    by_shard = []

    def watched(*arguments):
        by_shard.append(len(opened))
        yield from shards(*arguments)

    monkeypatch.setattr(prepare, "shard_batches", watched)
    monkeypatch.setattr(chunks, "safe_open", Counted)
    store = write_store(tmp_path / "store", configs, chunk_values=200)
    assert len(store.meta["shards"]) == len(by_shard) == 2
    # Contexts are sorted: H, which is the second source, comes first.
    of_shard = np.split(np.array(opened), by_shard)[1:]
    assert [{name[:10] for name in names} for names in of_shard] == [{"chunk-0001"}, {"chunk-0000"}]
    assert all(len(names) == len(set(names)) > 1 for names in of_shard)
    assert max(most) == 1
