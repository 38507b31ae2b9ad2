import gzip

import pytest

from vcc_fm.errors import UserError
from vcc_fm.sources.fasta import Protein, isoforms, read_fasta, read_proteins

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


def write(folder, content):
    (folder / "p.fa").write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / "p.fa"


# ------------------------------------------------------------------------------------------------------------- headers
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_plain_isoforms_case_stops_and_line_ends(tmp_path, pack):
    path = write(tmp_path, pack(TEXT.encode()))
    assert read_fasta(path) == {"TP53": ["MEEPQSD", "MEE"], "MYC": ["MPLN-X"]}
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
    assert read_fasta(tmp_path / "p.fa") == {"TP53": ["MEEPQSDPSV", "MEE"]}


def test_entries_are_whole_wherever_a_block_ends(tmp_path, monkeypatch):
    whole = read_proteins(write(tmp_path, "\ufeff\n" + UNIPROT))
    for block in (64, 65, 66, 67, 101):
        monkeypatch.setattr("vcc_fm.sources.fasta._BLOCK", block)
        assert read_proteins(tmp_path / "p.fa") == whole


# ------------------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not FASTA: starts with ''"),
        ("MEEP\n>A\nMEE\n", "not FASTA: starts with 'MEEP"),
        (">A 1\nM\n> B\nM\n", "entry 2 has no gene symbol in its header '> B'"),
        (">A\nM\n>\nM\n", "entry 2 has no gene symbol"),
        (">A 1\nM\n>A  1 again\nM\n", "entry 2: header '>A 1' comes twice; an isoform needs an id of its own"),
        (">A\nM\n>A\nM\n", "header '>A' comes twice"),
        (UNIPROT + UNIPROT, "entry 5: header '>P04637' comes twice"),
        (ENSEMBL + ENSEMBL, r"entry 6: header '>ENSP00000269305\.4' comes twice"),
        (">A 1\nM\n>B 2\n", r"entry 2 \(B 2\): has no sequence"),
        (">A 1\n*\n", "has no sequence"),
        (">A 1\nMEE\nP1Q\n", r"entry 1 \(A 1\): '1' at residue 5"),
        (">A 1\nME*EP\n", r"'\*' at residue 3"),
        (">A 1\n" + "ATGC" * 20, "holds nucleotides"),
        (">A é\nM\n", "no ASCII"),
        (">A 1\nMé\n", "at residue 2 stands for no amino acid"),
        (UNIPROT + ">TP53 P9\nM\n", r"entry 5 \('>TP53 P9'\) has a plain header in a uniprot file"),
        (">TP53 P9\nM\n" + UNIPROT, "entry 2 .* has a uniprot header in a plain file"),
        (UNIPROT.replace("9606 GN=TP53 PE", "10090 GN=TP53 PE"), r"2 organisms \(OX=10090 in P04637, OX=9606 in"),
        (">NP_000537.3 cellular tumor antigen p53\nM\n", r"'>NP_000537\.3' names a protein, not a gene"),
        (">ENSP00000269305.4\nM\n", "names a protein, not a gene"),
        (">ENSP00000269305.4|ENST00000269305.9|ENSG|-|-|TP53-201|TP53|393\nM\n", "names a protein, not a gene"),
        (ENSEMBL.replace("gene_symbol", "symbol"), r"none of the 5 proteins has a gene symbol \(ensembl headers\)"),
    ],
)
def test_what_is_no_protein_fasta(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_fasta(write(tmp_path, text))


def test_missing_folder_and_cut_files(tmp_path):
    with pytest.raises(UserError, match=r"p\.fa: no such file; get it from UniProt"):
        read_fasta(tmp_path / "p.fa", get="UniProt")
    with pytest.raises(UserError, match="is a folder"):
        read_fasta(tmp_path)
    packed = gzip.compress(TEXT.encode() * 50)
    for content in (packed[:-6], packed[:40], b"\x1f\x8b not gzip"):
        with pytest.raises(UserError, match="gzip file cut short or damaged"):
            read_fasta(write(tmp_path, content))


def test_human_proteins(real_data):
    proteins, report = read_proteins(real_data / "proteins/human_proteins_SHS148k_by_symbol.fasta.gz")
    assert (report.kind, report.genes, report.left_out) == ("plain", 4035, {})
    tp53 = isoforms(proteins)["TP53"]
    assert [len(protein.sequence) for protein in tp53] == [393]
    assert tp53[0].accession == "9606.ENSP00000269305"
    assert tp53[0].sequence.startswith("MEEPQSDPSVEPPLSQETFSDLWKLLPENN")
