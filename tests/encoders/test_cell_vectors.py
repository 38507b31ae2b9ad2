"""The embed stage: the encoder is fitted on controls and run over all cells."""

import io
from pathlib import Path

import numpy as np
import pytest
from accelerate import PartialState
from rich.console import Console
from tiny_screens import CONTROL, screen, store_of

from vcc_fm.encoders.cells import embed, expression
from vcc_fm.encoders.cells.expression import Expression, ExpressionEncoder, ExpressionSettings
from vcc_fm.run.layout import Layout
from vcc_fm.store.cells import CellStore
from vcc_fm.store.embeddings import EmbeddingStore


def embed_cells(folder: Path, cells: CellStore, width: int = 2) -> tuple[EmbeddingStore, str]:
    said = Console(file=io.StringIO(), width=200)
    encoder = Expression(ExpressionSettings(width=width))
    embed.embed_cells(folder, cells, encoder, "e" * 64, PartialState(cpu=True), said)
    return EmbeddingStore(folder), said.file.getvalue()


@pytest.fixture
def cells(tmp_path) -> CellStore:
    rng = np.random.default_rng(0)
    labels = np.array([CONTROL, "A", CONTROL, "B"])[np.arange(60) % 4]
    first = screen(rng.poisson(3.0, (60, 6)), "K", "1", labels)
    second = screen(rng.poisson(3.0, (60, 5)), "H", "1", labels, list("bcdef"))
    return store_of(tmp_path, first, second)


def test_all_cells_are_encoded_by_what_the_controls_taught(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "SHARD", 50)
    store, said = embed_cells(tmp_path / "vectors", cells)
    assert store.keys.tolist() == cells.barcodes.tolist()
    controls = cells.sparse(cells.rows(perturbation=CONTROL))
    encoder = ExpressionEncoder.fit(controls, np.arange(6) > 0, 2, 1e4)
    np.testing.assert_array_equal(store.vectors, encoder.encode(cells.sparse(np.arange(len(cells)))))
    assert "120/120 cells" in said
    assert store.meta["fitted_on"] == "60 control cells"
    assert store.meta["cells"] == cells.fingerprint
    read = ExpressionEncoder.load(tmp_path / "vectors" / "encoder.safetensors", 2, 6)
    np.testing.assert_array_equal(read.components, encoder.components)


def test_a_large_store_is_sampled_evenly(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(expression, "FIT_CELLS", 20)
    store, _ = embed_cells(tmp_path / "vectors", cells)
    controls = cells.rows(perturbation=CONTROL)
    sample = controls[np.linspace(0, 59, 20).astype(int)]
    assert len(set(cells.context[sample])) == 2
    encoder = ExpressionEncoder.fit(cells.sparse(sample), np.arange(6) > 0, 2, 1e4)
    np.testing.assert_array_equal(store.vectors, encoder.encode(cells.sparse(np.arange(len(cells)))))
    assert store.meta["fitted_on"] == "20 control cells"


def test_the_same_cells_give_the_same_bytes(cells, tmp_path):
    folders = [embed_cells(tmp_path / name, cells)[0].folder for name in ("one", "two")]
    one, two = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert one == two


def test_the_stages_leave_stores_that_fit_together(tiny_run):
    layout = Layout(tiny_run)
    cells, vectors = CellStore(layout.cells.path), EmbeddingStore(layout.cell_embeddings.path)
    assert vectors.keys.tolist() == cells.barcodes.tolist()
    assert vectors.meta["cells"] == cells.fingerprint
    assert set(cells.perturbations) - {cells.control} <= set(EmbeddingStore(layout.proteins.path).keys)
