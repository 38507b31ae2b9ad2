import json
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
from scoring_screens import table_of

from vcc_fm.ground.errors import UserError
from vcc_fm.run.seeds import scored
from vcc_fm.scoring.means import ALL, scaled_means
from vcc_fm.scoring.presets.vcc2026 import Vcc2026
from vcc_fm.scoring.seeds import SCALED_MEAN, over_seeds, to_markdown
from vcc_fm.scoring.table import VALUES, ScoreTable, read_table


def small_table(shift: float = 0.0, version: str = "1", missing: bool = False) -> ScoreTable:
    rows = pd.DataFrame(
        [
            {
                "entry": entry,
                "kind": kind,
                "context": context,
                "metric": metric,
                "raw": start + shift,
                "scaled": start,
                "unclamped": start,
            }
            for entry, kind, start in (("m|1", "model", 0.5 + shift), ("control", "baseline", 0.0))
            for context in ("a", "b")
            for metric in Vcc2026.metrics
        ]
    ).assign(perturbations=3, reason="")
    rows["unclamped"] = rows["scaled"]
    anchors = pd.DataFrame(
        {"context": ["a"] * 6 + ["b"] * 6, "metric": [*Vcc2026.metrics] * 2, "low": 0.5, "high": 0.9}
    )
    anchors = anchors.assign(floor=np.nan, ceiling=0.9, ceiling_sd=0.1, reason="")
    if missing:
        lost = (rows["context"] == "b") & (rows["metric"] == "pds_cosine")
        rows.loc[lost, ["raw", "scaled", "unclamped"]] = np.nan
        rows.loc[lost, "reason"] = anchors.loc[6, "reason"] = "no value <here>"
    return table_of(
        rows=rows.assign(scorer="s", version=version),
        means=scaled_means(rows, anchors, 4, ["pds_cosine"]),
        anchors=anchors,
        values=pd.DataFrame([("m|1", "a", "pds_cosine", "G", shift, 1.0)], columns=list(VALUES)),
        significant=pd.DataFrame({"perturbation": ["G"], "significant": [4], "context": ["a"]}),
        notes=["a note"],
        preset="vcc2026",
        version=version,
        parameters={"fdr": "per perturbation"},
        metrics=Vcc2026.metrics,
        members=["pds_cosine"],
    )


def write(folder, name, table):
    path = folder / name / "scores.json"
    table.write_json(path)
    return path


def test_json_gives_the_table_back_and_is_strict(tmp_path):
    table = small_table(missing=True)
    path = write(tmp_path, "run", table)
    assert "NaN" not in path.read_text()
    again = read_table(path)
    for field in fields(ScoreTable):
        expected = getattr(table, field.name)
        if isinstance(expected, pd.DataFrame):
            pd.testing.assert_frame_equal(getattr(again, field.name), expected)
        else:
            assert getattr(again, field.name) == expected
    assert [entry.name for entry in path.parent.iterdir()] == ["scores.json"]


def test_csv_has_a_row_per_entry_context_and_metric(tmp_path):
    small_table(missing=True).write_csv(tmp_path / "scores.csv")
    rows = pd.read_csv(tmp_path / "scores.csv")
    assert len(rows) == 2 * 2 * 6
    assert rows["scaled"].isna().sum() == 2


def test_a_missing_member_is_named_once_for_all_entries():
    assert small_table(missing=True).missing() == ["b, PDS, every entry: no value <here>"]


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file; run the score stage"):
        read_table(tmp_path / "scores.json")
    for content in ("{", json.dumps({"rows": []}), "[1]"):
        (tmp_path / "scores.json").write_text(content)
        with pytest.raises(UserError, match="is not readable as a score table: "):
            read_table(tmp_path / "scores.json")


def test_seeds_give_mean_and_sd(tmp_path):
    for n, shift in enumerate((0.0, 0.1, 0.2)):
        write(tmp_path, f"seed{n}", small_table(shift))
    frame = over_seeds(scored(f"{tmp_path}/seed*")).set_index(["entry", "context", "metric", "quantity"])
    overall = frame.loc[("m|1", ALL, SCALED_MEAN, "scaled")]
    assert overall[["mean", "sd", "runs", "seed0", "seed2"]].tolist() == pytest.approx([0.6, 0.1, 3, 0.5, 0.7])
    assert frame.loc[("m|1", "a", "pds_cosine", "raw"), "mean"] == pytest.approx(0.7)
    assert frame.loc[("control", ALL, "pds_cosine", "scaled"), "sd"] == 0.0


def test_seeds_are_not_averaged_over_what_is_missing():
    frame = over_seeds({"one": small_table(), "two": small_table(missing=True)}).set_index(
        ["entry", "context", "metric", "quantity"]
    )
    assert np.isnan(frame.loc[("m|1", ALL, "pds_cosine", "scaled"), "mean"])
    assert frame.loc[("m|1", "a", "pds_cosine", "scaled"), "mean"] == 0.5


def test_a_run_without_a_headline_has_no_mean_and_is_named_however_it_was_stored(tmp_path):
    one = small_table(0.4)
    one.anchors.loc[one.anchors["metric"] != "pds_cosine", "reason"] = "no value"
    one.rows.loc[one.rows["metric"] != "pds_cosine", "scaled"] = np.nan
    assert one.mean("m|1") == pytest.approx(0.9)  # as a program wrote it that averaged over one metric of six
    again = read_table(write(tmp_path, "one", one))
    assert np.isnan(again.mean("m|1"))
    frame = over_seeds({"two": small_table(), "one": again}).set_index(["entry", "context", "metric", "quantity"])
    assert np.isnan(frame.loc[("m|1", ALL, SCALED_MEAN, "scaled"), "mean"])
    reason = "1 of 6 metrics have a scale, a mean needs 4"
    assert again.no_headline() == f"a, b: {reason}"


def test_markdown_puts_the_best_first_and_escapes_names():
    tables = {f"seed{n}": small_table(n / 10, missing=True) for n in range(2)}
    lines = to_markdown(over_seeds(tables)).splitlines()
    assert lines[0].startswith("| entry | kind | PDS |")
    assert lines[2] == "| m\\|1 | model | – |" + " 0.550 ± 0.071 |" * 6
    assert lines[3].startswith("| control | baseline | – | 0.000 ± 0.000 |")
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_one_seed_has_no_sd():
    assert "±" not in to_markdown(over_seeds({"only": small_table()}))


def test_seeds_that_make_no_table_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"two: scored by s 2 vcc2026, but one by s 1 vcc2026"):
        over_seeds({"one": small_table(), "two": small_table(version="2")})
    other = small_table()
    other.rows["entry"] = other.rows["entry"].replace("control", "mean")
    with pytest.raises(UserError, match="three: other entries or contexts than one"):
        over_seeds({"one": small_table(), "three": other})


def test_a_run_is_found_with_its_seeds_in_their_order(tmp_path):
    for name in ("run", *(f"run/seed-{n}" for n in (10, 2, 1)), "other"):
        write(tmp_path, name, small_table())
    assert list(scored(f"{tmp_path}/run")) == ["run", "seed-1", "seed-2", "seed-10"]
    assert list(scored(f"{tmp_path}/run/seed-2/scores.json")) == ["seed-2"]
    assert list(scored(f"{tmp_path}/*/scores.json")) == ["other", "run"]
    with pytest.raises(UserError, match="nowhere: no such file; run the score stage"):
        scored(f"{tmp_path}/nowhere")


def test_a_spreadsheet_takes_no_label_for_a_formula(tmp_path):
    table = small_table()
    rows = table.rows.assign(context=table.rows["context"].replace({"a": "=1+1", "b": "-b"}))
    replace(table, rows=rows).write_csv(tmp_path / "scores.csv")
    written = pd.read_csv(tmp_path / "scores.csv")
    assert set(written["context"]) == {"'=1+1", "'-b"}
    np.testing.assert_allclose(written["raw"], rows["raw"])
