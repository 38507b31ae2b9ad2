import gzip
import time
from pathlib import Path

import pytest

from vcc_fm.ground.errors import UserError
from vcc_fm.sources.fasta import Protein, isoforms, read_proteins

TEXT = ">TP53 P1 tumour protein\nMEEP\nqsd*\n\n>MYC\r\nMPLN-X\r\n>TP53 P2\nMEE\n"

UNIPROT = """\
>sp|P04637|P53_HUMAN Cellular tumor antigen p53 OS=Homo sapiens OX=9606 GN=TP53 PE=1 SV=4
MEEPQSDPSV
EPPLSQ
>sp|P04637-2|P53_HUMAN Isoform 2 of Cellular tumor antigen p53 OS=Homo sapiens OX=9606 GN=TP53
MEEPQS
>tr|A0A024|A0A024_HUMAN Uncharacterized protein OS=Homo sapiens OX=9606 PE=4 SV=1
MKV
>sp|Q9P2X7|DEC1_HUMAN Deleted in esophageal cancer 1 (by similarity: GN1=x) OS=Homo sapiens OX=9606 GN=ORF 1 PE=1
MAMNVLEAGKWKSIVPAPGEGLLAVLHMMVFTDALHRERSVKWQAGVCYNGGKDFAVSLARPKAAEGIA
"""

ENSEMBL = """\
>ENSP00000269305.4 pep chromosome:GRCh38:17:7668421:7687490:-1 gene:ENSG00000141510.18 transcript:ENST00000269305.9 \
gene_biotype:protein_coding transcript_biotype:protein_coding gene_symbol:TP53 description:tumor protein p53
MEEPQSDPSV
>ENSP00000391127.2 pep:known chromosome:GRCh38:17:1:2:-1 gene:ENSG00000141510.18 gene_symbol:TP53
MEEPQSDPSV
>ENSP00000398846.2 pep chromosome:GRCh38:17:1:2:-1 gene:ENSG00000141510.18 gene_symbol:TP53
MEE
>ENSP00000451560.1 pep chromosome:GRCh38:14:1:2:1 gene:ENSG00000223997.1 gene_biotype:TR_D_gene
EI
>ENSP00000400000.1 pep chromosome:GRCh38:1:1:2:1 gene:ENSG00000000001.1 gene_symbol:PSEU
ME*EP
"""


def sequences(path: Path) -> dict[str, list[str]]:
    """Distinct sequences of each gene."""
    genes = isoforms(read_proteins(path).proteins)
    return {symbol: [protein.sequence for protein in proteins] for symbol, proteins in genes.items()}


def write(folder, content):
    (folder / "p.fa").write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / "p.fa"


# ------------------------------------------------------------------------------------------------------------- headers
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_plain_isoforms_case_stops_and_line_ends(tmp_path, pack):
    path = write(tmp_path, pack(TEXT.encode()))
    assert sequences(path) == {"TP53": ["MEEPQSD", "MEE"], "MYC": ["MPLN-X"]}
    proteins, report = read_proteins(path)
    assert proteins[:2] == [Protein("TP53", "P1", "MEEPQSD"), Protein("MYC", "", "MPLN-X")]
    assert (report.kind, report.entries, report.genes, report.left_out) == ("plain", 3, 2, {})
    assert report.repairs == {"in lower case read as upper case": 1, "with a stop at the end taken off": 1}


def test_uniprot_with_isoforms_and_entries_without_a_gene(tmp_path):
    proteins, report = read_proteins(write(tmp_path, UNIPROT))
    assert [protein[:2] for protein in proteins] == [("TP53", "P04637"), ("TP53", "P04637-2"), ("ORF 1", "Q9P2X7")]
    assert [protein.sequence for protein in proteins[:2]] == ["MEEPQSDPSVEPPLSQ", "MEEPQS"]
    assert (report.kind, report.entries, report.genes) == ("uniprot", 4, 2)
    assert report.left_out == {"without a gene symbol": ["A0A024"]}
    assert report.text() == "4 proteins of 2 genes, uniprot headers; 1 without a gene symbol left out (A0A024)"


def test_ensembl_keeps_a_protein_once_and_leaves_out_pseudogenes(tmp_path):
    proteins, report = read_proteins(write(tmp_path, ENSEMBL))
    assert [protein.accession for protein in proteins] == [
        "ENSP00000269305.4",
        "ENSP00000391127.2",
        "ENSP00000398846.2",
    ]
    assert report.kind == "ensembl"
    assert report.left_out == {
        "without a gene symbol": ["ENSP00000451560.1"],
        "with a stop inside the sequence": ["ENSP00000400000.1"],
    }
    distinct = isoforms(proteins)["TP53"]
    assert [protein.accession for protein in distinct] == ["ENSP00000269305.4", "ENSP00000398846.2"]
    assert sequences(tmp_path / "p.fa") == {"TP53": ["MEEPQSDPSV", "MEE"]}


def test_entries_are_whole_wherever_a_block_ends(tmp_path, monkeypatch):
    whole = read_proteins(write(tmp_path, "\ufeff\n" + UNIPROT))
    for block in (8, 9, 10, 64, 65, 66, 67, 101):
        monkeypatch.setattr("vcc_fm.sources.fasta._BLOCK", block)
        assert read_proteins(tmp_path / "p.fa") == whole


def test_a_long_entry_is_read_in_time_that_grows_with_its_length(tmp_path, monkeypatch):
    # Of 65,536 blocks: joined anew at each of them, it takes minutes.
    monkeypatch.setattr("vcc_fm.sources.fasta._BLOCK", 64)
    long = write(tmp_path, ">TITIN\n" + "MEEPQSD\n" * (1 << 19) + ">B\nM\n")
    started = time.process_time()
    assert [len(protein.sequence) for protein in read_proteins(long).proteins] == [7 << 19, 1]
    assert time.process_time() - started < 5


# --------------------------------------------------------------------------------------------------------- odd entries
@pytest.mark.parametrize(
    ("text", "reason", "names", "detail"),
    [
        (">ODD\nMKT*LLV\n", "with a stop inside the sequence", ["ODD"], "(ODD): '*' at residue 4 stands for no amino"),
        (">ODD 1\n\n", "without a sequence", ["1"], "(ODD 1): has no sequence"),
        (">ODD\n*\n", "without a sequence", ["ODD"], "has no sequence"),
        (">ODD\nMEE\nP1Q\n", "with a character that stands for no amino acid", ["ODD"], "'1' at residue 5"),
        (">ODD\nMé\n", "with a character that stands for no amino acid", ["ODD"], "at residue 2 stands for no"),
        (">ODD\nXXX-\n", "without a standard amino acid", ["ODD"], "has no standard amino acid, found 'XXX-'"),
        (">ODD\n" + "ATGC" * 20, "of nucleotides", ["ODD"], "holds nucleotides"),
        (
            ">ODD\nM\n>ODD\nMK\n>ODD\nM",
            "under a header that comes twice, with another sequence,",
            ["ODD", "ODD"],
            "an isoform needs an id of its own",
        ),
        (">NP_000537.3 cellular tumor antigen p53\nM\n", "named by the id of a protein", ["NP_000537.3"], None),
        (">ENSP00000269305.4\nM\n", "named by the id of a protein", ["ENSP00000269305.4"], None),
        ("> B\nM\n", "without a gene symbol", ["entry {}"], None),
        (">\nM\n", "without a gene symbol", ["entry {}"], None),
    ],
)
@pytest.mark.parametrize("around", [TEXT, UNIPROT, ENSEMBL], ids=["plain", "uniprot", "ensembl"])
@pytest.mark.parametrize("first", [True, False])
def test_an_odd_entry_is_left_out_named_and_told_to_who_needs_it(tmp_path, around, first, text, reason, names, detail):
    sound, before = read_proteins(write(tmp_path, around))
    proteins, report = read_proteins(write(tmp_path, text + "\n" + around if first else around + "\n" + text))
    assert proteins == sound
    assert (report.kind, report.genes) == (before.kind, before.genes)
    place = 1 if first else before.entries + 1
    expected = [name.format(place) for name in names] + before.left_out.get(reason, [])
    assert sorted(report.left_out[reason]) == sorted(expected)
    assert list(report.faulty) == ([] if detail is None else ["ODD"])
    if detail is not None:
        assert detail in report.faulty["ODD"]
    assert f"{len(expected)} {reason} left out" in report.text()


def test_a_gene_with_a_sound_isoform_is_not_faulty(tmp_path):
    proteins, report = read_proteins(write(tmp_path, ">A 1\nM*M\n>A 2\nMK\n>A 3\n\n"))
    assert proteins == [Protein("A", "2", "MK")]
    assert report.left_out == {"with a stop inside the sequence": ["1"], "without a sequence": ["3"]}
    assert report.faulty == {}


def test_an_entry_that_comes_again_is_read_once(tmp_path):
    for text in (TEXT, UNIPROT, ENSEMBL):
        once, before = read_proteins(write(tmp_path, text))
        twice, report = read_proteins(write(tmp_path, text + text))
        assert twice == once
        assert report.repairs == before.repairs | {"that come again read once": len(once)}


def test_proteins_of_ones_own_beside_those_of_uniprot(tmp_path):
    for text in (UNIPROT + ">GFP\nMSK\n>LUC P9\nMED\n", ">GFP\nMSK\n>LUC P9\nMED\n" + UNIPROT):
        proteins, report = read_proteins(write(tmp_path, text))
        assert {("GFP", "", "MSK"), ("LUC", "P9", "MED")} < set(proteins)
        assert (report.kind, len(proteins)) == ("uniprot", 5)
        assert report.repairs == {"with another header than the uniprot one of most": 2}


def test_a_protein_of_another_organism_is_left_out(tmp_path):
    human = "".join(f">sp|P{i:05}|X OX=9606 GN=G{i}\nM\n" for i in range(30))
    cow = ">sp|Q1|ALBU_BOVIN OX=9913 GN=ALB\nMK\n>sp|Q2|X_BOVIN OX=9913 GN=G1\nMK\n"
    proteins, report = read_proteins(write(tmp_path, cow + human))
    assert [protein.symbol for protein in proteins] == [f"G{i}" for i in range(30)]
    assert report.left_out == {"of another organism": ["Q1", "Q2"]}
    assert report.faulty == {"ALB": "Q1: is of organism OX=9913 in a file of OX=9606"}


def test_a_header_may_hold_any_text_after_its_names(tmp_path):
    assert sequences(write(tmp_path, ">A é ü\nM\n".encode("latin-1") + ">B β\nMK\n".encode())) == {
        "A": ["M"],
        "B": ["MK"],
    }


# ------------------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not FASTA: starts with ''"),
        ("MEEP\n>A\nMEE\n", "not FASTA: starts with 'MEEP"),
        (">", "none of the 1 proteins can be used; entry 1 .*has no gene symbol"),
        (">A\nM\n>A\nMK\n", r"none of the 2 .*entry 2 \(A\): its header comes twice, with another sequence"),
        (">A 1\n" + "ATGC" * 20 + "\n>B\n" + "ATGC" * 20, r"none of the 2 .*entry 1 \(A 1\): holds nucleotides"),
        (UNIPROT.replace("9606 GN=TP53 PE", "10090 GN=TP53 PE"), r"2 organisms \(OX=10090 in P04637, OX=9606 in"),
        (">NP_000537.3 cellular tumor antigen p53\nM\n", r"\(NP_000537\.3 cellular\): names a protein, not a gene"),
        (">ENSP00000269305.4|ENST00000269305.9|ENSG|-|-|TP53-201|TP53|393\nM\n", "names a protein, not a gene"),
        (ENSEMBL.replace("gene_symbol", "symbol"), r"none of the 5 proteins can be used; entry 1 .*no gene symbol"),
    ],
)
def test_what_is_no_protein_fasta(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_proteins(write(tmp_path, text))


def test_missing_folder_and_cut_files(tmp_path):
    with pytest.raises(UserError, match=r"p\.fa: no such file$"):
        read_proteins(tmp_path / "p.fa")
    with pytest.raises(UserError, match="is a folder"):
        read_proteins(tmp_path)
    packed = gzip.compress(TEXT.encode() * 50)
    for content in (packed[:-6], packed[:40], b"\x1f\x8b not gzip"):
        with pytest.raises(UserError, match="gzip file cut short or damaged"):
            read_proteins(write(tmp_path, content))


def test_human_proteins(real_data):
    proteins, report = read_proteins(real_data / "proteins/human_proteins_SHS148k_by_symbol.fasta.gz")
    assert (report.kind, report.genes, report.left_out) == ("plain", 4035, {})
    tp53 = isoforms(proteins)["TP53"]
    assert [len(protein.sequence) for protein in tp53] == [393]
    assert tp53[0].accession == "9606.ENSP00000269305"
    assert tp53[0].sequence.startswith("MEEPQSDPSVEPPLSQETFSDLWKLLPENN")
