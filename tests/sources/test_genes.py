import numpy as np
import pandas as pd
import pytest

from vcc_fm.ground.errors import UserError
from vcc_fm.sources.genes import gene_axis, gene_columns
from vcc_fm.sources.symbols import SymbolTable, approved_symbols


def read(var, column="index", duplicates="refuse"):
    return gene_columns(var, column, duplicates, "source 's'")


def test_symbols_from_index_and_column():
    var = pd.DataFrame({"name": pd.Categorical(["TP53", " MYC"])}, index=["ENSG00000000001", "ENSG00000000002"])
    found = read(var, "name")
    assert found.genes.tolist() == ["TP53", "MYC"]
    assert found.columns.tolist() == [0, 1]
    assert found.repairs == {"gene symbols stripped of spaces": 1}
    assert read(pd.DataFrame(index=["B", "A"])).genes.tolist() == ["B", "A"]


def test_duplicates_are_refused_or_given_one_position():
    var = pd.DataFrame(index=["A", "B", "A", "C", "A"])
    with pytest.raises(UserError, match=r"repeats 1 gene symbol\(s\): A; set duplicate_genes to sum"):
        read(var)
    found = read(var, duplicates="sum")
    assert found.genes.tolist() == ["A", "B", "C"]
    assert found.columns.tolist() == [0, 1, 0, 2, 0]
    assert found.columns.dtype == np.int32
    assert found.repairs == {"columns summed into a gene of the same symbol": 2}


@pytest.mark.parametrize("absent", [np.nan, None, "", "  "])
def test_a_missing_symbol_is_refused(absent):
    var = pd.DataFrame({"name": ["A", absent, "C"]})
    with pytest.raises(UserError, match="1 of 3 genes without a symbol, the first in row 1"):
        read(var, "name")


def test_ensembl_ids_are_refused_and_the_column_with_symbols_named():
    var = pd.DataFrame(
        {"type": ["gene"] * 10, "symbol": [f"GENE{i}" for i in range(10)], "length": range(10)},
        index=[f"ENSMUSG{i:011d}.2" for i in range(10)],
    )
    with pytest.raises(UserError, match=r"holds Ensembl gene ids \(ENSMUSG.*set symbols to symbol$"):
        read(var)
    with pytest.raises(UserError, match="no column of var looks like symbols"):
        read(var[["type"]])
    with pytest.raises(UserError, match=r"var column 'length' holds numbers .* set symbols to symbol$"):
        read(var, "length")


def test_an_absent_column_names_those_there_are():
    with pytest.raises(UserError, match="no column 'symbol'; set symbols to index or one of name"):
        read(pd.DataFrame({"name": ["A"]}), "symbol")


NAMES = SymbolTable(
    [
        ("SUPT20H", "FAM48A", "previous"),
        ("TAFAZZIN", "TAZ", "previous"),
        ("WWTR1", "TAZ", "alias"),
        ("A", "A", "approved"),
    ]
)


def test_files_of_different_years_share_a_gene_of_the_axis():
    old = gene_columns(pd.DataFrame(index=["A", "FAM48A ", "TAZ"]), "index", "refuse", "source 'old'", NAMES)
    new = gene_columns(pd.DataFrame(index=["SUPT20H", "A"]), "index", "refuse", "source 'new'", NAMES)
    assert old.genes.tolist() == ["A", "SUPT20H", "TAZ"]
    assert old.renamed == {"FAM48A": "SUPT20H"}
    assert old.repairs == {
        "gene symbols stripped of spaces": 1,
        "gene symbols brought to their approved symbol": 1,
        "gene symbols that may stand for several genes, left as they are": 1,
    }
    assert new.repairs == {}
    axis = gene_axis([old.genes, new.genes], "union")
    assert axis.tolist() == ["A", "SUPT20H", "TAZ"]
    # A list of genes with the old name keeps it, and finds the gene by its approved symbol.
    assert approved_symbols(np.array(["FAM48A", "A"]), NAMES).symbols.tolist() == ["SUPT20H", "A"]
    pinned = gene_columns(pd.DataFrame(index=["TAZ"]), "index", "refuse", "s", NAMES, {"TAZ": "WWTR1"})
    assert pinned.genes.tolist() == ["WWTR1"]


def test_a_file_with_both_names_of_a_gene_keeps_both_unless_columns_are_summed():
    var = pd.DataFrame(index=["SUPT20H", "A", "FAM48A"])
    apart = gene_columns(var, "index", "refuse", "s", NAMES)
    assert apart.genes.tolist() == ["SUPT20H", "A", "FAM48A"]
    assert apart.renamed == {}
    assert apart.repairs == {
        "gene symbols whose approved symbol another column stands for, left as they are": 1,
    }
    summed = gene_columns(var, "index", "sum", "s", NAMES)
    assert summed.genes.tolist() == ["SUPT20H", "A"]
    assert summed.columns.tolist() == [0, 1, 0]
    assert summed.repairs == {
        "gene symbols brought to their approved symbol": 1,
        "columns summed into a gene of the same symbol": 1,
    }


FIRST, SECOND = np.array(["B", "A", "C"]), np.array(["D", "C", "B"])


def test_union_and_intersection_keep_their_order():
    assert gene_axis([FIRST, SECOND], "union").tolist() == ["B", "A", "C", "D"]
    assert gene_axis([FIRST, SECOND], "intersection").tolist() == ["B", "C"]
    with pytest.raises(UserError, match=r"no gene is in all sources \(B, A, C; X\)"):
        gene_axis([FIRST, np.array(["X"])], "intersection")


@pytest.mark.parametrize("text", ["C\nZ\nA\n", "gene_name\nC\nZ\nA", '\ufeff"gene_symbol"\r\n"C"\r\n"Z"\r\n\r\n"A"'])
def test_an_axis_from_a_file(tmp_path, text):
    (tmp_path / "genes.csv").write_bytes(text.encode())
    assert gene_axis([FIRST, SECOND], str(tmp_path / "genes.csv")).tolist() == ["C", "Z", "A"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"gene_name\n", "names no gene"),
        (b"A\nB\nA\n", r"repeats 1 gene symbol\(s\): A"),
        (b"A,1\nB,2\n", "one gene symbol a line is expected, found 'A,1'"),
        (b"\xff\xfe\x00", "is not readable as text: .*; give a file with one gene symbol a line"),
        (b"X\nY\n", "none of its genes"),
    ],
)
def test_an_axis_file_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "genes.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        gene_axis([FIRST], str(tmp_path / "genes.txt"))


def test_an_axis_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no such file; write union, intersection, or a file"):
        gene_axis([FIRST], str(tmp_path / "unoin"))


def test_the_gene_list_of_the_challenge(real_data):
    axis = gene_axis([np.array(["TP53"])], str(real_data / "vcc2025/gene_names.csv"))
    assert len(axis) == 18_080
    assert axis[:2].tolist() == ["SAMD11", "NOC2L"]
