"""Which labels look like a control."""

import pytest

from vcc_fm.sources.controls import looks_like_control


@pytest.mark.parametrize(
    "label",
    [
        *(
            "non-targeting",
            "Non-Targeting Control #1",
            "non-targeting_00001",
            "nontargeting",
            "NO-TARGET",
            "NT",
            "NTC_7",
        ),
        *("ctrl", "Control", "control_1", "siControl", "sgControl", "neg", "neg_ctrl", "NegCtrl0", "negative_control"),
        *("NegCtrl0_NegCtrl0__NegCtrl0_NegCtrl0", "sgNT", "sgNTC-2", "NTg1", "NTC_sg3", "scramble", "Scrambled siRNA"),
        *("untreated", "unperturbed", "mock", "vehicle", "DMSO", "WT", "wild-type", "empty", "empty vector"),
        *("GFP", "EGFP", "LacZ", "Luciferase", "AAVS1", "Rosa26", "intergenic", "INTERGENIC_216151", "NO_SITE_2"),
        *("ONE_NON-GENE_SITE", "safe-targeting", "safe harbor"),
        *("unstim", "no stimulation", "No_Treatment", "vehicle (DMSO)", "PBS", "0.1% DMSO", "placebo", "none"),
    ],
)
def test_words_for_a_control(label: str) -> None:
    assert looks_like_control(label)


@pytest.mark.parametrize(
    "label",
    [
        *(
            "NEGR1",
            "WT1",
            "WT1-AS",
            "NT5E",
            "NTS",
            "NTRK1",
            "CTLA4",
            "SAFB",
            "MOCS1",
            "LUC7L",
            "GFPT1",
            "SCRIB",
            "SIT1",
        ),
        *("BLMH+ctrl", "BLMH_NegCtrl0", "BLMH-ctrl", "targeting", "12", "", "unassigned", "ONECUT1"),
        *("stim", "0.2 uM panobinostat", "NONO", "PBSN", "medium", "no"),
    ],
)
def test_genes_and_combinations_are_none(label: str) -> None:
    assert not looks_like_control(label)
