"""Files of different years: one gene under one name on the axis, among the labels, and in an axis out of a file."""

import numpy as np
import pytest
from program import TINY
from tiny_screens import CONTROL, screen, write_screen, write_store

from vcc_fm.layout import Layout
from vcc_fm.recipe import Recipe

NAMES = "alias\tapproved\nFAM48A\tSUPT20H\nOLD1\tNEW1\nTAZ\tTAFAZZIN\nTAZ\tWWTR1\n"


@pytest.fixture
def names(tmp_path):
    path = tmp_path / "hgnc.tsv"
    path.write_text(NAMES)
    return str(path)


def two(folder):
    rng = np.random.default_rng(0)
    labels = np.array([CONTROL, "FAM48A", "OLD1+FAM48A", "TAZ"])[np.arange(40) % 4]
    old = screen(rng.poisson(2.0, (40, 3)), "K", "1", labels, ["FAM48A", "TAZ", "X"])
    labels = np.array([CONTROL, "SUPT20H", "NEW1+SUPT20H", "X"])[np.arange(40) % 4]
    new = screen(rng.poisson(2.0, (40, 3)), "H", "1", labels, ["SUPT20H", "X", "NEW1"])
    return old, new, [write_screen(folder, name, one) for name, one in (("old", old), ("new", new))]


def test_without_names_a_gene_stands_twice(tmp_path):
    _, _, configs = two(tmp_path)
    store = write_store(tmp_path / "store", configs)
    assert store.genes == ["FAM48A", "TAZ", "X", "SUPT20H", "NEW1"]
    assert not store.measured_by_source[:, [0, 3]].all(axis=0).any()


def test_genes_and_targets_go_under_approved_symbols(tmp_path, names):
    old, new, configs = two(tmp_path)
    store = write_store(tmp_path / "store", configs, symbols=names)
    assert store.genes == ["SUPT20H", "TAZ", "X", "NEW1"]  # TAZ may be two genes: it stays
    np.testing.assert_array_equal(store.measured_by_source, [[1, 1, 1, 0], [1, 0, 1, 1]])
    assert store.perturbations == ["NEW1+SUPT20H", "SUPT20H", "TAZ", "X", CONTROL]
    for context, one, columns in (("K", old, [0, 1, 2]), ("H", new, [0, 2, 3])):
        rows = store.rows(context)
        places = one.obs.index.get_indexer([barcode.partition(":")[2] for barcode in store.barcodes[rows]])
        np.testing.assert_array_equal(store.dense(rows)[:, columns], one.counts[places])
    repairs = [source["repairs"] for source in store.meta["sources"]]
    assert repairs[0]["gene symbols brought to their approved symbol"] == 1
    assert repairs[0]["target genes brought to their approved symbol"] == 20
    assert repairs[0]["gene symbols that may stand for several genes, left as they are"] == 1
    assert repairs[1] == {}


def test_a_pin_decides_and_an_axis_out_of_a_file_keeps_its_spelling(tmp_path, names):
    old, _, configs = two(tmp_path)
    axis = tmp_path / "axis.txt"
    axis.write_text("X\nFAM48A\nTAFAZZIN\n")
    store = write_store(tmp_path / "store", configs, symbols=names, pins={"TAZ": "TAFAZZIN"}, genes=str(axis))
    assert store.genes == ["X", "FAM48A", "TAFAZZIN"]
    np.testing.assert_array_equal(store.measured_by_source, [[1, 1, 1], [1, 1, 0]])
    assert "TAFAZZIN" in store.perturbations
    rows = store.rows("K")
    places = old.obs.index.get_indexer([barcode.partition(":")[2] for barcode in store.barcodes[rows]])
    np.testing.assert_array_equal(store.dense(rows), old.counts[places][:, [2, 0, 1]])


def test_another_table_of_names_makes_another_store(tmp_path, names):
    _, _, configs = two(tmp_path)
    data = {"sources": [config.model_dump() for config in configs], "symbols": names}
    recipe = Recipe(**{**TINY, "data": data})
    before = Layout(recipe).cells_fingerprint
    with open(names, "a") as file:
        file.write("OLD2\tNEW2\n")
    assert Layout(recipe).cells_fingerprint != before
    assert Layout(Recipe(**{**TINY, "data": data | {"pins": {"TAZ": "WWTR1"}}})).cells_fingerprint not in (
        before,
        Layout(recipe).cells_fingerprint,
    )
