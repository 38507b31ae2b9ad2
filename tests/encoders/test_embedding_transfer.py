"""The baseline that predicts genes from a moved cell vector: by hand, on a rigged decoder, and in a whole run."""

from __future__ import annotations

import dataclasses
import io
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from rich.console import Console
from state_se_checkpoints import TINY, random_names, random_tensors, tiny, write_folder
from tiny_screens import CONTROL, dataset_of, screen, store_of
from torch import Tensor

from vcc_fm.baselines.embedding_responses import embedding_responses
from vcc_fm.baselines.embedding_transfer import EmbeddingTransfer
from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.cellsets.sampler import CellSet
from vcc_fm.encoders.cells.state_se import StateSeSettings
from vcc_fm.encoders.cells.state_se_decoder import StateSeGeneDecoder
from vcc_fm.prediction.predictors import RatioPredictor
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.run.stages import run_stage, stages_of
from vcc_fm.store.embeddings import EmbeddingStore, write_embeddings

CPU, QUIET = torch.device("cpu"), Console(quiet=True)
NAMES = random_names(TINY)
GENES = [*NAMES[20:30], "UNKNOWN1", *NAMES[5:15], "UNKNOWN2"]
KNOWN = np.array([not gene.startswith("UNKNOWN") for gene in GENES])
TARGETS = ["A", "B", "C", "D"]
CONTEXTS = ("H", "K", "T")
ROLES = {("T", label): "test" for label in TARGETS} | {(context, "D"): "unused" for context in "HK"}
ASKED = [("T", label) for label in TARGETS]


def se_vectors(folder: Path, keys: np.ndarray, vectors: np.ndarray, dataset_vectors: np.ndarray) -> EmbeddingStore:
    """An embedding store as the SE encoder leaves it."""
    folder.mkdir(parents=True)
    further = datasets.Features({"dataset_vector": datasets.List(datasets.Value("float32"), length=10)})
    column = pa.FixedSizeListArray.from_arrays(pa.array(dataset_vectors.astype(np.float32).ravel()), 10)
    meta = {"encoder": "state-se", "licence": "", "citation": ""}
    write_embeddings(folder, "barcode", [(keys, vectors, column)], vectors.shape[1], "e" * 64, meta, further)
    return EmbeddingStore(folder)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("random") / "se", random_tensors(TINY), NAMES)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Three contexts with four perturbations; in T all are held out, and D is seen nowhere."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    row = np.arange(3 * 6 * 15)
    label = np.array([CONTROL, CONTROL, *TARGETS])[row // 3 % 6]
    batch = np.array(["1", "2"])[row // 18 % 2]
    counts = rng.poisson(rng.gamma(0.5, 3.0, len(GENES)), (len(row), len(GENES)))
    cells = store_of(folder, screen(counts, np.array(CONTEXTS)[row % 3], batch, label, GENES))
    plain = dataset_of(cells, ROLES)
    moves = rng.standard_normal((len(cells.perturbations), TINY.output))
    moves[cells.control_code] = 0
    vectors = 2 * rng.standard_normal((3, TINY.output))[cells.context] + 0.8 * moves[cells.perturbation]
    vectors = unit(vectors + 0.5 * rng.standard_normal(vectors.shape)).astype(np.float32)
    return dataclasses.replace(
        plain, cell_vectors=se_vectors(folder / "se", cells.barcodes, vectors, rng.standard_normal((len(cells), 10)))
    )


def with_vectors(data: Dataset, folder: Path, vectors: np.ndarray) -> Dataset:
    rows = np.arange(len(data.cells))
    return dataclasses.replace(
        data,
        cell_vectors=se_vectors(folder, data.cells.barcodes, vectors, data.cell_vectors.take(rows, "dataset_vector")),
    )


def load(data: Dataset, checkpoint: Path, asked: list[tuple[str, str]] = ASKED, **keys: Any) -> EmbeddingTransfer:
    return prepared(data, asked, QUIET, model=str(checkpoint), **keys)


def prepared(data: Dataset, asked: list[tuple[str, str]], console: Console, **keys: Any) -> EmbeddingTransfer:
    transfer = EmbeddingTransfer(dataclasses.replace(data, cell_encoder=StateSeSettings(**keys)))
    transfer.prepare(asked, CPU, console)
    return transfer


def expected(data: Dataset, shift: np.ndarray, scale_to: float | None = None) -> np.ndarray:
    """The log ratios of the known genes in T, from the definition."""
    tensors = random_tensors(TINY)
    ids = [NAMES.index(gene) for gene in np.array(GENES)[KNOWN]]
    decoder = StateSeGeneDecoder.from_tensors(tensors, tensors["pe_embedding.weight"][ids])
    rows = data.cells.rows("T", CONTROL)
    start = data.cell_vectors.take(rows).astype(float).mean(axis=0)
    dataset_vector = data.cell_vectors.take(rows, "dataset_vector").mean(axis=0)
    counts = data.cells.dense(rows).astype(float)
    if scale_to is not None:
        counts *= scale_to / counts.sum(axis=1, keepdims=True)
    depth = np.mean([np.log1p(cell[cell > 0]).mean() for cell in counts[:, KNOWN]])
    cells = torch.from_numpy(unit(np.stack([start, start + shift]))).float()
    found = decoder.decode(cells, torch.from_numpy(dataset_vector).expand(2, 10), float(depth)).clamp(min=0)
    return (found[1] - found[0]).numpy()


# ----------------------------------------------------------------------------------------------- what is predicted
def test_the_shift_of_other_contexts_is_decoded(data, checkpoint):
    transfer, responses = load(data, checkpoint), embedding_responses(data)
    for perturbation in "ABC":
        found = transfer.log_ratio("T", perturbation)
        assert found.dtype == np.float32
        shift = responses.elsewhere("T", perturbation)
        assert np.linalg.norm(shift) > 0.1
        np.testing.assert_allclose(found[KNOWN], expected(data, shift), atol=2e-6)
    assert np.abs(transfer.log_ratio("T", "A") - transfer.log_ratio("T", "B")).max() > 0.01


def test_what_was_seen_nowhere_has_the_mean_shift(data, checkpoint):
    responses = embedding_responses(data)
    assert responses.elsewhere("T", "D") is None
    mean = responses.ratio.mean(axis=0)
    assert np.linalg.norm(mean) > 0.1
    np.testing.assert_allclose(load(data, checkpoint).log_ratio("T", "D")[KNOWN], expected(data, mean), atol=2e-6)


def test_the_read_depth_is_that_of_the_counts_that_were_embedded(data, checkpoint):
    shift = embedding_responses(data).elsewhere("T", "A")
    plain, scaled = expected(data, shift), expected(data, shift, 500.0)
    assert np.abs(plain - scaled).max() > 1e-4
    np.testing.assert_allclose(load(data, checkpoint, scale_to=500.0).log_ratio("T", "A")[KNOWN], scaled, atol=2e-6)


def test_no_shift_is_a_ratio_of_exactly_zero(data, checkpoint):
    nothing = dataclasses.replace(
        data, split=dataclasses.replace(data.split, roles=dict.fromkeys(data.split.roles, "test"))
    )
    asked = [(context, label) for context in CONTEXTS for label in TARGETS]
    transfer = load(nothing, checkpoint, asked)
    assert all(not transfer.log_ratio(*group).any() for group in asked)


def test_genes_that_the_checkpoint_does_not_know_stay_and_are_counted(data, checkpoint):
    said = io.StringIO()
    transfer = prepared(data, ASKED, Console(file=said, width=200), model=str(checkpoint))
    assert "embedding-transfer: 20 of 22 genes decoded, the other 2 stay at control" in said.getvalue()
    assert "embedding-transfer: 5/5 decoded vectors" in said.getvalue()
    for group in ASKED:
        np.testing.assert_array_equal(transfer.log_ratio(*group)[~KNOWN], 0)


def test_a_group_does_not_depend_on_its_company_or_on_the_threads(data, checkpoint):
    together = load(data, checkpoint)
    for group in ASKED:
        np.testing.assert_array_equal(load(data, checkpoint, [group]).log_ratio(*group), together.log_ratio(*group))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 if threads == 1 else 1)
        other = load(data, checkpoint)
    finally:
        torch.set_num_threads(threads)
    for group in ASKED:
        np.testing.assert_array_equal(other.log_ratio(*group), together.log_ratio(*group))


def test_negative_expression_is_none(data, checkpoint, tmp_path):
    tensors = random_tensors(TINY)
    tensors["binary_decoder.2.bias"] = tensors["binary_decoder.2.bias"] - 100
    dark = load(data, write_folder(tmp_path / "dark", tensors, NAMES))
    assert all(not dark.log_ratio(*group).any() for group in ASKED)


def test_the_ratio_is_applied_as_that_of_every_baseline(data, checkpoint):
    transfer = load(data, checkpoint)
    rows = data.context_controls["T"][:3]
    found = RatioPredictor(data, transfer.log_ratio).log_share(CellSet("T", "A", rows, None, False, False, 0), 0.5)
    logits = data.log_shares[data.cells.batch[rows]] + 0.5 * transfer.log_ratio("T", "A")
    np.testing.assert_allclose(found, torch.log_softmax(torch.from_numpy(logits), 1), atol=1e-5)


# -------------------------------------------------------------------------------------------------------- what is read
def test_no_vector_of_a_held_out_cell_is_read(data, checkpoint, tmp_path):
    vectors = data.cell_vectors.vectors.copy()
    for context, label in [*ASKED, ("H", "D"), ("K", "D")]:
        # Not the first number, by which cells without a vector are told.
        vectors[data.cells.rows(context, label), 1:] = np.nan
    blind = with_vectors(data, tmp_path / "blind", vectors)
    before, after = load(data, checkpoint), load(blind, checkpoint)
    for group in ASKED:
        np.testing.assert_array_equal(before.log_ratio(*group), after.log_ratio(*group))
    # That the check can fail: a training cell is read.
    vectors[data.cells.rows("H", "A")[0], 1:] = np.nan
    touched = with_vectors(data, tmp_path / "touched", vectors)
    assert np.isnan(embedding_responses(touched).ratio).any()


def test_cells_without_a_vector_are_left_out(data, checkpoint, tmp_path):
    vectors = data.cell_vectors.vectors.copy()
    lost = np.concatenate([data.cells.rows("T", CONTROL)[:4], data.cells.rows("H", "A")[:4]])
    vectors[lost] = np.nan
    found = load(with_vectors(data, tmp_path / "lost", vectors), checkpoint).log_ratio("T", "A")
    assert np.isfinite(found).all()
    assert found.any()


# --------------------------------------------------------------------------------------------------- a rigged decoder
BIG, LEVEL = 1e3, 3.0


def rigged(slopes: np.ndarray) -> dict[str, Tensor]:
    """A checkpoint that decodes ``LEVEL + slopes[kind] @ cell`` for genes of two kinds, by the sign of their vectors.

    Hidden unit k of block 0 is open for genes of kind k alone, and the two add up in one channel. Another channel
    holds so large a constant that every cell has the same scale in the layer norms; a third, which holds nothing, is
    subtracted to take their mean away.
    """
    tensors = random_tensors(TINY)
    d, width = TINY.width, TINY.width + TINY.output + 11
    for key in tensors:
        if key.startswith(("encoder.", "gene_embedding_layer.", "binary_decoder.")):
            tensors[key] = torch.zeros_like(tensors[key])
    for layer in ("encoder.1", "gene_embedding_layer.1", "binary_decoder.0.layer_norm", "binary_decoder.1.layer_norm"):
        tensors[f"{layer}.weight"] += 1
    # A gene's embedding is SiLU of -1 and 1 in turns, its sign that of the first number of its protein vector.
    kind = torch.arange(TINY.genes) % 2
    tensors["pe_embedding.weight"][:, 0] = (100.0 * (1 - 2 * kind)).float()
    for layer in ("encoder.0", "gene_embedding_layer.0"):
        tensors[f"{layer}.weight"][:, 0] = torch.tensor([1.0, -1.0]).repeat(d // 2)
    high, low = F.silu(torch.tensor(1.0)).item(), F.silu(torch.tensor(-1.0)).item()
    first = tensors["binary_decoder.0.intermediate_dense.weight"]
    for k in range(2):
        first[k, k] = 100 / (high - low)
        first[k, d : d + TINY.output] = torch.from_numpy(slopes[k]).float()
        tensors["binary_decoder.0.intermediate_dense.bias"][k] = LEVEL - 100 * high / (high - low)
    # Dataset channels 0, 1 and 2; the cells' own dataset vectors are 0.
    out, still, huge = width - 10, width - 9, width - 8
    tensors["binary_decoder.0.dense.weight"][out, :2] = 1
    tensors["binary_decoder.0.dense.bias"][huge] = BIG
    deviation = BIG * np.sqrt(width - 1) / width
    tensors["binary_decoder.2.weight"][0, out] = deviation
    tensors["binary_decoder.2.weight"][0, still] = -deviation
    return tensors


def test_a_known_linear_decoder_gives_the_known_ratio(data, tmp_path):
    slopes = np.random.default_rng(5).standard_normal((2, TINY.output))
    folder = write_folder(tmp_path / "rigged", rigged(slopes), NAMES)
    rows = np.arange(len(data.cells))
    flat = se_vectors(tmp_path / "flat", data.cells.barcodes, data.cell_vectors.take(rows), np.zeros((len(rows), 10)))
    data = dataclasses.replace(data, cell_vectors=flat)
    transfer, responses = load(data, folder), embedding_responses(data)
    kind = np.array([NAMES.index(gene) % 2 for gene in np.array(GENES)[KNOWN]])
    assert 5 < kind.sum() < 15
    start = data.cell_vectors.take(data.cells.rows("T", CONTROL)).astype(float).mean(axis=0)
    for perturbation in "ABC":
        moved = unit(start + responses.elsewhere("T", perturbation)) - unit(start)
        found = transfer.log_ratio("T", perturbation)[KNOWN]
        assert np.abs(slopes @ moved).max() > 0.3
        np.testing.assert_allclose(found, (slopes @ moved)[kind], atol=5e-3)


# --------------------------------------------------------------------------------------------------------- in a recipe
def recipe_of(folder: Path, checkpoint: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "transfer",
        "output": str(folder),
        "data": {
            "simulate": {
                "contexts": ["alpha", "beta", "gamma"],
                "perturbations": 8,
                "genes": 40,
                "cells": 12,
                "controls": 40,
                "depth": 2000.0,
            }
        },
        "embed": {
            "cells": {"encoder": "state-se", "model": str(checkpoint), "pad_length": 24},
            "proteins": {"kmer": 1},
        },
        "split": {"hold_out": "few-shot", "contexts": ["gamma"], "test": 3, "validation": 0.4, "unseen": 0.34},
        "decoder": {
            "gene_rank": 4,
            "backbone": {
                "model_type": "llama",
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "vocab_size": 1,
            },
        },
        "train": {"steps": 2, "set_size": 8, "batch_sets": 4, "eval_every": 2, "tracker": "none"},
        "predict": {"effect_scale": "validation"},
        "score": {"baselines": ["control", "embedding-transfer"]},
    } | changes


def test_the_baseline_needs_the_encoder(tmp_path):
    with pytest.raises(ValidationError, match=r"embed\.cells\.encoder=state-se, found expression; change"):
        Recipe.model_validate(recipe_of(tmp_path, tmp_path, embed={"cells": {"encoder": "expression"}}))
    Recipe.model_validate(recipe_of(tmp_path, tmp_path))


def test_another_checkpoint_makes_other_predictions(checkpoint, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint, copy)
    marks = []
    for _ in range(2):
        layout = Layout(Recipe.model_validate(recipe_of(tmp_path, copy)))
        marks.append((layout.predictions.fingerprint, layout.calibration(0).fingerprint))
        write_folder(copy, random_tensors(TINY, seed=12), NAMES)
    assert not set(marks[0]) & set(marks[1])


@pytest.mark.slow
def test_a_whole_run_has_a_row_in_the_table(tmp_path):
    geometry = tiny(45)
    names = [f"SIM{number:04d}" for number in range(45, 2, -1)] + ["P1", "P2"]
    checkpoint = write_folder(tmp_path / "se", random_tensors(geometry), names)
    recipe = Recipe.model_validate(recipe_of(tmp_path, checkpoint))
    said = io.StringIO()
    console = Console(file=said, width=200)
    for stage in stages_of(recipe):
        run_stage(stage, recipe, console)
    assert said.getvalue().count("embedding-transfer: 38 of 40 genes decoded") == 2  # calibrate, predict
    table = pd.read_csv(Layout(recipe).scores.path.with_suffix(".csv"))
    rows = table[table["entry"] == "embedding-transfer"]
    assert set(rows["kind"]) == {"baseline"}
    assert rows["raw"].notna().any()
    assert [stage.name for stage in stages_of(recipe) if stage.faults(Layout(recipe))] == []
