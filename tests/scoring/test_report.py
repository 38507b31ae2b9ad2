import base64
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from scoring_screens import CONTROL

from vcc_fm.scoring.figures import lfc, scatter
from vcc_fm.scoring.report import headline, write_report

LOG = [
    {"phase": phase, "step": step, "split": split, "loss": 1 / step}
    for phase in ("pretrain", "adapt")
    for split in ("train", "validation")
    for step in (1, 2, 3)
]
COMPARED = {
    "genes": 60,
    "differ": 7,
    "differ_real": 2,
    "names": ["A"],
    "expressed": 50,
    "variance_off": 4,
    "zeros_off": 3,
    "variance_median": 1.25,
    "zeros_median": 0.875,
}
EMITTED = [
    {"context": "K<1>", "cells": "controls", **COMPARED},
    {"context": "K<1>", "cells": "TP53", **COMPARED, "differ": 1, "expressed": 0, "variance_median": None},
]


@pytest.fixture
def page(screen, table, tmp_path):
    path = tmp_path / "report.html"
    write_report(path, table, screen.truth, screen.good, CONTROL, LOG, "Run <1>", ["simulated & small"], EMITTED)
    return path.read_text()


def figures(page):
    return [base64.b64decode(data).decode() for data in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)]


def test_nothing_is_loaded_from_elsewhere(page):
    links = re.findall(r"(?:src|href)=\"([^\"]{0,12})", page)
    assert links == ["data:image/s"] * 3
    assert "<script" not in page
    for figure in figures(page):
        assert ET.fromstring(figure).tag.endswith("svg")
        assert not re.search(r"href=\"http", figure)


def test_text_is_escaped_and_tags_close(page):
    class Balance(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img", "br"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert "<h1>Run &lt;1&gt;</h1>" in page
    assert "simulated &amp; small" in page


def test_page_shows_every_entry_and_the_headline_numbers(page, table):
    for entry in table.rows["entry"].unique():
        assert page.count(f"<td>{entry}</td>") == 3, entry
    text = headline(table)
    assert f"{table.mean('replica'):.3f} over 2 contexts" in text
    best = max(("no effect", "cell-eval2 mean response"), key=table.mean)
    assert f"{table.mean('replica') - table.mean(best):.3f} above the best baseline, {best}" in text
    assert "a replicate scores 1.000" in text


def test_no_headline_is_read_from_few_metrics(table):
    anchors = table.anchors.copy()
    lost = (anchors["context"] == "beta") & (anchors["metric"] != "pds_cosine")
    anchors.loc[lost, "reason"] = "no value"
    text = headline(replace(table, anchors=anchors))
    assert text.startswith("No headline number can be given. beta: 1 of 6 metrics have a scale, a mean needs 4.")
    assert not re.search(r"\d\.\d", text)


def test_the_same_table_gives_the_same_page(page, screen, table, tmp_path):
    write_report(
        tmp_path / "again.html",
        table,
        screen.truth,
        screen.good,
        CONTROL,
        LOG,
        "Run <1>",
        ["simulated & small"],
        EMITTED,
    )
    assert (tmp_path / "again.html").read_text() == page


def test_emitted_cells_stand_beside_real_ones(page):
    real = "<td>7 of 60</td><td>2</td><td>4 of 50 (1.250)</td><td>3 of 50 (0.875)</td>"
    assert f"<td>K&lt;1&gt;</td><td>controls</td>{real}" in page
    assert "<td>TP53</td><td>1 of 60</td><td>–</td><td>–</td><td>–</td>" in page


def test_without_a_log_there_is_no_training_section(screen, table, tmp_path):
    write_report(tmp_path / "r.html", table, screen.truth, screen.good, CONTROL, None, "t", [], [])
    page = (tmp_path / "r.html").read_text()
    assert "Training" not in page
    assert len(figures(page)) == 2


def test_lfc_is_zero_without_effect_and_depth_does_not_matter():
    controls = np.array([10.0, 1000.0, 5000.0, 0.0])
    change, expressed = lfc(3 * controls, controls)
    assert change == pytest.approx(0.0)
    assert expressed.tolist() == [True, True, True, False]
    doubled, _ = lfc(controls * [1, 2, 1, 1], controls)
    assert doubled[1] - doubled[2] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("label", ["p$\\frac$0", "$x_", "a$b$c"])
def test_a_label_is_text_and_no_formula(label):
    group = {
        "context": label,
        "perturbation": label,
        "significant": 3,
        "genes": np.array(["A", "B"]),
        "controls": np.array([900.0, 100.0]),
        "measured": np.array([800.0, 200.0]),
        "predicted": np.array([850.0, 150.0]),
    }
    assert ET.fromstring(scatter([group])).tag.endswith("svg")
