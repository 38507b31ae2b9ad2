import gzip

import numpy as np
import pandas as pd
import pytest

from vcc_fm.ground.errors import UserError
from vcc_fm.sources.fasta import read_proteins
from vcc_fm.sources.symbol_files import read_symbols
from vcc_fm.sources.symbols import SymbolTable, approved_symbols, coverage

# As HGNC publishes it: quotes around several values, columns of which most are not read, a withdrawn entry.
COMPLETE_SET = """\
hgnc_id\tsymbol\tname\tlocus_group\tstatus\talias_symbol\talias_name\tprev_symbol
HGNC:11998\tTP53\ttumor protein p53\tprotein-coding gene\tApproved\t"p53|LFS1"\t"a|b"\t
HGNC:11577\tTAFAZZIN\ttafazzin\tprotein-coding gene\tApproved\t"BTHS|G4.5"\t\t"EFE2|CMD3A|TAZ"
HGNC:24042\tWWTR1\tWW domain 1\tprotein-coding gene\tApproved\t"TAZ|DKFZp586I1419"\t\t
HGNC:9751\tQARS1\tglutaminyl-tRNA synthetase 1\tprotein-coding gene\tApproved\tGLNRS\t\tQARS
HGNC:3418\tEPRS1\tglutamyl-prolyl-tRNA synthetase 1\tprotein-coding gene\tApproved\t"PARS|QARS"\t\t"QPRS|EPRS"
HGNC:25034\tSTYXL2\tinactive dual specificity phosphatase 27\tprotein-coding gene\tApproved\t\t\tDUSP27
HGNC:43735\tH3Y1\tH3.Y histone 1\tprotein-coding gene\tApproved\tH3.Y\t\t
HGNC:4725\tH2AC13\tH2A clustered histone 13\tprotein-coding gene\tApproved\tH2A/c\t\t"H2AFC|HIST1H2AI"
HGNC:9221\tPOU5F1\tPOU class 5 homeobox 1\tprotein-coding gene\tApproved\t"Oct4|OCT3"\t\tOTF3
HGNC:1\tGENEA\tsecond meaning\tprotein-coding gene\tApproved\tTP53\t\tNAN
HGNC:2\tGONE\twithdrawn\tprotein-coding gene\tEntry Withdrawn\tLOST\t\t
HGNC:3\tC1orf112\treading frame\tprotein-coding gene\tApproved\t\t\t
"""


@pytest.fixture
def table(tmp_path):
    (tmp_path / "hgnc.txt.gz").write_bytes(gzip.compress(COMPLETE_SET.encode()))
    return read_symbols(str(tmp_path / "hgnc.txt.gz"))


def found(resolution):
    return resolution.how, resolution.found


def test_the_complete_set_is_read_with_its_kinds(table):
    assert len(table) == 11
    assert table.genes("TAZ") == ("TAFAZZIN", "WWTR1")
    assert table.genes("TP53") == ("TP53",)  # approved, though an alias of GENEA as well
    assert table.genes("NAN") == ("GENEA",)
    assert table.genes("LOST") == ()


@pytest.mark.parametrize(
    ("symbol", "known", "expected"),
    [
        ("TP53", {"TP53", "GENEA"}, ("exact", "TP53")),
        # The screen has an old name, the proteins the approved one.
        ("DUSP27", {"STYXL2"}, ("approved", "STYXL2")),
        ("H3.Y", {"H3Y1"}, ("approved", "H3Y1")),
        ("p53", {"TP53"}, ("approved", "TP53")),
        # The reverse, and old names on both sides.
        ("STYXL2", {"DUSP27"}, ("previous", "DUSP27")),
        ("H3Y1", {"H3.Y"}, ("alias", "H3.Y")),
        ("HIST1H2AI", {"H2AFC"}, ("previous", "H2AFC")),
        # Approved for a gene without protein: the other gene that has it as an alias is not taken.
        ("TP53", {"GENEA"}, ("missing", None)),
        ("GENEA", {"TP53"}, ("missing", None)),
        ("UNHEARD", {"TP53"}, ("missing", None)),
    ],
)
def test_one_meaning(table, symbol, known, expected):
    assert found(table.resolve(symbol, known)) == expected


def test_ambiguity_is_reported_with_its_candidates_and_never_guessed(table):
    for known in ({"TAFAZZIN", "WWTR1"}, {"WWTR1"}, {"TAFAZZIN"}):
        taz = table.resolve("TAZ", known)
        assert found(taz) == ("ambiguous", None)
        assert taz.candidates == ("TAFAZZIN", "WWTR1")
        assert taz.note == "may be TAFAZZIN (as previous) or WWTR1 (as alias)"
    nobody = table.resolve("TAZ", {"TP53"})
    assert found(nobody) == ("missing", None)
    assert nobody.note.endswith("the proteins have none of them")
    # The gene is certain, the name of its protein is not.
    reverse = table.resolve("TAFAZZIN", {"TAZ"})
    assert (reverse.how, reverse.gene, reverse.candidates) == ("ambiguous", "TAFAZZIN", ("TAZ",))
    # EPRS is EPRS1 for certain, QARS may be another gene: the certain name is taken.
    assert found(table.resolve("EPRS1", {"EPRS", "QARS"})) == ("previous", "EPRS")
    several = table.resolve("H2AC13", {"H2AFC", "HIST1H2AI"})
    assert (several.how, several.candidates) == ("ambiguous", ("H2AFC", "HIST1H2AI"))


def test_an_exact_match_that_is_no_approved_symbol_says_what_else_it_names(table):
    taz = table.resolve("TAZ", {"TAZ", "WWTR1"})
    assert found(taz) == ("exact", "TAZ")
    assert "no approved symbol" in taz.note
    assert "TAFAZZIN or WWTR1" in taz.note
    assert table.resolve("TP53", {"TP53"}).note == ""
    assert table.resolve("UNHEARD", {"UNHEARD"}).note == ""


def test_pins(table):
    pins = {"TAZ": "WWTR1", "QARS": "QARS1", "DUSP27": "STYXL2"}
    assert found(table.resolve("TAZ", {"TAFAZZIN", "WWTR1"}, pins)) == ("pinned", "WWTR1")
    assert found(table.resolve("TAZ", {"TAZ", "WWTR1"}, pins)) == ("pinned", "WWTR1")
    assert found(table.resolve("QARS", {"GLNRS"}, pins)) == ("pinned", "GLNRS")
    absent = table.resolve("DUSP27", {"TP53"}, pins)
    assert (absent.how, absent.gene, absent.note) == ("missing", "STYXL2", "pinned to STYXL2, which is missing")
    with pytest.raises(UserError, match=r"data\.names\.pins: TAX is neither a target gene nor on the gene axis"):
        coverage(["TAZ"], ["TP53"], table, {"WWTR1"}, {"TAX": "WWTR1"})
    with pytest.raises(UserError, match=r"data\.names\.pins\.TAZ: WWTRI is no approved symbol and has no protein"):
        coverage(["TAZ"], ["TP53"], table, {"WWTR1"}, {"TAZ": "WWTRI"})


def test_mouse_symbols_do_not_meet_human_ones(table):
    for symbol, hint in (("Trp53", "mouse"), ("Tp53", "TP53 is another symbol: case"), ("Oct4", "mouse")):
        mouse = table.resolve(symbol, {"TP53", "POU5F1"})
        assert found(mouse) == ("missing", None), symbol
        assert hint in mouse.note
    assert found(table.resolve("POU5F1", {"Oct4"})) == ("missing", None)
    assert found(table.resolve("C1orf112", {"C1orf112"})) == ("exact", "C1orf112")
    assert found(SymbolTable().resolve("Trp53", {"Trp53"})) == ("exact", "Trp53")
    assert "Gapdh is another symbol" in SymbolTable().resolve("GAPDH", {"Gapdh"}).note


def test_coverage_names_every_symbol_and_what_speaks_for_a_candidate(table):
    axis = ["TP53", "TAZ", "WWTR1", "QARS", "EPRS", "p53", "AL391650.1"]
    result = coverage(["TAZ", "QARS"], axis, table, {"TP53", "TAFAZZIN", "WWTR1", "EPRS1", "QARS1"})
    assert [resolution.symbol for resolution in result.genes] == axis
    assert result.found() == {"TP53": "TP53", "WWTR1": "WWTR1", "EPRS": "EPRS1", "p53": "TP53"}
    assert result.shared == {"TP53": ["TP53", "p53"]}
    assert [r.note.partition("; ")[2] for r in result.targets] == [
        "on the gene axis beside it: WWTR1",
        "on the gene axis beside it: EPRS1 (as EPRS)",
    ]
    report = result.to_json()
    assert report["targets"]["ambiguous"] == {"TAZ": ["TAFAZZIN", "WWTR1"], "QARS": ["QARS1", "EPRS1"]}
    assert report["genes"]["exact"] == ["TP53", "WWTR1"]
    assert report["genes"]["other name"] == {
        "EPRS": {"found": "EPRS1", "how": "approved"},
        "p53": {"found": "TP53", "how": "approved"},
    }
    assert report["genes"]["missing"] == ["AL391650.1"]
    lines = result.lines(most=1)
    assert lines[0] == "targets: 2, ambiguous 2"
    assert lines[1].startswith("  ambiguous: TAZ [may be TAFAZZIN (as previous) or WWTR1 (as alias); on the gene")
    assert lines[1].endswith("(2 in all)")
    assert lines[-1] == "  missing: AL391650.1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not readable as a table of gene names: "),
        (b"symbol\tname\nTP53\tx\n", "found the columns symbol, name; expected HGNC's complete set"),
        (b"gene\tid\ttype\nTP53\tENSG00000141510\tx\n", "found the columns gene, id, type; expected"),
        (b"a\tb\nENSG00000141510\tENSG00000141510\n", "found the columns a, b; expected"),
        (b"gene\tid\n", "found the columns gene, id; expected"),
        (b"alias\tapproved\n\xff\xfe\tx\n", "is not readable as a table of gene names: "),
        (gzip.compress(COMPLETE_SET.encode())[:-200], "gzip file cut short or damaged"),
    ],
)
def test_what_is_no_table_of_symbols(tmp_path, content, message):
    (tmp_path / "t.tsv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_symbols(str(tmp_path / "t.tsv"))
    with pytest.raises(UserError, match="no such file"):
        read_symbols(str(tmp_path / "absent.tsv"))


# ------------------------------------------------------------------------------------------------------ forms, Ensembl
def read(folder, text):
    (folder / "t.txt.gz").write_bytes(gzip.compress(text.encode()))
    return read_symbols(str(folder / "t.txt.gz"))


CUSTOM = """\
HGNC ID\tApproved symbol\tApproved name\tStatus\tPrevious symbols\tAlias symbols\tEnsembl ID(supplied by Ensembl)
HGNC:11998\tTP53\t"tumor protein p53"\tApproved\t\tp53, LFS1\tENSG00000141510
HGNC:11577\tTAFAZZIN\ttafazzin\tApproved\tEFE2, CMD3A, TAZ\tBTHS, G4.5, TAZ1\tENSG00000102125
HGNC:24042\tWWTR1\tWW domain 1\tApproved\t\tTAZ, DKFZp586I1419\tENSG00000018408
HGNC:2\tGONE\twithdrawn\tEntry Withdrawn\t\tLOST\t
HGNC:3\tPAST~withdrawn\twithdrawn\tApproved\t\tPASSED\t
"""


def test_the_custom_download_is_read_as_the_complete_set_is(tmp_path):
    custom = read(tmp_path, CUSTOM)
    assert len(custom) == 3
    assert custom.genes("TAZ") == ("TAFAZZIN", "WWTR1")
    assert custom.resolve("TAZ", {"WWTR1"}).note == "may be TAFAZZIN (as previous) or WWTR1 (as alias)"
    assert [custom.genes(name) for name in ("LFS1", "CMD3A", "G4.5")] == [("TP53",), ("TAFAZZIN",), ("TAFAZZIN",)]
    assert [custom.genes(name) for name in ("GONE", "LOST", "PASSED", "PAST~withdrawn")] == [(), (), (), ()]
    assert custom.genes("ENSG00000141510.18") == ("TP53",)
    # Neither column of status nor of ids, as some downloads have it.
    few = read(tmp_path, "Approved symbol\tAlias symbols\nTP53\tp53, LFS1\n")
    assert few.genes("LFS1") == ("TP53",)


@pytest.mark.parametrize(
    "text",
    [
        "ensembl_gene_id\tsymbol\nENSG00000141510\tTP53\nENSG00000000004\t\n",
        "Gene name\tGene stable ID version\nTP53\tENSG00000141510.18\n",
        "ENSG00000141510,TP53\nENSG00000018408,WWTR1\n",
        "\ufeffid,name\r\nENSG00000141510,TP53\r\n",
        "symbol\tstatus\tensembl_gene_id\nTP53\tApproved\tENSG00000141510\n",
    ],
)
def test_ensembl_ids_of_any_version_are_names_of_their_gene(tmp_path, text):
    table = read(tmp_path, text)
    for name in ("ENSG00000141510", "ENSG00000141510.2", "TP53"):
        assert table.genes(name) == ("TP53",)
    assert table.genes("ENSG00000141510.18_PAR_Y") == ()
    assert found(table.resolve("ENSG00000141510.4", {"TP53"})) == ("approved", "TP53")
    assert found(table.resolve("TP53", {"ENSG00000141510"})) == ("ensembl", "ENSG00000141510")
    brought = approved_symbols(np.array(["ENSG00000141510.1", "ENSG00000999999.3", "X"]), table)
    assert brought.symbols.tolist() == ["TP53", "ENSG00000999999", "X"]


def test_ids_of_one_symbol_stay_two_genes_and_ids_of_two_symbols_are_ambiguous(tmp_path):
    rows = [
        ("ENSG00000000001", "Y_RNA"),
        ("ENSG00000000002", "Y_RNA"),
        ("ENSG00000000003", "A"),
        ("ENSG00000000003", "B"),
    ]
    table = read(tmp_path, "id\tname\n" + "".join(f"{one}\t{symbol}\n" for one, symbol in rows))
    ids = np.array(["ENSG00000000001.1", "ENSG00000000002.1", "ENSG00000000003.1", "ENSG00000000003.2"])
    brought = approved_symbols(ids, table)
    # One id in two versions is two columns as well, which keep their names apart.
    assert brought.symbols.tolist() == ["ENSG00000000001", "ENSG00000000002", *ids[2:]]
    assert brought.taken == {ids[0]: "Y_RNA", ids[1]: "Y_RNA"}
    assert brought.ambiguous == {ids[2]: ("A", "B"), ids[3]: ("A", "B")}
    merged = approved_symbols(ids, table, merge=True)
    assert merged.symbols.tolist() == ["Y_RNA", "Y_RNA", "ENSG00000000003", "ENSG00000000003"]


# ----------------------------------------------------------------------------------------------------------- real data
def test_the_custom_download_of_all_genes(real_data):
    table = read_symbols(str(real_data / "proteins/hgnc_all_genes.tsv.gz"))
    assert len(table) == 44_689
    assert table.genes("TAZ") == ("TAFAZZIN", "WWTR1")
    assert table.genes("YARS") == ("YARS1",)
    pairs = read_symbols(str(real_data / "proteins/hgnc_alias_to_approved.tsv.gz"))
    axis = (real_data / "vcc2025/gene_names.csv").read_text().split()
    # The two files are of different months.
    assert np.mean([table.genes(symbol) == pairs.genes(symbol) for symbol in axis]) > 0.98


def counts(resolutions):
    return pd.Series([resolution.how for resolution in resolutions]).value_counts().to_dict()


def test_the_challenge_of_2025_against_human_proteins(real_data):
    table = read_symbols(str(real_data / "proteins/hgnc_alias_to_approved.tsv.gz"))
    targets = pd.read_csv(real_data / "vcc2025/vcc2025_H1_all_targets_ncells.csv")["target_gene"]
    targets = targets[targets != "non-targeting"].tolist()
    axis = (real_data / "vcc2025/gene_names.csv").read_text().split()
    read = read_proteins(real_data / "proteins/human_proteins_SHS148k_by_symbol.fasta.gz")
    known = {protein.symbol for protein in read.proteins}

    against_some = coverage(targets, axis, table, known)
    assert counts(against_some.targets) == {"exact": 85, "missing": 215}
    assert counts(against_some.genes) == {"exact": 3839, "approved": 24, "ambiguous": 2, "missing": 14215}
    assert against_some.found()["HIST1H2AA"] == "H2AC1"

    against_all = coverage(targets, axis, table, {name for symbol in axis for name in table.genes(symbol)})
    assert counts(against_all.targets) == {"exact": 299, "ambiguous": 1}
    taz = next(resolution for resolution in against_all.targets if resolution.how == "ambiguous")
    assert (taz.symbol, taz.candidates) == ("TAZ", ("TAFAZZIN", "WWTR1"))
    assert taz.note.endswith("on the gene axis beside it: WWTR1")
    names = against_all.found()
    assert [names[symbol] for symbol in ("H3.Y", "HIST1H2AI", "PALM2-AKAP2", "CCDC84", "EPRS")] == [
        "H3Y1",
        "H2AC13",
        "PALM2AKAP2",
        "CENATAC",
        "EPRS1",
    ]
    ambiguous = {r.symbol for r in against_all.genes if r.how == "ambiguous"}
    assert ambiguous == {"TAZ", "DUSP27", "QARS", "MPP6", "DEC1", "SARS", "LOR"}
    assert counts(against_all.genes) == {"exact": 17777, "approved": 236, "ambiguous": 7, "missing": 60}


# ---------------------------------------------------------------------------------------------------- approved symbols
def test_a_name_of_exactly_one_gene_becomes_its_approved_symbol(table):
    names = ["DUSP27", "TP53", "TAZ", "UNHEARD", "p53", "Oct4", "C1orf112", "HIST1H2AI", "DUSP27"]
    brought = approved_symbols(np.array(names), table)
    # p53 would be TP53's second column; Oct4 is how mouse symbols are written; TAZ may be two genes.
    assert brought.symbols.tolist() == [
        "STYXL2",
        "TP53",
        "TAZ",
        "UNHEARD",
        "p53",
        "Oct4",
        "C1orf112",
        "H2AC13",
        "STYXL2",
    ]
    assert brought.symbols.dtype.kind == "U"
    assert brought.renamed == {"DUSP27": "STYXL2", "HIST1H2AI": "H2AC13"}
    assert brought.ambiguous == {"TAZ": ("TAFAZZIN", "WWTR1")}
    assert brought.taken == {"p53": "TP53"}
    assert approved_symbols(np.array(["p53"]), table).renamed == {"p53": "TP53"}


def test_two_other_names_of_one_gene_stay_two_columns_unless_merged(table):
    names = np.array(["HIST1H2AI", "H2AFC", "EFE2"])
    apart = approved_symbols(names, table)
    assert apart.symbols.tolist() == ["HIST1H2AI", "H2AFC", "TAFAZZIN"]
    assert apart.taken == {"HIST1H2AI": "H2AC13", "H2AFC": "H2AC13"}
    merged = approved_symbols(names, table, merge=True)
    assert merged.symbols.tolist() == ["H2AC13", "H2AC13", "TAFAZZIN"]
    assert merged.taken == {}


def test_a_pin_goes_before_the_table_but_not_over_another_column(table):
    pins = {"TAZ": "WWTR1", "QARS": "QARS", "DUSP27": "OTHER"}
    brought = approved_symbols(np.array(["TAZ", "QARS", "DUSP27"]), table, pins)
    assert brought.symbols.tolist() == ["WWTR1", "QARS", "OTHER"]
    assert brought.ambiguous == {}
    beside = approved_symbols(np.array(["TAZ", "WWTR1"]), table, pins)
    assert beside.symbols.tolist() == ["TAZ", "WWTR1"]
    assert beside.taken == {"TAZ": "WWTR1"}


def test_no_symbols_and_an_empty_table_change_nothing(table):
    assert approved_symbols(np.array([], dtype=str), table).symbols.shape == (0,)
    assert approved_symbols(np.array(["DUSP27", "TAZ"]), SymbolTable()).symbols.tolist() == ["DUSP27", "TAZ"]


def test_the_genes_of_the_challenge_brought_to_approved_symbols(real_data):
    table = read_symbols(str(real_data / "proteins/hgnc_alias_to_approved.tsv.gz"))
    genes = pd.read_csv(real_data / "vcc2025/gene_names.csv", header=None)[0].to_numpy(str)
    brought = approved_symbols(genes, table)
    assert len(set(brought.symbols)) == 18_080
    assert (len(brought.renamed), len(brought.ambiguous)) == (235, 7)
    assert brought.renamed["YARS"] == "YARS1"
    assert brought.ambiguous["TAZ"] == ("TAFAZZIN", "WWTR1")
    assert brought.taken == {"TIAF1": "MYO18A"}  # two genes, of which the table makes one
    again = approved_symbols(brought.symbols, table)
    np.testing.assert_array_equal(again.symbols, brought.symbols)
