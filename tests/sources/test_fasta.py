import gzip

import pytest

from vcc_fm.errors import UserError
from vcc_fm.sources.fasta import read_fasta

TEXT = ">TP53 P1 tumour protein\nMEEP\nqsd*\n\n>MYC\r\nMPLN-X\r\n>TP53 P2\nMEE\n"


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_isoforms_case_stops_and_line_ends(tmp_path, pack):
    (tmp_path / "proteins.fasta").write_bytes(pack(TEXT.encode()))
    assert read_fasta(tmp_path / "proteins.fasta") == {"TP53": ["MEEPQSD", "MEE"], "MYC": ["MPLN-X"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not FASTA: starts with ''"),
        ("MEEP\n>A\nMEE\n", "not FASTA: starts with 'MEEP"),
        (">A 1\nM\n> B\nM\n", "entry 2 has no gene symbol in its header '> B'"),
        (">A\nM\n>\nM\n", "entry 2 has no gene symbol"),
        (">A 1\nM\n>A  1\nM\n", "header '>A 1' comes twice"),
        (">A 1\nM\n>B 2\n", r"entry 2 \(B 2\): has no sequence"),
        (">A 1\n*\n", "has no sequence"),
        (">A 1\nMEE\nP1Q\n", r"entry 1 \(A 1\): '1' at residue 5"),
        (">A 1\nME*EP\n", r"'\*' at residue 3"),
        (">A 1\n" + "ATGC" * 20, "holds nucleotides"),
        (">A é\nM\n", "no ASCII"),
    ],
)
def test_what_is_no_protein_fasta(tmp_path, text, message):
    (tmp_path / "p.fa").write_text(text)
    with pytest.raises(UserError, match=message):
        read_fasta(tmp_path / "p.fa")


def test_missing_folder_and_cut_files(tmp_path):
    with pytest.raises(UserError, match=r"p\.fa: no such file; get it from UniProt"):
        read_fasta(tmp_path / "p.fa", get="UniProt")
    with pytest.raises(UserError, match="is a folder"):
        read_fasta(tmp_path)
    packed = gzip.compress(TEXT.encode() * 50)
    for content in (packed[:-6], packed[:40], b"\x1f\x8b not gzip"):
        (tmp_path / "p.fa.gz").write_bytes(content)
        with pytest.raises(UserError, match="gzip file cut short or damaged"):
            read_fasta(tmp_path / "p.fa.gz")


def test_human_proteins(real_data):
    proteins = read_fasta(real_data / "proteins/human_proteins_SHS148k_by_symbol.fasta.gz")
    assert len(proteins) == 4035
    assert [len(sequence) for sequence in proteins["TP53"]] == [393]
    assert proteins["TP53"][0].startswith("MEEPQSDPSVEPPLSQETFSDLWKLLPENN")
