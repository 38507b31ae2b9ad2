"""Files of different years: one gene under one name on the axis, among the labels, and in an axis out of a file."""

import gzip
import re
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from program import TINY
from tiny_screens import CONTROL, screen, write_screen, write_store

from vcc_fm.ground.errors import UserError
from vcc_fm.recipe.data import SourceConfig
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.sources.symbol_files import read_symbols

NAMES = "alias\tapproved\nFAM48A\tSUPT20H\nOLD1\tNEW1\nTAZ\tTAFAZZIN\nTAZ\tWWTR1\n"


def under_approved(symbols: object, pins: dict[str, str] | None = None) -> dict[str, Any]:
    """The section `data.names` that brings genes under approved symbols."""
    return {"symbols": str(symbols), "pins": pins or {}, "approved": True}


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
    store = write_store(tmp_path / "store", configs, names=under_approved(names))
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


@pytest.mark.parametrize("first", ["FAM48A", "SUPT20H"])
@pytest.mark.parametrize("second", ["TAZ", "TAFAZZIN"])
def test_an_axis_out_of_a_file_keeps_its_spelling_for_genes_and_targets(tmp_path, names, first, second):
    old, new, configs = two(tmp_path)
    axis = tmp_path / "axis.txt"
    axis.write_text(f"X\n{first}\n{second}\n")
    store = write_store(tmp_path / "store", configs, names=under_approved(names, {"TAZ": "TAFAZZIN"}), genes=str(axis))
    assert store.genes == ["X", first, second]
    np.testing.assert_array_equal(store.measured_by_source, [[1, 1, 1], [1, 1, 0]])
    # One name for a gene everywhere: every target gene that is measured is found on the axis.
    assert store.perturbations == sorted(["+".join(sorted(["NEW1", first])), first, second, "X", CONTROL])
    for context, one, columns in (("K", old, [2, 0, 1]), ("H", new, [1, 0])):
        rows = store.rows(context)
        places = one.obs.index.get_indexer([barcode.partition(":")[2] for barcode in store.barcodes[rows]])
        np.testing.assert_array_equal(store.dense(rows)[:, : len(columns)], one.counts[places][:, columns])
    respelled = [source["repairs"].get("genes spelled as data.genes has them", 0) for source in store.meta["sources"]]
    assert respelled == [(first == "FAM48A") + (second == "TAZ"), int(first == "FAM48A")]


def test_an_axis_spells_no_gene_as_another_column_of_the_file(tmp_path, names):
    # The file has FAM48A beside SUPT20H, as two genes: the axis means its FAM48A.
    labels = np.array([CONTROL, "X"])[np.arange(8) % 2]
    counts = np.arange(24).reshape(8, 3)
    config = write_screen(tmp_path, "s", screen(counts, "K", "1", labels, ["SUPT20H", "FAM48A", "X"]))
    (tmp_path / "axis.txt").write_text("FAM48A\nX\n")
    store = write_store(tmp_path / "store", [config], names=under_approved(names), genes=str(tmp_path / "axis.txt"))
    assert store.genes == ["FAM48A", "X"]
    assert {tuple(row) for row in store.dense(store.rows())} == {tuple(row) for row in counts[:, 1:]}


IDS = ["ENSG00000000001.2", "ENSG00000000002.11", "ENSG00000000003", "ENSG00000000004.1"]
COMPLETE = (
    "symbol\tstatus\talias_symbol\tprev_symbol\tensembl_gene_id\n"
    "SUPT20H\tApproved\t\tFAM48A\tENSG00000000001\n"
    "X\tApproved\t\t\tENSG00000000002\n"
    "NEW1\tApproved\t\tOLD1\tENSG00000000003\n"
)
TWO_COLUMNS = (
    "Gene stable ID,Gene name\nENSG00000000001.9,SUPT20H\nENSG00000000002,X\nENSG00000000003,NEW1\nENSG00000000004,\n"
)


@pytest.mark.parametrize("table", [COMPLETE, TWO_COLUMNS], ids=["complete", "two columns"])
def test_a_file_of_ensembl_ids_joins_one_of_symbols(tmp_path, table):
    (tmp_path / "names.txt.gz").write_bytes(gzip.compress(table.encode()))
    keys = {"names": under_approved(tmp_path / "names.txt.gz")}
    rng = np.random.default_rng(0)
    labels = np.array([CONTROL, "SUPT20H", "ENSG00000000003", "ENSG00000000004.1"])[np.arange(40) % 4]
    ids = screen(rng.poisson(2.0, (40, 4)), "K", "1", labels, IDS)
    symbols = screen(rng.poisson(2.0, (40, 2)), "H", "1", np.array([CONTROL, "X"])[np.arange(40) % 2], ["NEW1", "X"])
    configs = [write_screen(tmp_path, "ids", ids), write_screen(tmp_path, "symbols", symbols)]
    with pytest.raises(
        UserError, match=r"Ensembl gene ids \(ENSG00000000001\.2, …\).* or give data\.names\.symbols a table"
    ):
        write_store(tmp_path / "refused", configs)
    store = write_store(tmp_path / "store", configs, **keys)
    assert store.genes == ["SUPT20H", "X", "NEW1", "ENSG00000000004"]
    assert store.perturbations == sorted([CONTROL, "SUPT20H", "NEW1", "ENSG00000000004", "X"])
    repairs = store.meta["sources"][0]["repairs"]
    assert repairs["Ensembl ids brought to the approved symbol"] == 3
    assert repairs["Ensembl ids without a symbol of their own in data.names.symbols, left as they are"] == 1
    rows = store.rows("K")
    places = ids.obs.index.get_indexer([barcode.partition(":")[2] for barcode in store.barcodes[rows]])
    np.testing.assert_array_equal(store.dense(rows), ids.counts[places])


def test_ensembl_ids_of_which_the_table_knows_none_are_refused(tmp_path, names):
    labels = np.array([CONTROL, "X"])[np.arange(8) % 2]
    config = write_screen(tmp_path, "ids", screen(np.ones((8, 4)), "K", "1", labels, IDS))
    with pytest.raises(
        UserError, match=r"Ensembl gene ids .* data\.names\.symbols knows 0 of 4; no column of var looks like"
    ):
        write_store(tmp_path / "store", [config], names=under_approved(names))


@pytest.mark.parametrize("form", ["complete", pytest.param("custom", marks=pytest.mark.slow), "two columns"])
def test_the_glioblastoma_file_by_its_ensembl_ids(tmp_path, real_data, form):
    path = real_data / "perturbation/zhao2021_glioblastoma_panobinostat_lemur_5000x300_counts.h5ad"
    file = anndata.read_h5ad(path, backed="r")
    var, hgnc = file.var, read_symbols(str(real_data / "proteins/hgnc_all_genes.tsv.gz"))
    known = var[[len(hgnc.genes(symbol)) == 1 for symbol in var["symbol"]]]
    approved = [hgnc.genes(symbol)[0] for symbol in known["symbol"]]
    columns = {
        "complete": {"symbol": approved, "status": "Approved", "prev_symbol": "", "ensembl_gene_id": known["gene_id"]},
        "custom": {"Approved symbol": approved, "Previous symbols": "", "Ensembl gene ID": known["gene_id"]},
        "two columns": {"gene": approved, "id": known.index},
    }[form]
    pd.DataFrame(columns).to_csv(tmp_path / "names.tsv.gz", sep="\t", index=False)
    config = SourceConfig(
        name="gbm", path=str(path), perturbation_column="condition", control="ctrl",
        context_column="patient_id",
    )  # fmt: skip
    store = write_store(tmp_path / "store", [config], names=under_approved(tmp_path / "names.tsv.gz"))
    repairs = store.meta["sources"][0]["repairs"]
    assert 0.9 * len(var) < len(known) < len(var)
    assert repairs["Ensembl ids brought to the approved symbol"] == len(known)
    left = repairs["Ensembl ids without a symbol of their own in data.names.symbols, left as they are"]
    assert left == len(var) - len(known)
    by_id = dict(zip(known.index, approved, strict=True))
    assert store.genes == [by_id.get(one, one.partition(".")[0]) for one in var.index]


def test_a_pinned_target_is_renamed_though_its_gene_has_a_column(tmp_path, names):
    labels = np.array([CONTROL, "TAZ"])[np.arange(8) % 2]
    config = write_screen(tmp_path, "s", screen(np.ones((8, 3)), "K", "1", labels, ["TAZ", "WWTR1", "X"]))
    store = write_store(tmp_path / "store", [config], names=under_approved(names, {"TAZ": "WWTR1"}))
    assert store.perturbations == ["WWTR1", CONTROL]
    with pytest.raises(UserError, match=r"data\.names\.pins\.TAZ: NOSUCH is no approved symbol"):
        write_store(tmp_path / "other", [config], names=under_approved(names, {"TAZ": "NOSUCH"}))
    with pytest.raises(ValueError, match=r"approved has no meaning without data\.names\.symbols"):
        write_store(tmp_path / "other", [config], names={"approved": True})


def test_two_names_of_one_gene_are_one_target(tmp_path, names):
    labels = np.array([CONTROL, "FAM48A+SUPT20H", "SUPT20H"])[np.arange(9) % 3]
    config = write_screen(tmp_path, "s", screen(np.ones((9, 2)), "K", "1", labels, ["SUPT20H", "X"]))
    assert write_store(tmp_path / "store", [config], names=under_approved(names)).perturbations == ["SUPT20H", CONTROL]


@pytest.mark.parametrize("label", ["GFP", "A+GFP"])
def test_a_control_of_one_source_is_no_perturbation_of_another(tmp_path, label):
    labels = np.array([CONTROL, label, "A"])[np.arange(9) % 3]
    one = write_screen(tmp_path, "one", screen(np.ones((9, 2)), "K", "1", labels))
    other = screen(np.ones((9, 2)), "H", "1", np.array(["GFP", "B", "A"])[np.arange(9) % 3], control="GFP")
    with pytest.raises(UserError, match=rf"source 'one' .* '{re.escape(label)}' is or holds 'GFP', the control of"):
        write_store(tmp_path / "store", [one, write_screen(tmp_path, "two", other)])


def test_another_table_of_names_makes_another_store(tmp_path, names):
    _, _, configs = two(tmp_path)
    data = {"sources": [config.model_dump() for config in configs], "names": {"symbols": names, "approved": True}}
    recipe = Recipe(**{**TINY, "data": data})
    before = Layout(recipe).cells.fingerprint
    with open(names, "a") as file:
        file.write("OLD2\tNEW2\n")
    assert Layout(recipe).cells.fingerprint != before
    after = Layout(recipe).cells.fingerprint
    data["names"] |= {"pins": {"TAZ": "WWTR1"}}
    assert Layout(Recipe(**{**TINY, "data": data})).cells.fingerprint not in (before, after)


def test_the_gene_list_of_the_challenge_beside_approved_symbols(tmp_path, real_data):
    labels = np.array([CONTROL, "YARS1", "TP53"])[np.arange(9) % 3]
    counts = np.arange(27).reshape(9, 3)
    config = write_screen(tmp_path, "s", screen(counts, "K", "1", labels, ["TP53", "YARS1", "OTHER"]))
    table = str(real_data / "proteins/hgnc_alias_to_approved.tsv.gz")
    store = write_store(
        tmp_path / "store", [config], names=under_approved(table), genes=str(real_data / "vcc2025/gene_names.csv")
    )
    assert store.genes == (real_data / "vcc2025/gene_names.csv").read_text().split()
    assert store.perturbations == ["TP53", "YARS", CONTROL]
    columns = [store.genes.index("TP53"), store.genes.index("YARS")]
    assert np.flatnonzero(store.measured_by_source[0]).tolist() == sorted(columns)
    rows = store.dense(store.rows())[:, columns]
    assert {tuple(row) for row in rows} == {tuple(row) for row in counts[:, :2]}
