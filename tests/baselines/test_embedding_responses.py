"""Shifts of the mean cell vector: by hand, what noise leaves of them, and what they must not know."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tiny_screens import CONTROL, dataset_of, embedded, screen, store_of

from vcc_fm.baselines import embedding_responses as module
from vcc_fm.baselines.embedding_responses import embedding_responses, mean_vector
from vcc_fm.cellsets.dataset import Dataset
from vcc_fm.store.cells import CellStore
from vcc_fm.store.embeddings import EmbeddingStore


def with_vectors(cells: CellStore, vectors: np.ndarray, folder: Path, **roles) -> Dataset:
    data = dataset_of(cells, {group: role for group in cells.group_cells if (role := roles.get(group[1]))})
    return dataclasses.replace(data, cell_vectors=embedded(folder / "given", cells.barcodes, vectors))


@pytest.fixture
def batches(tmp_path) -> CellStore:
    """One context: batch 1 with 3 controls and 1 A, batch 2 with 2 controls and 2 A, batch 3 with 1 A alone."""
    batch = ["1", "1", "1", "1", "2", "2", "2", "2", "3"]
    label = [CONTROL, CONTROL, CONTROL, "A", CONTROL, CONTROL, "A", "A", "A"]
    return store_of(tmp_path, screen(np.ones((9, 2)), "K", batch, label))


def test_a_shift_and_its_precision_by_hand(batches, tmp_path):
    vectors = np.random.default_rng(0).standard_normal((9, 3)).astype(np.float32)
    found = embedding_responses(with_vectors(batches, vectors, tmp_path))
    first, second = (batches.batches.index(label) for label in batches.batches[:2])
    is_control = batches.perturbation == batches.control_code
    one, two = (vectors[is_control & (batches.batch == batch)] for batch in (first, second))
    assert (len(one), len(two)) == (3, 2)
    both = vectors[is_control].mean(axis=0)
    controls = 0.25 * one.mean(axis=0) + 0.5 * two.mean(axis=0) + 0.25 * both
    assert found.groups == [("K", "A")]
    np.testing.assert_allclose(found.ratio[0], vectors[~is_control].mean(axis=0) - controls, atol=1e-6)
    spread = np.square(one - one.mean(axis=0)).sum() + np.square(two - two.mean(axis=0)).sum()
    variance = spread / ((5 - 2) * 3) * (1 / 4 + 0.25**2 / 3 + 0.5**2 / 2 + 0.25**2 / 5)
    np.testing.assert_allclose(found.precision[0], np.full(3, 1 / variance), rtol=1e-5)


def test_cells_without_a_vector_count_nowhere(batches, tmp_path):
    vectors = np.random.default_rng(0).standard_normal((9, 3)).astype(np.float32)
    lost = [
        np.flatnonzero(batches.perturbation == code)[0] for code in (batches.control_code, 1 - batches.control_code)
    ]
    vectors[lost] = np.nan
    data = with_vectors(batches, vectors, tmp_path)
    found = embedding_responses(data)
    assert np.isfinite(found.ratio).all()
    assert np.isfinite(found.precision).all()
    assert len(found.groups) == 1
    vectors[batches.perturbation != batches.control_code] = np.nan
    store = embedded(tmp_path / "none", batches.barcodes, vectors)
    none = embedding_responses(dataclasses.replace(data, cell_vectors=store))
    assert none.groups == []
    np.testing.assert_array_equal(none.mean_response("K", "A"), np.zeros(3))


def two_contexts(tmp_path: Path, size: float, cells: int = 40, width: int = 64, **roles) -> tuple[Dataset, np.ndarray]:
    """A moves the vectors by ``size`` times a direction, in both contexts; noise has variance 1."""
    rng = np.random.default_rng(3)
    row = np.arange(4 * cells)
    label = np.array([CONTROL, "A"])[row // 2 % 2]
    store = store_of(tmp_path, screen(np.ones((len(row), 2)), np.array(["H", "K"])[row % 2], "1", label))
    direction = rng.standard_normal(width)
    direction /= np.linalg.norm(direction)
    vectors = rng.standard_normal((len(row), width)) + 5 * store.context[:, None]
    vectors[store.perturbation != store.control_code] += size * direction
    return with_vectors(store, vectors.astype(np.float32), tmp_path, **roles), direction


def test_shrinking_keeps_the_direction_and_follows_the_noise(tmp_path):
    data, direction = two_contexts(tmp_path, 4.0)
    found = embedding_responses(data)
    raw, kept = found.ratio[found.groups.index(("H", "A"))], found.elsewhere("K", "A")
    factor = kept @ raw / (raw @ raw)
    np.testing.assert_allclose(kept, factor * raw, atol=1e-5)
    # |shift|^2 is 16, and 64 coordinates of variance 2 / 40 bring 3.2: about a sixth is noise.
    assert factor == pytest.approx(16 / 19.2, abs=0.06)
    assert kept @ direction / np.linalg.norm(kept) > 0.85


def test_no_effect_is_almost_no_shift(tmp_path):
    data, _ = two_contexts(tmp_path, 0.0)
    found = embedding_responses(data)
    assert np.linalg.norm(found.elsewhere("K", "A")) < 0.4 * np.linalg.norm(found.ratio[0])


def test_vectors_are_read_in_chunks(tmp_path, monkeypatch):
    data, _ = two_contexts(tmp_path, 1.0)
    whole = embedding_responses(data)
    longest = []
    take = EmbeddingStore.take

    def watched(store, rows, column="embedding", out=None):
        longest.append(len(rows))
        return take(store, rows, column, out)

    monkeypatch.setattr(EmbeddingStore, "take", watched)
    monkeypatch.setattr(module, "CHUNK", 7)
    np.testing.assert_allclose(embedding_responses(data).ratio, whole.ratio, atol=1e-6)
    assert max(longest) == 7
    rows = np.arange(20)
    np.testing.assert_allclose(mean_vector(data.cell_vectors, rows), data.cell_vectors.vectors[:20].mean(0), rtol=1e-5)


def test_only_training_cells_are_read(tmp_path):
    data, _ = two_contexts(tmp_path, 1.0, A="test")
    assert embedding_responses(data).groups == []
    some, _ = two_contexts(tmp_path / "some", 1.0)
    roles = some.split.roles | {("K", "A"): "validation"}
    held = dataclasses.replace(some, split=dataclasses.replace(some.split, roles=roles))
    changed = some.cell_vectors.vectors.copy()
    changed[some.cells.rows("K", "A"), 1:] = np.nan
    store = embedded(tmp_path / "changed", some.cells.barcodes, changed)
    before, after = (embedding_responses(one) for one in (held, dataclasses.replace(held, cell_vectors=store)))
    assert before.groups == after.groups == [("H", "A")]
    np.testing.assert_array_equal(before.ratio, after.ratio)
    np.testing.assert_array_equal(before.precision, after.precision)
