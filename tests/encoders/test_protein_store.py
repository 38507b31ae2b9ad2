"""The store of proteins: right, whole, and the same whoever made it and however often they were stopped."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import PartialState
from program import vcc_fm
from rich.console import Console
from transformers import EsmConfig, EsmModel

from vcc_fm.encoders import shards
from vcc_fm.encoders.proteins.composition import Composition, CompositionSettings
from vcc_fm.encoders.proteins.embed import embed_proteins
from vcc_fm.encoders.proteins.encoder import SequenceEncoder
from vcc_fm.encoders.proteins.esm2 import Esm2, Esm2Settings, UntrainedEsm2
from vcc_fm.encoders.proteins.esm2_untrained import write_untrained
from vcc_fm.encoders.proteins.table import Table, TableSettings, write_pt
from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import read_json
from vcc_fm.recipe.read import load_recipe
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.store.embeddings import EmbeddingStore

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ESM2 with one narrow layer and random weights, as the Hub holds a model."""
    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=33, pad_token_id=1, mask_token_id=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, position_embedding_type="rotary", emb_layer_norm_before=False, token_dropout=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("esm2")
    EsmModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def write_fasta(path: Path, proteins: int, genes: int) -> Path:
    """Proteins of human genes, some of them of one gene."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(proteins):
        residues = "".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), rng.integers(300, 1700)))
        lines.append(
            f">sp|P{number:05d}|X Some protein OS=Homo sapiens OX=9606 GN=GENE{number % genes} PE=1 SV=1\n{residues}"
        )
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 proteins of 40 genes: one shard of tokens."""
    return write_fasta(tmp_path_factory.mktemp("few") / "proteins.fasta", 60, 40)


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """700 proteins of 500 genes: three shards of tokens."""
    return write_fasta(tmp_path_factory.mktemp("fasta") / "proteins.fasta", 700, 500)


def esm2(model: Path, **keys: Any) -> Esm2:
    return Esm2(Esm2Settings(model=str(model), **keys))


def loaded(encoder: SequenceEncoder) -> SequenceEncoder:
    encoder.load(Path("."), "cpu")
    return encoder


def embed(final: Path, fasta: Path, model: Path) -> dict[str, bytes]:
    torch.set_num_threads(1)
    embed_proteins(final, fasta, esm2(model), final.parent, "f", PartialState(cpu=True), Console(quiet=True))
    return {path.name: path.read_bytes() for path in sorted(final.iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, fasta: Path, model: Path) -> tuple[Path, dict[str, bytes]]:
    final = tmp_path_factory.mktemp("store") / "proteins"
    return final, embed(final, fasta, model)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, few: Path, model: Path) -> tuple[Path, dict[str, bytes]]:
    final = tmp_path_factory.mktemp("small-store") / "proteins"
    return final, embed(final, few, model)


def test_a_gene_is_the_mean_of_its_isoforms(small: tuple[Path, dict[str, bytes]], few: Path, model: Path) -> None:
    store = EmbeddingStore(small[0])
    entries = [entry.split("\n", 1) for entry in few.read_text().split(">")[1:]]
    sequences = [body.replace("\n", "") for header, body in entries if "GN=GENE7 " in header]
    assert len(sequences) == 2
    rows = loaded(esm2(model)).encode(sequences)
    vector = store.vectors[list(store.keys).index("GENE7")]
    np.testing.assert_allclose(vector, rows.mean(0), rtol=0, atol=1e-6)
    row = datasets.load_from_disk(str(small[0])).filter(lambda one: one["symbol"] == "GENE7")[0]
    assert row["isoforms"] == 2
    assert row["accessions"] == ["P00007", "P00047"]
    assert row["residues"] == [len(sequence) for sequence in sequences]
    assert row["sha256"] == [hashlib.sha256(sequence.encode()).hexdigest() for sequence in sequences]


def test_the_store_says_where_it_came_from(small: tuple[Path, dict[str, bytes]], few: Path, model: Path) -> None:
    meta = read_json(small[0] / "store.json")
    assert meta["encoder"] == "esm2"
    assert meta["checkpoint"]["sha256"]["model.safetensors"]
    assert meta["sequences"] == {
        "file": "proteins.fasta",
        "sha256": hashlib.sha256(few.read_bytes()).hexdigest(),
        "kind": "uniprot",
        "left_out": {},
        "faulty": {},
        "repairs": {},
    }
    assert meta["width"] == esm2(model).width == 16
    assert "MIT" in meta["licence"]


@pytest.mark.slow
def test_a_stopped_run_goes_on_and_ends_the_same(
    whole: tuple[Path, dict[str, bytes]], fasta: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, saved = shards._save, []

    def stop_at_the_third(path: Path, vectors: np.ndarray) -> None:
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(path)
        save(path, vectors)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_save", stop_at_the_third)
        with pytest.raises(KeyboardInterrupt):
            embed(tmp_path / "proteins", fasta, model)
    assert not (tmp_path / "proteins").exists()
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_save", lambda path, vectors: (saved.append(path), save(path, vectors)))
        assert embed(tmp_path / "proteins", fasta, model) == whole[1]
    assert len(saved) == len(set(saved)) >= 3, "a shard that was done was computed again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["proteins"]


@pytest.mark.slow
def test_killed_at_any_moment(whole: tuple[Path, dict[str, bytes]], fasta: Path, model: Path, tmp_path: Path) -> None:
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["vcc_fm.encoders.proteins.embed"])
    final, rng, killed = tmp_path / "proteins", np.random.default_rng(0), 0
    for _ in range(12):
        worker = processes.Process(target=embed, args=(final, fasta, model))
        worker.start()
        worker.join(rng.uniform(0, 1.0))
        worker.kill()
        worker.join()
        killed += worker.exitcode == -signal.SIGKILL
        # A store that is there is whole.
        if final.exists():
            assert {path.name: path.read_bytes() for path in sorted(final.iterdir())} == whole[1]
    assert killed >= 6
    assert embed(final, fasta, model) == whole[1]


def test_shards_of_another_encoder_are_not_used(
    small: tuple[Path, dict[str, bytes]], few: Path, model: Path, tmp_path: Path
) -> None:
    work = tmp_path / "proteins.shards"
    work.mkdir()
    (work / "owner.json").write_text('{"fingerprint": "other"}')
    np.save(work / "shard-000000.npy", np.zeros((3, 16), np.float32))
    assert embed(tmp_path / "proteins", few, model) == small[1]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_makes_the_same_store(
    whole: tuple[Path, dict[str, bytes]], fasta: Path, model: Path, tmp_path: Path, processes: int
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: r\noutput: {tmp_path}\ndata: {{simulate: {{}}}}\n"
        "split: {hold_out: perturbations}\ntrain: {steps: 1}\n"
        f"embed: {{proteins: {{encoder: esm2, model: {model}, fasta: {fasta}}}}}\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    script = ROOT / "embeddings" / "proteins.py"
    done = subprocess.run([*command, str(script), str(recipe)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = {path.name: path.read_bytes() for path in (tmp_path / "embeddings" / "r" / "proteins").iterdir()}
    fingerprints = ("store.json", "state.json")
    assert made.keys() == whole[1].keys()
    assert all(made[name] == content for name, content in whole[1].items() if name not in fingerprints)
    assert "residues/s" in done.stdout


def test_an_untrained_model_is_made_of_the_same_bytes_and_read_as_any_other(tmp_path: Path) -> None:
    shape = {"width": 8, "layers": 1, "heads": 2}
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    write_untrained(tmp_path / "a", **shape)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    write_untrained(tmp_path / "b", **shape)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    rows = loaded(esm2(tmp_path / "a")).encode(["MKTAYIAKQR", "GGGGAAAA"])
    assert rows.shape == (2, 8)
    assert np.abs(rows[0] - rows[1]).max() > 0.01
    assert Esm2(Esm2Settings(untrained=UntrainedEsm2(**shape))).width == 8


def test_what_is_read_otherwise_than_written_is_counted(model: Path) -> None:
    sequences = ["MKJA", "MKXA", "MKLA"]
    assert loaded(esm2(model)).repairs(sequences) == {"J read as X": 1}
    counted = Composition(CompositionSettings()).repairs(sequences)
    assert list(counted.values()) == [2]


def test_a_model_that_is_not_esm2_is_refused(fasta: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        loaded(esm2(tmp_path / "none"))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="not of ESM2: model_type is 'bert'"):
        loaded(esm2(tmp_path))
    with pytest.raises(UserError, match="has 1 layers"):
        loaded(esm2(model, layer=2))


def test_a_table_goes_out_and_comes_back(
    small: tuple[Path, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = EmbeddingStore(small[0])
    file = tmp_path / "ESM2_pert_features.pt"
    write_pt(file, list(map(str, store.keys)), store.vectors)
    loaded = torch.load(file, weights_only=True)
    assert list(loaded) == store.keys.tolist()
    table = Table(TableSettings(table=str(file)))
    embed_proteins(tmp_path / "proteins", None, table, tmp_path, "f", PartialState(cpu=True), Console(quiet=True))
    back = EmbeddingStore(tmp_path / "proteins")
    np.testing.assert_array_equal(back.vectors, store.vectors)
    assert back.keys.tolist() == store.keys.tolist()
    assert back.meta["parameters"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert datasets.load_from_disk(str(tmp_path / "proteins"))[0]["accessions"] == []


@pytest.mark.slow
def test_export_and_import_by_command(tiny_run: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(tiny_run.model_dump_json())
    file = tmp_path / "proteins.pt"
    vcc_fm("export", "proteins", path, file).check_returncode()
    over = [f"embed.proteins={{encoder: table, table: {file}}}", f"output={tmp_path}"]
    vcc_fm("embed", "proteins", path, *over).check_returncode()
    theirs = EmbeddingStore(tmp_path / "embeddings" / tiny_run.name / "proteins")
    ours = EmbeddingStore(Layout(tiny_run).proteins.path)
    np.testing.assert_array_equal(theirs.vectors[np.argsort(theirs.keys)], ours.vectors[np.argsort(ours.keys)])
    plan = vcc_fm("plan", path, *over, "--json")
    assert '"targets_without_sequence": []' in plan.stdout


def test_keys_of_another_encoder_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "name: r\ndata: {simulate: {}}\nsplit: {hold_out: perturbations}\ntrain: {steps: 1}\n"
        "embed: {proteins: {encoder: table, table: t.pt}}\n"
    )
    for over, said in (
        ("embed.proteins.fasta=f", r"unknown key embed.proteins.fasta \(a key of encoder: composition and esm2\)"),
        ("embed.proteins.tabel=f", r"did you mean table\?"),
        ("embed.proteins.encoder=esm3", r"embed.proteins: 'esm3' is no protein encoder \(did you mean esm2\?\)"),
    ):
        with pytest.raises(UserError, match=said):
            load_recipe(path, [over])
    with pytest.raises(UserError, match=r"embed.proteins.table is missing"):
        load_recipe(path, ["embed.proteins={encoder: table}"])
