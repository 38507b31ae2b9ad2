"""The report in a browser: heads sort, the field searches, a chosen perturbation is drawn."""

import numpy as np
import pytest
from browser import opened
from reported import HOSTILE

ROWS = "#rows tbody tr"


def column(page, number):
    return page.texts(f"{ROWS} td:nth-child({number + 1})")


@pytest.mark.slow
def test_a_reader_sorts_searches_and_chooses(report):
    data = report.data()
    size = [(one["head"], one["under"]) for one in data["columns"]].index(("size", "measured"))
    sizes = [row[size] for row in data["rows"]]
    with opened(report.path) as page:
        assert column(page, 1) == [row[1] for row in data["rows"]]
        page.click("#rows th button", size)
        assert column(page, size) == [f"{value:.3f}" for value in sorted(sizes, reverse=True)]
        page.click("#rows th button", size)
        assert column(page, size) == [f"{value:.3f}" for value in sorted(sizes)]
        assert column(page, 1) == [data["rows"][place][1] for place in np.argsort(sizes, kind="stable")]
        assert page.run("return document.querySelector('#rows th[aria-sort]').ariaSort") == "ascending"
        page.click("#rows th button", 1)
        assert column(page, 1) == sorted(row[1] for row in data["rows"])

        page.type("#search", "g03")
        assert column(page, 1) == ["G03", "G03"]
        assert page.texts("#found") == ["2 of 12 perturbations"]
        page.clear("#search")
        page.type("#search", "BETA")
        assert set(column(page, 0)) == {"beta"}
        assert len(page.find(ROWS)) == 6

        page.click(f"#choose option[value='{4}']")
        effect = data["effects"][4]
        assert page.texts("#effect-said")[0].startswith(
            f"{effect['perturbation']} in {effect['context']}: r = {effect['r']:.3f}, {effect['significant']} signif"
        )
        titles = page.texts("#effect circle title")
        others = [place for place in range(len(effect["at"])) if place != effect["target"]]
        assert titles == [
            f"{data['genes'][effect['at'][place]]}: measured {effect['measured'][place] / 1000:g}, "
            f"predicted {effect['predicted'][place] / 1000:g}"
            for place in others
        ]
        assert page.texts("#effect path.target title")[0].startswith(f"{effect['perturbation']}: ")
        # Where a point stands is what it says: equal steps for equal numbers, up for more.
        x, y = np.array(
            page.run(
                "return [...document.querySelectorAll('#effect circle')].map(c => [+c.attributes.cx.value, "
                "+c.attributes.cy.value])"
            )
        ).T
        for place, name, sign in ((x, "measured", 1), (y, "predicted", -1)):
            values = np.array(effect[name])[others]
            slope, start = np.polyfit(values, place, 1)
            assert sign * slope > 0
            assert place == pytest.approx(slope * values + start, abs=0.1)
        assert page.errors() == []


@pytest.mark.slow
def test_many_metrics_are_shown_one_at_a_time(report, tmp_path):
    data = report.data()
    path = tmp_path / "many.html"
    path.write_text(report.text.replace('"most_metrics":8', '"most_metrics":5'))
    first = [one["head"] for one in data["columns"] if one["metric"] in (-1, 0)]
    last = [one["head"] for one in data["columns"] if one["metric"] in (-1, 5)]
    with opened(path) as page:
        assert page.texts("#rows th button") == first
        page.click("#metric option[value='5']")
        assert page.texts("#rows th button") == last
        at = next(place for place, one in enumerate(data["columns"]) if one["metric"] == 5)
        page.click("#rows th button", last.index(data["columns"][at]["head"]))
        values = [float(text) for text in column(page, first.index("place") + 1)]
        assert values == sorted((round(row[at], 3) for row in data["rows"]), reverse=True)


@pytest.mark.slow
def test_on_a_telephone_only_boxes_scroll(report):
    with opened(report.path, width=400) as page:
        assert page.run("return [document.documentElement.scrollWidth, innerWidth]") == [400, 400]
        wide = page.run(
            "return [...document.querySelectorAll('.wide')].filter(b => b.scrollWidth > b.clientWidth).length"
        )
        assert wide > 3


@pytest.mark.slow
def test_on_paper_everything_stands_within_the_page(report):
    with opened(report.path, width=720) as page:
        page.as_printed()
        assert page.run("return document.documentElement.scrollWidth") == 720
        assert page.run("return [...document.querySelectorAll('nav, .tools')].every(e => e.offsetHeight === 0)")


@pytest.mark.slow
def test_hostile_labels_are_shown_and_do_nothing(hostile):
    with opened(hostile.path) as page:
        assert page.run("return document.title") == HOSTILE["G00"]
        assert set(HOSTILE.values()) < set(column(page, 1))
        page.type("#search", "<img")
        assert column(page, 1) == [HOSTILE["G01"]] * 2
        assert set(HOSTILE.values()) < set(page.texts("#choose option"))
        assert page.errors() == []
