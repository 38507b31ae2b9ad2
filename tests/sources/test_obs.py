"""A table of cells read by ranges of rows is the table that anndata reads at once, in every encoding."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.data import SourceConfig
from vcc_fm.sources import obs
from vcc_fm.sources.labels import kept_labels
from vcc_fm.sources.obs import FileObs, FrameObs, read_column

ROWS = np.arange(23)
TABLE = pd.DataFrame(
    {
        "categorical": pd.Categorical(
            np.array(["c", "a", None, "b"], dtype=object)[ROWS % 4], ["b", "unused", "a", "c"]
        ),
        "numbers": pd.Categorical(ROWS[::-1] % 3 * 1.5),
        "text": np.array(["x", "", " y", "nan"], dtype=object)[ROWS * 3 % 4],
        "whole": (ROWS * 7 % 5).astype(np.int16),
        "float": np.where(ROWS % 6, ROWS % 5 / 4, np.nan),
        "bool": ROWS % 3 == 0,
        "nullable": pd.array(ROWS % 4, dtype="Int32"),
        "maybe": pd.array(ROWS % 2 == 0, dtype="boolean"),
        "words": pd.array(np.array(["u", "v"])[ROWS % 2], dtype="string"),
    },
    index=[f"cell{row}" for row in ROWS],
)
TABLE.loc[TABLE.index[4:7], ["nullable", "maybe", "words"]] = pd.NA


@pytest.fixture(params=["h5ad", "zarr"])
def stored(request, tmp_path):
    table = anndata.AnnData(sp.csr_matrix((23, 2)), obs=TABLE)
    table.strings_to_categoricals = lambda *_: None  # text stays text
    with anndata.settings.override(allow_write_nullable_strings=True):
        if request.param == "h5ad":
            table.write_h5ad(tmp_path / "t.h5ad", convert_strings_to_categoricals=False)
            file = h5py.File(tmp_path / "t.h5ad")
        else:
            table.write_zarr(tmp_path / "t.zarr", convert_strings_to_categoricals=False)
            file = zarr.open_group(tmp_path / "t.zarr", mode="r")
    return file


@pytest.mark.parametrize("rows", [4, 1000])
def test_ranges_give_the_whole_table(stored, rows, monkeypatch):
    monkeypatch.setattr(obs, "RANGE", rows)
    whole = anndata.io.read_elem(stored["obs"])
    ours, theirs = FileObs(stored["obs"], "file"), FrameObs(whole)
    assert ours.columns == theirs.columns == list(TABLE)
    assert len(ours) == len(theirs) == 23
    assert ours.barcodes(3, 9).tolist() == theirs.barcodes(3, 9).tolist() == [f"cell{row}" for row in range(3, 9)]
    for name in TABLE:
        found, expected = read_column(ours, name), read_column(theirs, name)
        codes, values = pd.factorize(whole[name])
        assert found.codes.dtype == np.int8
        np.testing.assert_array_equal(found.codes, codes)
        np.testing.assert_array_equal(expected.codes, codes)
        assert found.objects == expected.objects == values.tolist()
        assert found.told == expected.told == str(whole[name].dtype)
        pd.testing.assert_series_equal(found.values, expected.values)


def test_codes_without_a_category_are_refused(stored):
    if isinstance(stored, h5py.File):
        path = stored.filename
        stored.close()
        with h5py.File(path, "r+") as file:
            file["obs/categorical/codes"][20] = 9
            with pytest.raises(UserError, match="obs is not readable as AnnData: codes need to be between -1 and"):
                read_column(FileObs(file["obs"], "file"), "categorical")


def test_labels_are_made_once_and_mapped(tmp_path):
    table = TABLE.assign(target=np.array(["ctrl", "B", "A"])[ROWS % 3])
    table.index = [f"cell{row // 2}" for row in ROWS]
    keys = {"name": "s", "path": "x", "perturbation_column": "target", "control": "ctrl", "context": "K"}
    config = SourceConfig.model_validate(keys | {"batch_column": "whole"})
    made = kept_labels(FrameObs(table), config, "file", tmp_path / "labels.safetensors")
    # The second time nothing of the table but barcodes is read.
    again = kept_labels(FrameObs(table[[]]), config, "file", tmp_path / "labels.safetensors")
    alone = kept_labels(FrameObs(table), config, "file", None)
    for labels in (made, again):
        pd.testing.assert_frame_equal(labels.cells, alone.cells)
        assert (labels.dropped, labels.repairs) == (alone.dropped, alone.repairs)
        assert not labels.rows.flags.writeable
    assert alone.cells["barcode"].is_unique
    assert alone.repairs["duplicate barcodes numbered"] == 11
