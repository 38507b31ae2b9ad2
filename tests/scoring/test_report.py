"""The page of a run: its numbers, what it does with hostile labels, and that nothing is loaded from elsewhere."""

import base64
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html import escape
from html.parser import HTMLParser

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from reported import FIGURES, HOSTILE, LOG
from scoring_screens import CONTROL

from vcc_fm.scoring.report.groups import lfc, read_contexts
from vcc_fm.scoring.report.plots import training, written
from vcc_fm.scoring.report.plots_groups import discrimination
from vcc_fm.scoring.report.rows import data_of, parts_of
from vcc_fm.scoring.report.tables import best_baseline, headline, html_table


def figures(page):
    return [base64.b64decode(data).decode() for data in re.findall(r"data:image/svg\+xml;base64,([^\"]+)", page)]


def test_nothing_is_loaded_from_elsewhere(report):
    links = re.findall(r"(?:src|href)=\"(#s|[^\"]{0,12})", report.text)
    assert [link for link in links if link != "#s"] == ["data:image/s"] * len(FIGURES)
    assert "default-src 'none'" in report.text
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp", report.text)
    for figure in figures(report.text):
        assert ET.fromstring(figure).tag.endswith("svg")
        assert not re.search(r"href=\"http", figure)


def test_every_figure_is_a_file_too(report):
    folder = report.folder
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg")
    )
    assert [(folder / f"{name}.svg").read_text() for name in FIGURES] == figures(report.text)
    for name in FIGURES:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_text_is_escaped_and_tags_close(report):
    class Balance(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open = []

        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img", "br", "input"):
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    balance = Balance()
    balance.feed(report.text)
    assert balance.open == []
    assert "<h1>Run &lt;1&gt;</h1>" in report.text
    assert "simulated &amp; small" in report.text
    for text in ("few-shot & <b>", "te<st", "name: </pre>"):
        assert escape(text) in report.text


def test_page_shows_every_entry_and_the_headline_numbers(report, table):
    for entry in table.rows["entry"].unique():
        assert report.text.count(f"<td>{entry}</td>") == 3, entry
    text = headline(table)
    assert f"{table.mean('replica'):.3f} over 2 contexts" in text
    best = max(("no effect", "cell-eval2 mean response"), key=table.mean)
    assert best_baseline(table) == best
    assert f"{table.mean('replica') - table.mean(best):.3f} above the best baseline, {best}" in text
    assert "a replicate scores 1.000" in text


def test_what_a_limit_cut_off_stands_in_brackets(table, screen, tmp_path, report):
    cut = table.rows[~np.isclose(table.rows["scaled"], table.rows["unclamped"])]
    assert len(cut)
    for scaled, unclamped, raw in cut[["scaled", "unclamped", "raw"]].values:
        assert f"<td>{scaled:.3f} ({unclamped:.3f})<br><small>{raw:.3f}</small></td>" in report.text


def test_no_headline_is_read_from_few_metrics(table):
    anchors = table.anchors.copy()
    lost = (anchors["context"] == "beta") & (anchors["metric"] != "pds_cosine")
    anchors.loc[lost, "reason"] = "no value"
    text = headline(replace(table, anchors=anchors))
    assert text.startswith("No headline number can be given. beta: 1 of 6 metrics have a scale, a mean needs 4.")
    assert not re.search(r"\d\.\d", text)


def test_the_same_scores_give_the_same_bytes(screen, table, report, tmp_path):
    contexts, rows = read_contexts(screen.truth, screen.good, CONTROL, table.significant, 50)
    assert json.loads(json.dumps(data_of(table, contexts, rows))) == report.data()
    for name, drawn in (("discrimination", discrimination(contexts)), ("training", training(LOG))):
        written(drawn, tmp_path, name)
        for kind in ("png", "svg"):
            assert (tmp_path / f"{name}.{kind}").read_bytes() == (report.folder / f"{name}.{kind}").read_bytes()


def test_emitted_cells_stand_beside_real_ones(report):
    real = "<td>7 of 60</td><td>2</td><td>4 of 50 (1.250)</td><td>3 of 50 (0.875)</td>"
    assert f"<td>K&lt;1&gt;</td><td>controls</td>{real}" in report.text
    assert "<td>TP53</td><td>1 of 60</td><td>–</td><td>–</td><td>–</td>" in report.text


def test_without_a_log_there_is_no_training_section(hostile, report):
    assert "<h2>Training</h2>" in report.text
    assert "Training" not in hostile.text
    assert not (hostile.folder / "training.svg").exists()


def test_rows_are_what_each_perturbation_gives_to_the_scores(report, table, screen):
    data = report.data()
    heads = [(column["head"], column["under"]) for column in data["columns"]]
    truth, best = ad.read_h5ad(screen.truth), best_baseline(table)
    assert len(data["rows"]) == 12
    for row in data["rows"]:
        one = dict(zip(heads, row, strict=True))
        group = (one["context", ""], one["perturbation", ""])
        assert one["cells", "measured"] == 24
        counted = table.significant.set_index(["context", "perturbation"])["significant"]
        assert one["significant genes", "measured"] == counted[group]
        for metric, label in table.labels.items():
            for entry in ("replica", best):
                values = table.values.set_index(["entry", "context", "metric", "perturbation"])
                part = values.loc[(entry, group[0], metric, group[1])]
                expected = part["numerator"] / part["denominator"] if part["denominator"] else np.nan
                assert one[label, entry] == pytest.approx(expected, rel=1e-3), (group, metric)
    assert {row[0] for row in data["rows"]} == set(truth.obs["context"])


def test_sizes_and_changes_are_those_of_pseudobulks(report, screen):
    """Beside a plain computation from all cells at once."""
    data = report.data()
    truth, good = ad.read_h5ad(screen.truth), ad.read_h5ad(screen.good)

    def total(cells, context, label):
        chosen = (cells.obs["context"] == context) & (cells.obs["perturbation"] == label)
        return np.asarray(cells.X[chosen.to_numpy()].sum(axis=0), dtype=float).ravel()

    heads = [(column["head"], column["under"]) for column in data["columns"]]
    rows = {(row[0], row[1]): dict(zip(heads, row, strict=True)) for row in data["rows"]}
    assert len(data["effects"]) == 12
    for effect in data["effects"]:
        context, label = effect["context"], effect["perturbation"]
        controls = total(truth, context, CONTROL)
        share = controls / controls.sum() * 1e6
        both = []
        for cells in (truth, good):
            counts = total(cells, context, label)
            both.append(np.log2((counts / counts.sum() * 1e6 + 5) / (share + 5)))
        at = truth.var_names.get_indexer([data["genes"][gene] for gene in effect["at"]])
        assert set(at) == set(np.flatnonzero(share > 5))
        for name, change in zip(("measured", "predicted"), both, strict=True):
            assert np.array(effect[name]) / 1000 == pytest.approx(change[at], abs=6e-4)
        assert truth.var_names[at[effect["target"]]] == label
        others = at[truth.var_names[at] != label]
        measured, predicted = (change[others] for change in both)
        assert effect["r"] == pytest.approx(np.corrcoef(measured, predicted)[0, 1], rel=1e-3)
        row = rows[context, label]
        assert row["size", "measured"] == pytest.approx(np.sqrt(np.mean(measured**2)), rel=1e-3)
        assert row["size", "predicted"] == pytest.approx(np.sqrt(np.mean(predicted**2)), rel=1e-3)


def test_the_page_is_small(report):
    assert len(report.text.encode()) < 1_000_000


def test_hostile_labels_stay_text(hostile):
    page = hostile.text
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    for text in (*HOSTILE.values(), "<i>replica</i>"):
        assert escape(text) in page
    assert not re.search(r"<img (?!src=\"data:)|<i>|<!--", page)
    data = hostile.data()
    assert {*HOSTILE.values()} < {row[1] for row in data["rows"]}
    assert {*HOSTILE.values()} < set(data["genes"])
    for figure in figures(page):
        assert ET.fromstring(figure).tag.endswith("svg")


def test_parts_of_ratios_are_ratios_and_of_nothing_none(table):
    rows = pd.DataFrame({"context": ["alpha"] * 2, "perturbation": ["G00", "elsewhere"]})
    metric = next(iter(table.metrics))
    values = table.values.copy()
    here = (values["entry"] == "replica") & (values["metric"] == metric) & (values["perturbation"] == "G00")
    values.loc[here, ["numerator", "denominator"]] = (3.0, 4.0)
    found = parts_of(replace(table, values=values), rows)["replica"][metric]
    assert found[0] == 0.75
    assert np.isnan(found[1])
    values.loc[here, "denominator"] = 0.0
    assert parts_of(replace(table, values=values), rows)["replica"][metric].isna().all()


def test_a_table_scrolls_in_its_own_box():
    assert html_table("a<b", ["h&"], [["<i>x</i>"]], kinds=["model"]) == (
        '<div class="wide" tabindex="0"><table class=""><caption><span>a&lt;b</span></caption>'
        '<thead><tr><th scope="col">h&amp;</th></tr></thead>'
        '<tbody><tr class="model"><td><i>x</i></td></tr></tbody></table></div>'
    )


def test_lfc_is_zero_without_effect_and_depth_does_not_matter():
    controls = np.array([10.0, 1000.0, 5000.0, 0.0])
    change, expressed = lfc(3 * controls, controls)
    assert change == pytest.approx(0.0)
    assert expressed.tolist() == [True, True, True, False]
    doubled, _ = lfc(controls * [1, 2, 1, 1], controls)
    assert doubled[1] - doubled[2] == pytest.approx(1.0, abs=0.01)
