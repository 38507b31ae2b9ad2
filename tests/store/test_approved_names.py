"""Files of different years: one gene under one name on the axis, among the labels, and in an axis out of a file."""

import re

import numpy as np
import pytest
from program import TINY
from tiny_screens import CONTROL, screen, write_screen, write_store

from vcc_fm.errors import UserError
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


def test_a_pin_decides_and_an_axis_out_of_a_file_has_approved_symbols(tmp_path, names):
    old, _, configs = two(tmp_path)
    axis = tmp_path / "axis.txt"
    axis.write_text("X\nFAM48A\nTAFAZZIN\n")
    keys = {"symbols": names, "pins": {"TAZ": "TAFAZZIN"}, "genes": str(axis)}
    with pytest.raises(UserError, match=r"1 genes are not under their approved symbols \(FAM48A for SUPT20H\)"):
        write_store(tmp_path / "refused", configs, **keys)
    axis.write_text("X\nSUPT20H\nTAFAZZIN\n")
    store = write_store(tmp_path / "store", configs, **keys)
    assert store.genes == ["X", "SUPT20H", "TAFAZZIN"]
    np.testing.assert_array_equal(store.measured_by_source, [[1, 1, 1], [1, 1, 0]])
    # Every target gene that is measured is found on the axis.
    assert {"SUPT20H", "TAFAZZIN", "X"} <= set(store.perturbations)
    rows = store.rows("K")
    places = old.obs.index.get_indexer([barcode.partition(":")[2] for barcode in store.barcodes[rows]])
    np.testing.assert_array_equal(store.dense(rows), old.counts[places][:, [2, 0, 1]])


def test_a_pinned_target_is_renamed_though_its_gene_has_a_column(tmp_path, names):
    labels = np.array([CONTROL, "TAZ"])[np.arange(8) % 2]
    config = write_screen(tmp_path, "s", screen(np.ones((8, 3)), "K", "1", labels, ["TAZ", "WWTR1", "X"]))
    store = write_store(tmp_path / "store", [config], symbols=names, pins={"TAZ": "WWTR1"})
    assert store.perturbations == ["WWTR1", CONTROL]
    with pytest.raises(UserError, match=r"data\.pins: TAZ: NOSUCH is no approved symbol"):
        write_store(tmp_path / "other", [config], symbols=names, pins={"TAZ": "NOSUCH"})
    with pytest.raises(ValueError, match=r"data\.pins has no meaning without data\.symbols"):
        write_store(tmp_path / "other", [config], pins={"TAZ": "WWTR1"})


def test_two_names_of_one_gene_are_one_target(tmp_path, names):
    labels = np.array([CONTROL, "FAM48A+SUPT20H", "SUPT20H"])[np.arange(9) % 3]
    config = write_screen(tmp_path, "s", screen(np.ones((9, 2)), "K", "1", labels, ["SUPT20H", "X"]))
    assert write_store(tmp_path / "store", [config], symbols=names).perturbations == ["SUPT20H", CONTROL]


@pytest.mark.parametrize("label", ["GFP", "A+GFP"])
def test_a_control_of_one_source_is_no_perturbation_of_another(tmp_path, label):
    labels = np.array([CONTROL, label, "A"])[np.arange(9) % 3]
    one = write_screen(tmp_path, "one", screen(np.ones((9, 2)), "K", "1", labels))
    other = screen(np.ones((9, 2)), "H", "1", np.array(["GFP", "B", "A"])[np.arange(9) % 3], control="GFP")
    with pytest.raises(
        UserError, match=rf"source 'one': perturbation '{re.escape(label)}' holds 'GFP', the control of"
    ):
        write_store(tmp_path / "store", [one, write_screen(tmp_path, "two", other)])


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
