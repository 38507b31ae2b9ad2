"""The store of cells that SE embeds: right, whole, the same whoever made it, and fit to train on."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any

import anndata
import datasets
import numpy as np
import pytest
import torch
from accelerate import PartialState
from program import TINY as PROGRAM
from rich.console import Console
from state_se_checkpoints import protein_embeddings, random_names, random_tensors, write_folder
from tiny_screens import CONTROL, Screen, dataset_of, screen, store_of, write_screen

from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.encoders import arc_terms
from vcc_fm.encoders.cells import embed as embedding
from vcc_fm.encoders.cells.embed import embed_cells
from vcc_fm.encoders.cells.state_se import StateSe, StateSeSettings
from vcc_fm.encoders.cells.state_se_encoder import SeSettings, StateSeEncoder
from vcc_fm.encoders.cells.state_se_geometry import SeGeometry
from vcc_fm.encoders.cells.state_se_tokens import Tokens
from vcc_fm.encoders.cells.state_se_weights import load_state_se
from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import read_json, sha256_file
from vcc_fm.ground.progress import ProgressLines
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.export import export_obsm
from vcc_fm.run.inputs import source_configs
from vcc_fm.run.layout import Layout
from vcc_fm.run.plan import make_plan
from vcc_fm.run.stages import run_stage, stages_of
from vcc_fm.store.cells import CellStore
from vcc_fm.store.embeddings import EmbeddingStore

ROOT = Path(__file__).parents[2]
QUIET = Console(quiet=True)
GEOMETRY = SeGeometry(width=32, hidden=32, layers=2, heads=2, output=16, token_dim=24, genes=120, datasets=3)
NAMES = random_names(GEOMETRY)
GENES = np.random.default_rng(1).permutation([*NAMES[:100], *(f"OTHER{number}" for number in range(30))]).tolist()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("se") / "tiny-se", random_tensors(GEOMETRY), NAMES, heads=2)


def random_screen(cells: int, genes: list[str] = GENES, seed: int = 0) -> Screen:
    """Counts of all kinds of cells, in two contexts and batches; the second cell in ten is a control."""
    rng = np.random.default_rng(seed)
    rates = rng.gamma(0.5, 1.0, len(genes)) * rng.gamma(2.0, 0.5, (cells, 1))
    perturbation = np.array(["GENE0", CONTROL, "GENE1", "GENE2", "GENE3"])[np.arange(cells) % 5]
    context, batch = rng.choice(["K", "H"], cells), rng.choice(["1", "2"], cells)
    return screen(rng.poisson(rates), context, batch, perturbation, genes)


def config_of(checkpoint: Path, **keys: Any) -> StateSeSettings:
    return StateSeSettings(**{"model": str(checkpoint), "pad_length": 64} | keys)


def embed(
    final: Path, cells: CellStore, config: StateSeSettings, fingerprint: str = "e" * 64, console: Console = QUIET
) -> EmbeddingStore:
    embed_cells(final, cells, StateSe(config), fingerprint, PartialState(cpu=True), console)
    return EmbeddingStore(final)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def both(folder: Path) -> np.ndarray:  # cell and data set vectors side by side
    rows = datasets.load_from_disk(str(folder)).with_format("numpy")[:]
    return np.hstack([rows["embedding"], rows["dataset_vector"]])


# ------------------------------------------------------------------------------------------------------ what is in it
@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> CellStore:
    return store_of(tmp_path_factory.mktemp("small"), random_screen(90))


@pytest.fixture(scope="module")
def made(small: CellStore, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[EmbeddingStore, str]:
    out = StringIO()
    final = tmp_path_factory.mktemp("made") / "cell-embeddings"
    return embed(final, small, config_of(checkpoint), console=Console(file=out, width=200)), out.getvalue()


def test_a_row_a_cell_in_the_order_of_the_cell_store(made: Any, small: CellStore, checkpoint: Path) -> None:
    store, said = made
    assert store.keys.tolist() == small.barcodes.tolist()
    encoder = StateSeEncoder(load_state_se(str(checkpoint)), small.genes, SeSettings(pad_length=64))
    vectors, further = encoder.encode(small.sparse(np.arange(90)))
    assert store.vectors.tobytes() == vectors.tobytes()
    assert vectors.shape == (90, StateSe(config_of(checkpoint)).width) == (90, 16)
    table = datasets.load_from_disk(str(store.folder))
    assert table.column_names == ["barcode", "embedding", "dataset_vector"]
    assert table["barcode"][:] == small.barcodes.tolist()
    np.testing.assert_array_equal(both(store.folder), np.hstack([vectors, further]))
    assert "90/90 cells" in said
    assert not list(store.folder.parent.glob("*.shards"))


def test_it_says_where_it_came_from(made: Any, small: CellStore, checkpoint: Path) -> None:
    store, said = made
    measured, counts = np.isin(small.genes, NAMES), small.sums(np.arange(90))
    known = counts[measured].sum() / counts.sum()
    assert store.meta["vocabulary"] == [
        {"source": "s0", "genes": 130, "genes_known": 100, "counts_known": pytest.approx(known, abs=6e-5)}
    ]
    assert f"embed cells: s0: 100 of 130 genes known, with {known:.1%} of the counts" in said
    digests = {file.name: sha256_file(file) for file in checkpoint.iterdir()}
    assert store.meta["checkpoint"] == {"name": "tiny-se", "heads": 2, "sha256": digests}
    parameters = {"mode": "exact", "pad_length": 64, "target_sum": None, "seed": 0, "dtype": "float32"}
    assert store.meta["parameters"] == parameters | {"device": "cpu"}
    assert store.meta["encoder"] == "state-se"
    assert store.meta["cells"] == small.fingerprint
    assert store.meta["missing"] == []
    assert store.meta["licence"] == arc_terms.SE
    assert store.meta["citation"] == arc_terms.CITATION
    info = datasets.load_from_disk(str(store.folder)).info
    assert "Non-commercial" in info.license
    assert "Adduri" in info.citation


@pytest.mark.parametrize(
    ("keys", "parameters"),
    [
        ({"mode": "compat"}, {"mode": "compat"}),
        ({"scale_to": 1e4}, {"target_sum": 1e4}),
        ({"pad_length": 65}, {"pad_length": 65}),
        ({"draw": 7}, {"seed": 7}),
        ({"precision": "bfloat16"}, {"dtype": "bfloat16"}),
    ],
)
def test_the_recipes_keys_reach_encoder_and_store(
    made: Any, small: CellStore, checkpoint: Path, tmp_path: Path, keys: dict[str, Any], parameters: dict[str, Any]
) -> None:
    store = embed(tmp_path / "vectors", small, config_of(checkpoint, **keys))
    assert store.meta["parameters"] == made[0].meta["parameters"] | parameters
    assert np.abs(store.vectors - made[0].vectors).max() > 1e-4


def test_half_precision_takes_half_the_room(made: Any, small: CellStore, checkpoint: Path, tmp_path: Path) -> None:
    half = embed(tmp_path / "vectors", small, config_of(checkpoint, store_as="float16"))
    assert half.vectors.dtype == np.float32
    np.testing.assert_array_equal(half.vectors, made[0].vectors.astype(np.float16).astype(np.float32))
    np.testing.assert_allclose(half.vectors, made[0].vectors, rtol=2**-11, atol=2**-25)
    assert half.take(np.array([7, 3])).tobytes() == half.vectors[[7, 3]].tobytes()
    np.testing.assert_allclose(both(half.folder), both(made[0].folder), rtol=2**-11, atol=2**-25)
    # 16 + 10 numbers of 2 bytes less, give or take what aligns buffers
    assert made[0].meta["shards"][0]["bytes"] - half.meta["shards"][0]["bytes"] == pytest.approx(90 * 26 * 2, abs=128)


# ------------------------------------------------------------------------------------------- what must not change it
@pytest.mark.parametrize("batch_cells", [1, 7, 64])
def test_cells_computed_at_a_time_change_no_byte(
    made: Any, small: CellStore, checkpoint: Path, tmp_path: Path, batch_cells: int
) -> None:
    embed(tmp_path / "vectors", small, config_of(checkpoint, batch_cells=batch_cells))
    assert contents(tmp_path / "vectors") == contents(made[0].folder)


def test_the_order_of_cells_in_the_source_changes_no_bit_of_a_vector(
    made: Any, small: CellStore, checkpoint: Path, tmp_path: Path
) -> None:
    one, order = random_screen(90), np.random.default_rng(2).permutation(90)
    cells = store_of(tmp_path, Screen(one.counts[order], one.obs.iloc[order], one.genes), seed=5)
    assert cells.barcodes.tolist() != small.barcodes.tolist()
    embed(tmp_path / "vectors", cells, config_of(checkpoint))
    row_of = {barcode: row for row, barcode in enumerate(small.barcodes)}
    rows = [row_of[barcode] for barcode in cells.barcodes]
    assert both(tmp_path / "vectors").tobytes() == both(made[0].folder)[rows].tobytes()


@pytest.fixture(scope="module")
def large(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, bytes]]:
    """A recipe whose 2,200 cells, three shards, are prepared; a store that was embedded at one go; its bytes."""
    folder = tmp_path_factory.mktemp("large")
    one = random_screen(2200)
    one.counts[::97] = 0
    path = large_recipe(folder, write_screen(folder, "s", one).model_dump(), checkpoint)
    recipe = Recipe.model_validate_json(path.read_text())
    run_stage(stages_of(recipe)[0], recipe, QUIET)
    final = folder / "whole" / "cell-embeddings"
    embed_large(final, path)
    return path, final, contents(final)


def large_recipe(folder: Path, source: dict[str, Any], checkpoint: Path) -> Path:
    content = {"name": "r", "output": str(folder), "data": {"sources": [source]}, "train": {"steps": 1}}
    content["split"] = {"hold_out": "perturbations"}
    content["embed"] = {"cells": {"encoder": "state-se", "model": str(checkpoint), "pad_length": 64}}
    recipe = Recipe.model_validate(content)
    (folder / "r.json").write_text(recipe.model_dump_json())
    return folder / "r.json"


def embed_large(final: Path, path: Path) -> None:
    """Embed the cells of a recipe as its stage does; for a process of its own too."""
    torch.set_num_threads(1)
    layout = Layout(Recipe.model_validate_json(path.read_text()))
    cells, settings = CellStore(layout.cells.path), layout.recipe.embed.cells
    made_from, state = layout.cell_embeddings.fingerprint, PartialState(cpu=True)
    embed_cells(final, cells, layout.cell_encoder, made_from, state, QUIET, settings=settings)


def test_cells_without_vector_are_counted_over_all_shards(large: Any) -> None:
    path, final, _ = large
    cells = CellStore(Layout(Recipe.model_validate_json(path.read_text())).cells.path)
    known = cells.dense(np.arange(2200))[:, np.isin(cells.genes, NAMES)]
    rows = np.flatnonzero(known.sum(1) == 0)
    assert (rows >= embedding.SHARD).sum() >= 5
    assert EmbeddingStore(final).meta["missing"] == rows.tolist()
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(both(final)).any(1)), rows)


def test_a_stop_while_the_store_is_written_loses_no_vector(
    large: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _, whole = large
    final, plain = tmp_path / "cell-embeddings", embedding.write_embeddings

    def stop(*arguments: Any) -> None:
        plain(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embedding, "write_embeddings", stop)
        with pytest.raises(KeyboardInterrupt):
            embed_large(final, path)
    assert not final.exists()
    monkeypatch.setattr(StateSeEncoder, "embed", None)
    embed_large(final, path)
    assert contents(final) == whole


@pytest.mark.slow
def test_killed_at_any_moment(large: Any, tmp_path: Path) -> None:
    path, _, whole = large
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["vcc_fm.run.plan", "vcc_fm.run.stages", "vcc_fm.encoders.cells.embed"])
    final, rng, halfway = tmp_path / "cell-embeddings", np.random.default_rng(0), 0
    shards = final.with_name("cell-embeddings.shards")
    # While nothing is there, or the first, second or third shard is computed, or the store is written.
    for there, delay in ((0, 1.0), (0, 2.0), (1, 0.1), (1, 0.1), (2, 0.03), (3, 0.01), (3, 0.01)):
        worker = processes.Process(target=embed_large, args=(final, path))
        worker.start()
        while worker.is_alive() and len(list(shards.glob("*.npy"))) < there:
            time.sleep(0.001)
        worker.join(rng.uniform(0, delay))
        worker.kill()
        worker.join()
        halfway += worker.exitcode == -signal.SIGKILL and any(shards.glob("*.npy"))
        if final.exists():
            assert contents(final) == whole, "a store that is there is not whole"
    assert halfway >= 2
    embed_large(final, path)
    assert contents(final) == whole
    assert [one.name for one in tmp_path.iterdir()] == ["cell-embeddings"]


@pytest.mark.parametrize(
    ("processes", "threads"),
    [(1, 2), (2, 1), (3, 1)],
    ids=["1", "2", "3"],
)
@pytest.mark.slow
def test_any_number_of_processes_makes_the_same_store(
    large: Any, tmp_path: Path, processes: int, threads: int
) -> None:
    path, _, whole = large
    recipe = tmp_path / "r.json"
    recipe.write_text(path.read_text().replace(str(path.parent), str(tmp_path)))
    shutil.copy(path.parent / "s.h5ad", tmp_path)
    shutil.copytree(path.parent / "embeddings", tmp_path / "embeddings")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    script = ROOT / "embeddings" / "cells.py"
    done = subprocess.run([*command, str(script), str(recipe)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "embeddings" / "r" / "cell-embeddings") == whole
    assert "cells/s" in done.stdout
    assert done.stdout.count("genes known") == 1


# ------------------------------------------------------------------------------------------ genes of several sources
def test_an_unmeasured_gene_never_becomes_a_token(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places for more genes than either source measured: all silent genes would come in."""
    first, second = random_screen(40, GENES[:70], 1), random_screen(40, GENES[50:], 2)
    cells = store_of(tmp_path / "both", first, second)
    seen: list[Tokens] = []
    plain = StateSeEncoder.embed

    def record(self: StateSeEncoder, tokens: Tokens, *more: Any) -> Any:
        seen.append(tokens)
        return plain(self, tokens, *more)

    monkeypatch.setattr(StateSeEncoder, "embed", record)
    config = config_of(checkpoint, pad_length=110)
    store = embed(tmp_path / "vectors", cells, config)
    assert len(seen) == 2
    for tokens, genes in zip(seen, (GENES[:70], GENES[50:]), strict=True):
        assert len(tokens.length) == 40
        used = {NAMES[gene] for gene in tokens.ids[tokens.multiplicity > 0]}
        assert used == set(genes) & set(NAMES)
    assert [line["genes"] for line in store.meta["vocabulary"]] == [70, 80]
    for number, one in enumerate((first, second)):
        # By itself, the axis is what the source measured.
        alone_cells = store_of(tmp_path / f"alone{number}", one)
        alone = embed(tmp_path / f"vectors{number}", alone_cells, config)
        mine = {key.removeprefix(f"s{number}:"): row for row, key in enumerate(store.keys) if key[1] == str(number)}
        rows = [mine[key.removeprefix("s0:")] for key in alone.keys]
        assert len(rows) == 40
        np.testing.assert_allclose(store.take(np.array(rows)), alone.vectors, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------ cells without vector
def with_empty_cells(rows: np.ndarray) -> Screen:
    one = random_screen(60)
    counts = one.counts.copy()
    counts[rows] = 0
    counts[rows[1], GENES.index("OTHER3")] = 9  # expresses, but nothing that the checkpoint knows
    return Screen(counts, one.obs, GENES)


def dataset_with(cells: CellStore, vectors: EmbeddingStore) -> Dataset:
    plain = dataset_of(cells)
    return Dataset(cells, vectors, plain.protein_vectors, plain.split, "+")


def test_cells_without_known_genes_are_kept_counted_and_no_controls(checkpoint: Path, tmp_path: Path) -> None:
    empty = np.array([1, 6, 10])  # two controls, one that is perturbed
    cells = store_of(tmp_path, with_empty_cells(empty))
    out = StringIO()
    vectors = embed(tmp_path / "vectors", cells, config_of(checkpoint), console=Console(file=out, width=200))
    rows = np.flatnonzero(np.isin(cells.barcodes, [f"cell{i}" for i in empty]))
    assert len(vectors.keys) == 60
    assert vectors.meta["missing"] == rows.tolist()
    np.testing.assert_array_equal(np.flatnonzero(vectors.missing), rows)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(both(vectors.folder)).any(1)), rows)
    assert "3 cells have no vector: they express no gene that the checkpoint knows" in out.getvalue()
    data = dataset_with(cells, vectors)
    controls = cells.rows(perturbation=CONTROL)
    given = [row for found in data.context_controls.values() for row in found]
    assert sorted(given) == sorted(set(controls) - set(rows))
    assert sorted(row for found in data.control_rows.values() for row in found) == sorted(given)
    assert data.some_control_vectors.shape == (len(controls) - 2, 16)
    assert np.isfinite(data.some_control_vectors).all()


def test_a_context_without_any_control_vector_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    one = random_screen(60)
    rows = np.flatnonzero((one.obs["context"] == "H") & (one.obs["perturbation"] == CONTROL))
    cells = store_of(tmp_path, with_empty_cells(rows))
    vectors = embed(tmp_path / "vectors", cells, config_of(checkpoint))
    assert len(vectors.meta["missing"]) == len(rows) >= 3
    data = dataset_with(cells, vectors)
    assert all(cells.contexts[cells.context[found[0]]] == "K" for found in data.control_rows.values())
    with pytest.raises(UserError, match=r"cells with a vector: no control cells \('control'\) in context H"):
        _ = data.context_controls


# --------------------------------------------------------------------------------------------------- what is refused
def renamed(name: Callable[[str], str]) -> Screen:
    return random_screen(30, [name(gene) for gene in GENES])


def mostly_unknown() -> Screen:
    one = random_screen(30)
    counts = one.counts.copy()
    counts[:, GENES.index("OTHER7")] = 900
    counts[:, GENES.index("OTHER8")] = 500
    return Screen(counts, one.obs, GENES)


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (
            renamed(lambda gene: f"x-{gene}"),
            r"source s0: 0 of 130 gene names are among the checkpoint's 120 symbols .*unknown are 'x-",
        ),
        (
            # One in five is something else: where all are ids, they are refused before.
            renamed(lambda gene: f"x-{gene}" if GENES.index(gene) % 5 == 0 else f"ENSG{GENES.index(gene):011d}"),
            r"source s0: 0 of 130 .*Ensembl ids \('ENSG0{10}1'\): set the source key `symbols: <var column with gene",
        ),
        (renamed(str.lower), r"source s0: 0 of 130 .*100 more differ only in case .*human orthologues"),
        (
            mostly_unknown(),
            r"source s0: \d% of its counts are in genes that the checkpoint knows, embed.cells.coverage asks for 50%; "
            r"most counts are lost in OTHER7, OTHER8, .*Check the source key `symbols`, or lower embed.cells.coverage",
        ),
    ],
    ids=["nothing known", "Ensembl ids", "mouse", "counts lost"],
)
def test_genes_that_the_checkpoint_does_not_know_are_refused(
    checkpoint: Path, tmp_path: Path, one: Screen, said: str
) -> None:
    # The source that is fine comes last, lest its genes hide the other's.
    cells = store_of(tmp_path, one, random_screen(20))
    with pytest.raises(UserError, match=said):
        embed(tmp_path / "vectors", cells, config_of(checkpoint))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s0.h5ad", "s1.h5ad", "store"]


def test_less_coverage_can_be_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    cells = store_of(tmp_path, mostly_unknown())
    store = embed(tmp_path / "vectors", cells, config_of(checkpoint, coverage=0.01))
    assert 0.01 < store.meta["vocabulary"][0]["counts_known"] < 0.5


def no_heads(folder: Path) -> Path:
    return write_folder(folder, random_tensors(GEOMETRY), NAMES, heads=None)


def wrong_table(folder: Path) -> Path:
    tensors = random_tensors(GEOMETRY)
    write_folder(folder, tensors, NAMES, heads=2)
    names = [NAMES[1], NAMES[0], *NAMES[2:]]
    swapped = protein_embeddings(tensors, NAMES)
    torch.save({name: swapped[name] for name in names}, folder / "protein_embeddings.pt")
    return folder


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder, "no such folder, and no Hub id"),
        (no_heads, "config.yaml is not there; set embed.cells.heads"),
        (
            wrong_table,
            "protein_embeddings.pt: 2 of 120 vectors are not the rows of pe_embedding.weight in model.safetensors",
        ),
    ],
    ids=["no folder", "no heads", "wrong table"],
)
def test_checkpoints_that_are_not_whole_are_refused(
    small: CellStore, tmp_path: Path, make: Callable[[Path], Path], said: str
) -> None:
    folder = make(tmp_path / "some-se")
    with pytest.raises(UserError, match=said):
        embed(tmp_path / "vectors", small, config_of(folder))
    assert not list(tmp_path.glob("vectors*"))


def test_heads_can_be_given(made: Any, small: CellStore, tmp_path: Path) -> None:
    store = embed(tmp_path / "vectors", small, config_of(no_heads(tmp_path / "se"), heads=2))
    assert store.vectors.tobytes() == made[0].vectors.tobytes()


def test_compat_does_not_scale() -> None:
    with pytest.raises(ValueError, match=r"embed.cells.scale_to has no meaning with embed.cells.mode=compat"):
        StateSeSettings(mode="compat", scale_to=1e4)


# ----------------------------------------------------------------------------------------------------- a whole recipe
@pytest.mark.slow
def test_a_decoder_trains_on_it_and_is_scored(tmp_path: Path) -> None:
    """The simulator's genes, of which the checkpoint knows all but ten, in another order."""
    geometry = SeGeometry(width=32, hidden=32, layers=2, heads=2, output=16, token_dim=24, genes=60, datasets=3)
    names = [f"SIM{number:04d}" for number in np.random.default_rng(0).permutation(np.arange(11, 71))]
    folder = write_folder(tmp_path / "se", random_tensors(geometry), names, heads=2)
    content = deepcopy(PROGRAM) | {"output": str(tmp_path)}
    content["embed"]["cells"] = {"encoder": "state-se", "model": str(folder), "pad_length": 48}
    recipe = Recipe.model_validate(content)
    plan = make_plan(recipe, 1)
    assert plan["problems"] == []
    assert plan["cells"]["vector_width"] == 16
    for stage in stages_of(recipe):
        run_stage(stage, recipe, QUIET)
    layout = Layout(recipe)
    vectors = EmbeddingStore(layout.cell_embeddings.path)
    assert vectors.meta["encoder"] == "state-se"
    assert vectors.meta["vocabulary"][0]["genes_known"] == 40
    after = make_plan(recipe, 1)
    assert all(stage["done"] for stage in after["stages"])
    assert after["decoder"] == plan["decoder"]
    for phase in ("pretrain", "train"):
        said = read_json(layout.decoder(0, phase).path / "config.json")
        assert said["cell_width"] == 16
        assert "Non-commercial" in said["cell_encoder"]["licence"]
    assert "model" in layout.scores.path.read_text()
    # For users of State: cell and data set vectors side by side.
    name, sources = recipe.data.simulate.contexts[-1], source_configs(recipe, layout.simulated)
    told = export_obsm(recipe, sources, name, tmp_path / "copy.h5ad", None, ProgressLines("e", "cells", QUIET))
    assert told["key"] == "X_state"
    table = anndata.read_h5ad(tmp_path / "copy.h5ad")
    row_of = {key: row for row, key in enumerate(vectors.keys)}
    rows = np.array([row_of[f"{name}:{barcode}"] for barcode in table.obs_names])
    both_of = np.hstack([vectors.take(rows), vectors.take(rows, "dataset_vector")])
    np.testing.assert_array_equal(table.obsm["X_state"], both_of)
    assert "Non-Commercial" in table.uns["X_state"]["licence"]
