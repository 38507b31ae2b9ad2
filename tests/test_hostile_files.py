"""Files from elsewhere, damaged or hostile: a reader takes them or refuses them in a line, and never fails."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from program import TINY
from safetensors.torch import save_file
from source_counts import counts_of
from tiny_screens import CONTROL, embedded, screen, store_of

from vcc_fm.encoders.cells.state_se_weights import load_state_se
from vcc_fm.encoders.proteins.esm2_fair_esm import load_fair_esm
from vcc_fm.encoders.proteins.table import read_pt
from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import read_json
from vcc_fm.recipe.data import SourceConfig
from vcc_fm.recipe.read import load_recipe
from vcc_fm.scoring.table import read_table
from vcc_fm.sources.anndata_source import AnnDataSource
from vcc_fm.sources.fasta import read_proteins
from vcc_fm.sources.symbol_files import read_symbols
from vcc_fm.splits.cell_load_table import read_cell_load_table
from vcc_fm.splits.split import Split
from vcc_fm.store.cells import CellStore
from vcc_fm.store.description import write_store_json
from vcc_fm.store.embeddings import EmbeddingStore

# What once got through a parser, or is on the way of getting through one.
TEXTS = [
    *(b"2020-13-45", b"0x_", b"!!int x", b"!!float x", b"!!binary x", b"!!timestamp x", b"[" * 1200, b"{a: " * 1200),
    *(b"&a [*a]", b"<<: 3", b"? [a]", b"\\ud800", b'"\\0"', b'"\\uD800"', b"9" * 5000, b"1e999", b".inf", b"null"),
    *(b"[]", b"{}", b"\xff", b"n" * 300, b'{"a":' * 3000, b"NaN", b"-1", b"\x00", b"\xef\xbb\xbf", b"\xff\xfe"),
    *(b"\x1f\x8b", b"\n>", b"\t", b"'", b"&a [x, x]\n", b"*a", b"a{99999999999}", b"---\n", b"%YAML 9", b'"""'),
    *(b"[[x]]", b"= ", b"=\n"),
]


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with some bytes flipped, cut, repeated, or with something else in them."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["flip", "cut", "cut", "insert", "replace", "end"])):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at : at + draw(st.integers(1, 40))]
            case "insert":
                data[at:at] = draw(st.sampled_from(TEXTS) | st.binary(max_size=8))
            case "replace":
                new = draw(st.sampled_from(TEXTS) | st.binary(max_size=8))
                data[at : at + len(new)] = new
            case "end":
                del data[at:]
    return bytes(data)


def text(name: str, content: str, read: Callable[[Path], object]) -> Callable[[Path], tuple[Path, Any]]:
    def write(folder: Path) -> tuple[Path, Any]:
        (folder / name).write_text(content)
        return folder / name, read

    return write


def vectors(folder: Path) -> tuple[Path, Any]:
    torch.save({"TP53": torch.ones(3), "MYC": torch.zeros(3)}, folder / "v.pt")
    return folder / "v.pt", read_pt


def fair_esm(folder: Path) -> tuple[Path, Any]:
    names = {"encoder_layers": 1, "encoder_embed_dim": 8, "encoder_attention_heads": 2, "token_dropout": True}
    torch.save({"cfg": {"model": argparse.Namespace(**names)}, "model": {"x": torch.ones(2)}}, folder / "e.pt")
    return folder / "e.pt", lambda path: load_fair_esm(str(path))


def se_weights(folder: Path) -> tuple[Path, Any]:
    save_file(
        {"pe_embedding.weight": torch.ones(2, 3), "decoder.1.weight": torch.ones(4, 4)}, folder / "m.safetensors"
    )
    torch.save({"A": torch.ones(3), "B": torch.ones(3)}, folder / "protein_embeddings.pt")
    return folder / "m.safetensors", lambda path: load_state_se(str(path), heads=1)


def lightning(folder: Path) -> tuple[Path, Any]:
    state = {"pe_embedding.weight": torch.ones(2, 3), "decoder.1.weight": torch.ones(4, 4)}
    torch.save({"state_dict": state, "hyper_parameters": {"nhead": 2}, "protein_embeds_dict": None}, folder / "m.ckpt")
    torch.save({"A": torch.ones(3), "B": torch.ones(3)}, folder / "protein_embeddings.pt")
    return folder / "m.ckpt", lambda path: load_state_se(str(path))


def cells() -> anndata.AnnData:
    row = np.arange(24)
    obs = pd.DataFrame(
        {"target": pd.Categorical(np.array(["non-targeting", "A", "B"])[row % 3]), "n": row},
        index=[f"c{i}" for i in row],
    )
    counts = sp.csr_matrix(np.random.default_rng(0).poisson(2.0, (24, 5)).astype(np.float32))
    return anndata.AnnData(counts, obs=obs, var=pd.DataFrame(index=[*"ABCDE"]))


def read_cells(path: Path) -> None:
    config = SourceConfig(name="s", path=str(path), perturbation_column="target", context="K562")
    with AnnDataSource(config) as source:
        for _ in counts_of(source, 10):
            pass


def h5ad(folder: Path) -> tuple[Path, Any]:
    cells().write_h5ad(folder / "c.h5ad")
    return folder / "c.h5ad", read_cells


def zarr_metadata(part: str) -> Callable[[Path], tuple[Path, Any]]:
    def write(folder: Path) -> tuple[Path, Any]:
        with anndata.settings.override(zarr_write_format=3):
            cells().write_zarr(folder / "c.zarr")
        return folder / "c.zarr" / part, lambda path: read_cells(folder / "c.zarr")

    return write


def sealed(path: Path) -> None:
    """Give a store's description the checksum of what it says, as somebody does who makes it up."""
    with suppress(ValueError, TypeError, RecursionError):
        write_store_json(path.parent, dict(json.loads(path.read_bytes())))


def cell_store(folder: Path) -> tuple[Path, Any]:
    labels = [np.array(names * 4) for names in (["K", "H"], ["1", "2"], [CONTROL, "A"])]
    store = store_of(folder, screen(np.random.default_rng(0).poisson(1.0, (8, 3)), *labels))

    def read(path: Path) -> None:
        sealed(path)
        store = CellStore(path.parent)
        store.dense(np.arange(len(store)))
        assert len(store.measured) == len(store.batches)
        assert store.perturbations[store.control_code] == store.control

    return store.folder / "store.json", read


def embedding_store(folder: Path) -> tuple[Path, Any]:
    store = embedded(folder / "vectors", ["a", "b", "c"], np.ones((3, 2), np.float32))

    def read(path: Path) -> None:
        sealed(path)
        store = EmbeddingStore(path.parent)
        assert store.vectors.shape == (len(store.missing), store.width)

    return store.folder / "store.json", read


SPLIT = {
    "hold_out": "perturbations",
    "fold": 0,
    "folds": 1,
    "seed": 0,
    "warnings": [],
    "counts": {},
    "groups": [{"context": "K562", "perturbation": "A", "role": "train", "cells": 3}],
}
SCORES = {
    **{"rows": [{"entry": "m", "raw": 1.0, "scaled": None}], "means": [{"entry": "m", "scaled": 1.0}], "anchors": []},
    **{"significant": [], "notes": [], "preset": "p", "scorer": "s", "version": "1", "seconds": 1.0},
}
TOML = (
    '[datasets]\nd = "/data/d.h5ad"\n[training]\nd = "train"\n[zeroshot]\n"d.K562" = "test"\n'
    '[fewshot."d.H1"]\nval = ["A"]\n'
)
READERS = {
    "recipe": text("r.yaml", yaml.safe_dump(TINY), load_recipe),
    "override": text("o.txt", "train.lr=1e-4", lambda path: _override(path)),
    "split table": text("t.toml", TOML, lambda path: read_cell_load_table(path, {"K562": {"d": ""}, "H1": {"d": ""}})),
    "FASTA": text("p.fa", ">TP53 a\nMKT\n>sp|P1|X OX=9606 GN=MYC\nMAAA\n", read_proteins),
    "symbols": text("s.tsv", "symbol\tprev_symbol\nTP53\tp53|x\nMYC\t\n", lambda path: read_symbols(str(path))),
    "marker": text(".x.done.json", '{"fingerprint": "ab", "seconds": 1.0}', read_json),
    "cell store": cell_store,
    "embedding store": embedding_store,
    "split": text("split.json", json.dumps(SPLIT), Split.read),
    "scores": text("scores.json", json.dumps(SCORES), read_table),
    "protein vectors": vectors,
    "fair-esm": fair_esm,
    "SE safetensors": se_weights,
    "SE Lightning": lightning,
    "h5ad": h5ad,
    "zarr root": zarr_metadata("zarr.json"),
    "zarr table": zarr_metadata("obs/zarr.json"),
    "zarr array": zarr_metadata("X/data/zarr.json"),
}


def _override(path: Path) -> object:
    recipe = path.with_name("r.yaml")
    recipe.write_text(yaml.safe_dump(TINY))
    return load_recipe(recipe, [path.read_bytes().decode("utf-8", "surrogateescape")])


def refusal(read: Callable[[Path], object], path: Path) -> str:
    """What the reader says against a file; empty where it takes it."""
    try:
        read(path)
    except UserError as error:
        return str(error)
    return ""


def attack(reader: str, folder: Path, examples: int) -> None:
    path, read = READERS[reader](folder)
    content = path.read_bytes()

    @settings(max_examples=examples, database=None, suppress_health_check=list(HealthCheck))
    @given(damaged(content))
    def refuses_in_a_line_or_reads(data: bytes) -> None:
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = refusal(read, path)
        assert len(said) < 2500
        assert len(said.splitlines()) <= 3

    refuses_in_a_line_or_reads()


@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_file_is_read_or_refused_in_a_line(reader, tmp_path):
    attack(reader, tmp_path, 25)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_many_damaged_files_are_read_or_refused_in_a_line(reader, tmp_path):
    attack(reader, tmp_path, 1500)


@pytest.mark.parametrize("fragment", TEXTS, ids=lambda one: repr(one[:12]))
def test_a_value_of_a_recipe_may_be_anything(fragment, tmp_path):
    path = tmp_path / "r.yaml"
    for content in (b"name: " + fragment, b"name: x\ndata: {sources: [" + fragment + b"]}", fragment):
        path.write_bytes(content)
        with pytest.raises(UserError):
            load_recipe(path)
