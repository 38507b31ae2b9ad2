import gzip

import numpy as np
import pandas as pd
import pytest

from vcc_fm.errors import UserError
from vcc_fm.sources.fasta import read_fasta
from vcc_fm.sources.symbols import SymbolTable, approved_symbols, coverage, read_symbols

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
    assert taz.note == "taken as it is, but it is no approved symbol and also a name of TAFAZZIN or WWTR1"
    assert table.resolve("TP53", {"TP53"}).note == ""
    assert table.resolve("UNHEARD", {"UNHEARD"}).note == ""


def test_pins(table):
    pins = {"TAZ": "WWTR1", "QARS": "QARS1", "DUSP27": "STYXL2"}
    assert found(table.resolve("TAZ", {"TAFAZZIN", "WWTR1"}, pins)) == ("pinned", "WWTR1")
    assert found(table.resolve("TAZ", {"TAZ", "WWTR1"}, pins)) == ("pinned", "WWTR1")
    assert found(table.resolve("QARS", {"GLNRS"}, pins)) == ("pinned", "GLNRS")
    absent = table.resolve("DUSP27", {"TP53"}, pins)
    assert (absent.how, absent.gene, absent.note) == ("missing", "STYXL2", "pinned to STYXL2, which is missing")
    with pytest.raises(UserError, match=r"embed\.proteins\.pins: TAX is neither a target gene nor on the gene axis"):
        coverage(["TAZ"], ["TP53"], table, {"WWTR1"}, {"TAX": "WWTR1"})
    with pytest.raises(UserError, match=r"embed\.proteins\.pins\.TAZ: WWTRI is no approved symbol and has no protein"):
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
        (b"", "not a tab-separated table"),
        (b"symbol\tname\nTP53\tx\n", "expected the columns symbol, status, alias_symbol, prev_symbol of HGNC's"),
        (b"alias\tapproved\n\xff\xfe\tx\n", "not a tab-separated table"),
        (gzip.compress(COMPLETE_SET.encode())[:-200], "gzip file cut short or damaged"),
    ],
)
def test_what_is_no_table_of_symbols(tmp_path, content, message):
    (tmp_path / "t.tsv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_symbols(str(tmp_path / "t.tsv"))
    with pytest.raises(UserError, match="no such file; get it from HGNC"):
        read_symbols(str(tmp_path / "absent.tsv"), get="HGNC")


# ----------------------------------------------------------------------------------------------------------- real data
def counts(resolutions):
    return pd.Series([resolution.how for resolution in resolutions]).value_counts().to_dict()


def test_the_challenge_of_2025_against_human_proteins(real_data):
    table = read_symbols(str(real_data / "proteins/hgnc_alias_to_approved.tsv.gz"))
    targets = pd.read_csv(real_data / "vcc2025/vcc2025_H1_all_targets_ncells.csv")["target_gene"]
    targets = targets[targets != "non-targeting"].tolist()
    axis = (real_data / "vcc2025/gene_names.csv").read_text().split()
    known = read_fasta(real_data / "proteins/human_proteins_SHS148k_by_symbol.fasta.gz").keys()

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
