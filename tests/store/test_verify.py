"""A store that is not what was written is found out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from program import vcc_fm
from tiny_screens import CONTROL, screen, store_of

from vcc_fm.ground.errors import UserError
from vcc_fm.ground.files import read_json, sha256_file
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.store.arrow import DATA_FILE
from vcc_fm.store.description import write_store_json
from vcc_fm.store.embeddings import write_embeddings
from vcc_fm.store.verify import verify


@pytest.fixture(params=["cells", "proteins", "cell_embeddings"])
def store(request: pytest.FixtureRequest, tiny_run: Recipe, tmp_path: Path) -> Path:
    return Path(shutil.copytree(getattr(Layout(tiny_run), request.param).path, tmp_path / request.param))


def test_a_whole_store_is_whole(store: Path) -> None:
    meta = read_json(store / "store.json")
    found = verify(store)
    assert found["rows"] == (meta["cells"] if found["kind"] == "cells" else meta["rows"])


def test_a_store_cut_short_is_found(store: Path) -> None:
    data = (store / DATA_FILE).read_bytes()
    (store / DATA_FILE).write_bytes(data[:-8])
    with pytest.raises(UserError, match=r"cut short or replaced"):
        verify(store)


def meant(store: Path, **changes: object) -> None:
    """Another ``store.json`` whose checksum is right: what a faulty writer would leave."""
    meta = read_json(store / "store.json") | changes
    shard = meta["shards"][0] | {"sha256": sha256_file(store / DATA_FILE)}
    write_store_json(store, meta | {"shards": [shard]})


def test_labels_that_do_not_fit_are_found(tiny_run: Recipe, tmp_path: Path) -> None:
    cells = Path(shutil.copytree(Layout(tiny_run).cells.path, tmp_path / "cells"))
    meta = read_json(cells / "store.json")
    meant(cells, perturbations=meta["perturbations"][1:])
    with pytest.raises(UserError, match=r"perturbations that store\.json does not name"):
        verify(cells)
    meant(cells, perturbations=meta["perturbations"], cells=meta["cells"] - 1)
    with pytest.raises(UserError, match=r"store\.json: \d+ cells, but the files have"):
        verify(cells)


@pytest.mark.parametrize(
    ("codes", "wrong"),
    [
        ([(0, 0, 0), (0, 0, 1), (0, 0, 0)], "not in order of context, batch and perturbation"),
        ([(0, 1, 0), (0, 0, 0), (0, 0, 1)], "not in order of context, batch and perturbation"),
        ([(0, 0, 0), (0, 0, 1), (1, 0, 0)], "a technical batch is in several contexts"),
        ([(0, 0, 0), (0, 0, 1), (1, 1, 1)], None),
    ],
)
def test_cells_out_of_order_are_found(tmp_path, codes, wrong):
    store = store_of(tmp_path, screen(np.ones((3, 2)), ["K", "K", "H"], ["1", "1", "2"], [CONTROL, "A", CONTROL]))
    table = pa.ipc.open_stream((store.folder / DATA_FILE).read_bytes()).read_all()
    for name, values in zip(("context", "batch", "perturbation"), zip(*codes, strict=True), strict=True):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    with pa.OSFile(str(store.folder / DATA_FILE), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    shard = store.meta["shards"][0] | {"bytes": (store.folder / DATA_FILE).stat().st_size}
    write_store_json(store.folder, store.meta | {"shards": [shard]})
    meant(store.folder)
    if wrong is None:
        verify(store.folder)
    else:
        with pytest.raises(UserError, match=wrong):
            verify(store.folder)


def test_vectors_that_are_not_finite_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "vectors"
    folder.mkdir()
    vectors = np.ones((3, 2), np.float32)
    vectors[1] = np.nan
    meta = {"encoder": "e", "parameters": {}, "licence": "", "citation": ""}
    write_embeddings(folder, "barcode", [(["a", "b", "c"], vectors)], 2, "f", meta)
    assert read_json(folder / "store.json")["missing"] == [1]
    verify(folder)
    meant(folder, missing=[2])
    with pytest.raises(UserError, match=r"not those that store\.json names"):
        verify(folder)


def test_by_command(tiny_run: Recipe, tmp_path: Path) -> None:
    layout = Layout(tiny_run)
    done = vcc_fm("verify", layout.cells.path, layout.proteins.path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("whole") == 2
    above = vcc_fm("verify", layout.cells.path.parent)
    assert above.returncode == 0, above.stderr
    assert above.stdout.count("whole") == 3
    damaged = Path(shutil.copytree(layout.proteins.path, tmp_path / "proteins"))
    data = bytearray((damaged / DATA_FILE).read_bytes())
    data[len(data) // 2] ^= 1
    (damaged / DATA_FILE).write_bytes(data)
    refused = vcc_fm("verify", damaged)
    assert refused.returncode == 2
    assert "damaged or" in refused.stderr
