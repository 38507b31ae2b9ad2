"""The expression that finds the genes in labels."""

import pytest

from vcc_fm.inspection.pattern import find_pattern

GENES = frozenset({"ATF2", "BLMH", "NKX2-1", "HLA-A", "MYC"})
SEPARATORS = ("+", "|")


def found(labels, controls=frozenset()):
    return find_pattern(labels, GENES, controls, SEPARATORS)


@pytest.mark.parametrize(
    ("labels", "pattern"),
    [
        (["ATF2_sg1", "NKX2-1_sg12", "HLA-A_sg2"], r"(.+)_sg\d+"),
        (["ATF2g1", "BLMHg2", "MYCg1"], r"(.+)g\d+"),
        (["sgATF2", "sgBLMH", "sgMYC"], "sg(.+)"),
        (["ATF2_P1P2_A", "BLMH_P1P2_B", "MYC_P1P2_A", "MYC_P1P2_B"], r"(.+)(?:_P\d+P\d+_A|_P\d+P\d+_B)"),
        (["ATF2_ACGT", "BLMH_TTGA", "MYC_GGCA", "HLA-A_AACC", "NKX2-1_ATAT"], "([^_]+)_.*"),
    ],
)
def test_what_surrounds_a_gene(labels, pattern):
    assert found(labels) == (pattern, "+", 1.0)


def test_parts_of_combinations():
    assert found(["ATF2_sg1|BLMH_sg2", "MYC_sg1|NTC", "BLMH_sg1"], {"NTC"}) == (r"(.+)_sg\d+", "|", 1.0)


def test_a_second_gene_is_never_lost():
    assert found(["ATF2_BLMH", "MYC_ATF2", "BLMH_MYC"]) is None


def test_labels_without_genes_have_no_pattern():
    assert found(["X1_sg1", "X2_sg1"]) is None
    assert found(["ATF2_sg1", *(f"drug{i}" for i in range(9))]) is None
