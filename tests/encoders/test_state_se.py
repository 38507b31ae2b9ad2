"""SE as an encoder: against arc-state end to end, and against all that must not change a cell's vector."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from state_se_checkpoints import (
    NEEDS_STATE,
    TINY,
    load_arc,
    random_names,
    random_tensors,
    tiny,
    write_folder,
)

from vcc_fm.encoders.cells.state_se_encoder import SeSettings, StateSeEncoder
from vcc_fm.encoders.cells.state_se_geometry import SeGeometry
from vcc_fm.encoders.cells.state_se_model import build_state_se
from vcc_fm.encoders.cells.state_se_tokens import Tokens
from vcc_fm.encoders.cells.state_se_weights import SeCheckpoint, load_state_se
from vcc_fm.ground.errors import UserError

PAD = 48


def checkpoint_of(geometry: SeGeometry) -> SeCheckpoint:
    return SeCheckpoint(geometry, random_names(geometry), random_tensors(geometry), "random", None, ())


CHECKPOINT = checkpoint_of(TINY)
OTHERS = [f"OTHER{number}" for number in range(20)]
COLUMNS = np.random.default_rng(1).permutation([*CHECKPOINT.names[:100], *OTHERS]).tolist()
KNOWN = np.isin(COLUMNS, CHECKPOINT.names)


def encoder_of(columns: list[str] = COLUMNS, checkpoint: SeCheckpoint = CHECKPOINT, **settings: Any) -> StateSeEncoder:
    return StateSeEncoder(checkpoint, columns, SeSettings(**{"pad_length": PAD} | settings))


def poisson_cells(cells: int, mean: float = 1.0, columns: int = len(COLUMNS), seed: int = 0) -> sp.csr_matrix:
    """Counts with ties at the cut, genes of many means and cells of many depths."""
    rng = np.random.default_rng(seed)
    rates = mean * rng.gamma(0.5, 2.0, columns) * rng.gamma(2.0, 0.5, (cells, 1))
    return sp.csr_matrix(rng.poisson(rates).astype(np.float32))


def cells_without_ties(cells: int, columns: int, expressed: int, seed: int = 0) -> np.ndarray:
    """[cells, columns] counts, ``expressed`` of them above 0, all of these different."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((cells, columns), np.float32)
    for row in counts:
        row[rng.choice(columns, expressed, replace=False)] = 1 + rng.choice(20_000, expressed, replace=False)
    return counts


def encoded(encoder: StateSeEncoder, rows: sp.csr_matrix) -> np.ndarray:
    """Cell and data set vectors side by side."""
    return np.hstack(encoder.encode(rows))


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.tobytes() == other.tobytes()


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before, "the encoder leaves torch with another number of threads"


# ----------------------------------------------------------------------------------------- arc-state from end to end
@pytest.fixture(scope="module", params=[128, 1024])
def arc(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """arc-state's Inference, the same checkpoint here, and the pad."""
    pytest.importorskip("state", reason=NEEDS_STATE)
    geometry = tiny(1400)
    checkpoint = checkpoint_of(geometry)
    folder = tmp_path_factory.mktemp("arc")
    inference = load_arc(folder, checkpoint.tensors, checkpoint.names, geometry, request.param)
    return inference, checkpoint, request.param


# Its warnings would be printed with lines of its source.
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("logged", [True, False], ids=["log", "raw"])
def test_equals_arc_state_end_to_end(arc: Any, logged: bool, tmp_path: Path) -> None:
    inference, checkpoint, pad = arc
    rng = np.random.default_rng(5)
    unknown = [f"OTHER{number}" for number in range(140)]
    columns = rng.permutation([*rng.permutation(checkpoint.names)[:1260].tolist(), *unknown]).tolist()
    # Arc-state needs genes with a value below 1 in every cell; no cell expresses all.
    matrix = cells_without_ties(20, 1400, 1200)
    if logged:
        matrix = np.where(matrix > 0, rng.gamma(2.0, 1.0, matrix.shape), 0).astype(np.float32)
    assert ((matrix[:, np.isin(columns, checkpoint.names)] > 0).sum(1) > pad).all()
    file = tmp_path / "cells.h5ad"
    anndata.AnnData(sp.csr_matrix(matrix), var=pd.DataFrame(index=columns)).write_h5ad(file)
    theirs = inference.encode_adata(str(file), None)
    encoder = encoder_of(columns, checkpoint, mode="compat", pad_length=pad)
    vectors, datasets = encoder.encode(sp.csr_matrix(matrix))
    assert theirs.shape == (20, encoder.width + encoder.dataset_width) == (20, 42)
    np.testing.assert_allclose(vectors, theirs[:, :32], rtol=0, atol=1e-5)
    np.testing.assert_allclose(datasets, theirs[:, 32:], rtol=0, atol=1e-5)
    assert np.abs(vectors[1:] - vectors[:-1]).max(axis=1).min() > 1e-3, "all cells look alike, so any would do"


# --------------------------------------------------------------------------------- what must not change a cell's bits
CELLS = poisson_cells(64, 0.5)


@pytest.fixture(scope="module")
def alone() -> np.ndarray:
    """Vectors of CELLS, each embedded by itself."""
    encoder = encoder_of()
    return np.vstack([encoded(encoder, CELLS[row]) for row in range(64)])


@pytest.mark.parametrize("size", [7, 64])
def test_the_batch_changes_no_bit(alone: np.ndarray, size: int) -> None:
    encoder = StateSeEncoder(CHECKPOINT, COLUMNS, SeSettings(pad_length=PAD), batch_cells=size)
    found = np.vstack([encoded(encoder, CELLS[start : start + size]) for start in range(0, 64, size)])
    assert same_bits(found, alone)


def test_neighbours_and_their_order_change_no_bit(alone: np.ndarray) -> None:
    order = np.random.default_rng(2).permutation(64)
    encoder = encoder_of()
    assert same_bits(encoded(encoder, CELLS[order]), alone[order])
    assert same_bits(encoded(encoder, sp.vstack([poisson_cells(9, 3.0, seed=3), CELLS]).tocsr())[9:], alone)


def test_the_order_of_columns_changes_no_bit(alone: np.ndarray) -> None:
    order = np.random.default_rng(3).permutation(len(COLUMNS))
    encoder = encoder_of([COLUMNS[place] for place in order])
    moved = CELLS[:, order]
    assert same_bits(encoded(encoder, moved), alone)
    moved.sort_indices()
    assert same_bits(encoded(encoder, moved), alone)


@pytest.mark.parametrize(
    "kind",
    [np.int32, pytest.param(np.int64, marks=pytest.mark.slow), pytest.param(np.float64, marks=pytest.mark.slow)],
)
def test_the_type_of_the_counts_changes_no_bit(alone: np.ndarray, kind: type[np.number]) -> None:
    assert same_bits(encoded(encoder_of(), CELLS.astype(kind)), alone)


def test_the_number_of_threads_changes_no_bit() -> None:
    """Wide enough for a matrix product to be shared out."""
    geometry = SeGeometry(256, 256, 2, 4, 32, 640, 1100, 7)
    checkpoint = checkpoint_of(geometry)
    rows = poisson_cells(6, 0.3, 1100)
    before, found = torch.get_num_threads(), {}
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            encoder = encoder_of(checkpoint.names, checkpoint, pad_length=1024)
            found[threads] = encoded(encoder, rows)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert same_bits(found[1], found[2])
    assert same_bits(found[1], found[3])


@pytest.mark.parametrize(
    ("width", "hidden", "pad"),
    [
        (64, 96, 200),
        (64, 80, 65),
        (512, 512, 200),
        pytest.param(256, 256, 257, marks=pytest.mark.slow),
        pytest.param(512, 1024, 65, marks=pytest.mark.slow),
        pytest.param(1024, 1024, 129, marks=pytest.mark.slow),
    ],
)
def test_neighbours_change_no_bit_whatever_the_geometry(width: int, hidden: int, pad: int) -> None:
    """Widths on both sides of where other kernels take over."""
    geometry = SeGeometry(width, hidden, 2, 8, 48, 32, 400, 7)
    checkpoint = checkpoint_of(geometry)
    encoder, rows = encoder_of(checkpoint.names, checkpoint, pad_length=pad), poisson_cells(13, 0.3, 400)
    together = encoded(encoder, rows)
    assert same_bits(np.vstack([encoded(encoder, rows[row]) for row in range(13)]), together)
    assert same_bits(np.vstack([encoded(encoder, rows[:4]), encoded(encoder, rows[4:])]), together)


def test_a_short_neighbour_changes_no_bit() -> None:
    """30 known genes fill 29 places, or repeat; a cell of 30 has none to fill them with and is shorter."""
    columns = CHECKPOINT.names[:30]
    encoder = encoder_of(columns, pad_length=32)
    rows = sp.vstack([poisson_cells(5, 0.5, 30), cells_without_ties(2, 30, 30)]).tocsr()
    tokens = encoder.tokenizer().tokenize(rows)
    assert len(set(tokens.length.tolist())) > 1
    alone = np.vstack([encoded(encoder, rows[row]) for row in range(7)])
    assert same_bits(encoded(encoder, rows), alone)


def test_another_seed_draws_other_genes() -> None:
    assert np.abs(encoded(encoder_of(seed=1), CELLS) - encoded(encoder_of(), CELLS)).max() > 1e-3
    # 120 columns, 100 known: nothing is left to draw where all fit and all are expressed.
    full = sp.csr_matrix(cells_without_ties(3, len(COLUMNS), len(COLUMNS)))
    assert same_bits(encoded(encoder_of(seed=1, pad_length=101), full), encoded(encoder_of(pad_length=101), full))


# --------------------------------------------------------------------------------------------------- what is computed
def test_modes_differ_in_the_cls_value_alone() -> None:
    rows = sp.csr_matrix(cells_without_ties(8, len(COLUMNS), 110))
    exact, compat = encoder_of(), encoder_of(mode="compat")
    ours, theirs = exact.tokenizer().tokenize(rows), compat.tokenizer().tokenize(rows)
    for field in ("ids", "values", "multiplicity", "length", "empty"):
        np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field))
    assert (ours.cls_value == 0).all()
    fourth = np.flatnonzero(KNOWN)[3]
    logs = np.log1p(rows.toarray()[:, KNOWN].astype(np.float64))
    np.testing.assert_allclose(
        theirs.cls_value, 100 * np.log1p(rows.toarray()[:, fourth]) / logs.sum(1), rtol=1e-5, atol=0
    )
    assert (theirs.cls_value > 0).sum() >= 6
    changed = np.abs(np.hstack(exact.embed(ours)) - np.hstack(compat.embed(theirs))).max(axis=1) > 1e-6
    np.testing.assert_array_equal(changed, theirs.cls_value > 0)
    levelled = dataclasses.replace(ours, cls_value=theirs.cls_value)
    assert same_bits(np.hstack(exact.embed(levelled)), np.hstack(compat.embed(theirs)))


@pytest.mark.parametrize("mode", ["exact", "compat"])
def test_a_short_cell_is_the_network_on_its_whole_sequence(mode: str) -> None:
    """100 known genes in a sequence of 300 places: silent genes repeat, and are computed once."""
    encoder, rows = encoder_of(mode=mode, pad_length=301), poisson_cells(12, 0.5)
    tokens = encoder.tokenizer().tokenize(rows)
    assert (tokens.multiplicity.sum(1) == 300).all()
    assert (tokens.length <= 100).all()
    # Over the whole vocabulary, as ids count: so a wrong row of the encoder's smaller table would show.
    network = build_state_se(TINY, CHECKPOINT.tensors)
    parts = [
        network(
            torch.from_numpy(np.repeat(tokens.ids[cell], tokens.multiplicity[cell])).long()[None],
            torch.from_numpy(np.repeat(tokens.values[cell], tokens.multiplicity[cell]))[None],
            torch.from_numpy(tokens.cls_value[cell : cell + 1]),
        )
        for cell in range(12)
    ]
    vectors, datasets = encoder.embed(tokens)
    np.testing.assert_allclose(vectors, torch.cat([cell for cell, _ in parts]).numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(datasets, torch.cat([dataset for _, dataset in parts]).numpy(), rtol=0, atol=1e-5)


def test_cells_computed_together_as_on_a_gpu_are_the_same_up_to_rounding() -> None:
    """Cells of different lengths in one batch, with repeated tokens and places without any."""
    encoder = encoder_of(pad_length=301)
    rows = sp.vstack([poisson_cells(6, 0.2), poisson_cells(6, 20.0)]).tocsr()
    tokens = encoder.tokenizer().tokenize(rows)
    assert len(set(tokens.length.tolist())) > 3
    together = encoder._forward(tokens, np.arange(12)).numpy()
    np.testing.assert_allclose(together, np.hstack(encoder.embed(tokens)), rtol=0, atol=1e-6)


def test_unmeasured_columns_are_as_columns_that_are_not_there() -> None:
    measured = np.random.default_rng(4).random(len(COLUMNS)) < 0.6
    rows = sp.csr_matrix(poisson_cells(10, 0.3).multiply(measured))
    # Fewer measured genes than places, so that every silent one among them takes part.
    encoder = encoder_of(pad_length=90)
    tokens = encoder.tokenizer(measured).tokenize(rows)
    subset = encoder_of([name for name, on in zip(COLUMNS, measured, strict=True) if on], pad_length=90)
    theirs = subset.tokenizer().tokenize(rows[:, measured])
    for field in dataclasses.fields(Tokens):
        np.testing.assert_array_equal(getattr(tokens, field.name), getattr(theirs, field.name))
    allowed = encoder.genes.ids[measured & KNOWN]
    for cell in range(10):
        assert set(tokens.ids[cell, : tokens.length[cell]]) <= set(allowed)
    found = np.hstack(encoder.embed(tokens))
    np.testing.assert_allclose(found, encoded(subset, rows[:, measured]), rtol=0, atol=1e-6)
    assert np.abs(found - encoded(encoder, rows)).max(axis=1).min() > 1e-4


@pytest.mark.parametrize("target", [None, 1e4])
def test_depth_matters_unless_it_is_scaled_away(target: float | None) -> None:
    rows = poisson_cells(5, 5.0)
    # All columns take part, so that no draw, which depends on the counts, comes in.
    encoder = encoder_of([*CHECKPOINT.names[:120]], target_sum=target, pad_length=121)
    apart = np.abs(encoded(encoder, rows * 4) - encoded(encoder, rows)).max()
    assert apart < 1e-5 if target else apart > 1e-3


def test_vectors_have_unit_length_and_only_empty_cells_have_none() -> None:
    rows = poisson_cells(40, 0.5).tolil()
    rows[3] = 0
    rows[17] = 0
    rows[17, np.flatnonzero(~KNOWN)[0]] = 5  # expresses, but nothing that the checkpoint knows
    vectors, datasets = encoder_of().encode(rows.tocsr())
    assert vectors.shape == (40, 32)
    assert datasets.shape == (40, 10)
    assert vectors.dtype == datasets.dtype == np.float32
    empty = np.isin(np.arange(40), [3, 17])
    np.testing.assert_array_equal(np.isnan(vectors), np.repeat(empty[:, None], 32, 1))
    np.testing.assert_array_equal(np.isnan(datasets), np.repeat(empty[:, None], 10, 1))
    np.testing.assert_allclose(np.linalg.norm(vectors[~empty], axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("cells", [0, 1, 5])
def test_no_cells_and_empty_cells(cells: int) -> None:
    vectors, datasets = encoder_of().encode(sp.csr_matrix((cells, len(COLUMNS)), dtype=np.float32))
    assert vectors.shape == (cells, 32)
    assert datasets.shape == (cells, 10)
    assert np.isnan(vectors).all()
    assert np.isnan(datasets).all()


def test_progress_counts_the_cells_that_have_a_vector() -> None:
    rows = poisson_cells(5)
    rows = sp.vstack([rows[:2], sp.csr_matrix((1, len(COLUMNS)), dtype=np.float32), rows[2:]]).tocsr()
    said: list[int] = []
    encoder = encoder_of()
    encoder.embed(encoder.tokenizer().tokenize(rows), said.append)
    assert said == [1, 2, 3, 4, 5]


def test_bfloat16_is_close_and_not_the_same() -> None:
    rows = sp.vstack([poisson_cells(20, 0.3), poisson_cells(20, 5.0)]).tocsr()
    for pad in (PAD, 301):
        settings = SeSettings(pad_length=pad)
        full = StateSeEncoder(CHECKPOINT, COLUMNS, settings).encode(rows)[0]
        half = StateSeEncoder(CHECKPOINT, COLUMNS, settings, torch.bfloat16).encode(rows)[0]
        assert half.dtype == np.float32
        assert (full * half).sum(1).min() >= 0.999
        assert np.abs(full - half).max() > 1e-4


# ----------------------------------------------------------------------------------------------------- what it says
def test_it_says_what_it_is(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "se", CHECKPOINT.tensors, CHECKPOINT.names)
    loaded = load_state_se(str(folder))
    settings = SeSettings("compat", 77, None, 5)
    encoder = StateSeEncoder(loaded, COLUMNS, settings, torch.bfloat16)
    said = encoder.describe()
    digests = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    assert said["encoder"] == "state-se"
    assert said["checkpoint"] == {"name": "se", "heads": 4, "sha256": digests}
    assert len(digests) == 3
    assert said["parameters"] == {
        "mode": "compat",
        "pad_length": 77,
        "target_sum": None,
        "seed": 5,
        "dtype": "bfloat16",
        "device": "cpu",
    }
    assert "Non-commercial" in str(said["licence"])
    assert "10.1101/2025.06.26.661135" in str(said["citation"])
    assert encoder_of(target_sum=1e4).describe()["parameters"] == {
        "mode": "exact",
        "pad_length": PAD,
        "target_sum": 1e4,
        "seed": 0,
        "dtype": "float32",
        "device": "cpu",
    }


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: encoder_of(OTHERS), r"genes: 0 of 20 gene names are among the checkpoint's 150 symbols"),
        (lambda: encoder_of([*COLUMNS, CHECKPOINT.names[0]]).tokenizer(), "1 gene names repeat, the first is"),
        (lambda: encoder_of(pad_length=1).tokenizer(), "pad_length=1: one token is CLS"),
        (lambda: encoder_of(mode="compat", target_sum=1e4).tokenizer(), "mode compat takes values as they are"),
        (lambda: encoder_of().encode(CELLS * 0.5), r"row 0, gene '\w+': 0.5 is no count"),
        (lambda: encoder_of().encode(CELLS * -1), r"row 0, gene '\w+': -\d+ is negative or not finite"),
    ],
)
def test_what_cannot_be_embedded_is_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()
