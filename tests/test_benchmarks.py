"""The benchmarks: the shape of their JSON, their exit code, and the page made of it."""

import datetime
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

ROOT = Path(__file__).parents[1]


def test_the_loader_writes_rows_and_claims_and_its_exit_code_is_theirs(tmp_path):
    # Started elsewhere, so that nothing is found by luck of the working folder.
    command = [sys.executable, str(ROOT / "benchmarks" / "loader.py"), "--quick", "--cells", "400"]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([*command, "--json", "loader.json"], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode in (0, 1), done.stderr
    result = json.loads((tmp_path / "loader.json").read_text())
    assert list(result) == ["name", "machine", "versions", "rows", "claims"]
    assert result["name"] == "loader"
    assert set(result["machine"]) == {"processor", "cores", "memory_gb", "system"}
    assert {"python", "vcc-fm", "datasets"} <= set(result["versions"])
    for row in result["rows"]:
        assert list(row) == ["what", "ours", "peer", "peer_name", "unit", "ratio"]
        assert "400 cells" in row["what"]
        assert min(row["ours"], row["peer"], row["ratio"]) > 0
    for claim in result["claims"]:
        assert list(claim) == ["claim", "target", "measured", "holds"]
        assert claim["holds"] == (claim["measured"] >= claim["target"])
    assert done.returncode == (0 if all(claim["holds"] for claim in result["claims"]) else 1)
    assert [file.name for file in tmp_path.iterdir()] == ["loader.json"], "the screen was not removed"


@pytest.mark.parametrize("cells", ["399", "0"])
def test_too_few_cells_are_refused(monkeypatch, capsys, cells):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from loader import main

    with pytest.raises(SystemExit, match="2"):
        main(["--cells", cells])
    assert f"--cells {cells}: every group needs cells, use at least 400" in capsys.readouterr().err


def test_a_claim_that_does_not_hold_is_named_and_fails_the_run(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from _measure import Claim, finish

    console = Console(record=True, file=io.StringIO())
    good, bad = Claim("quick", 2.0, 2.0), Claim("quicker", 2.0, 1.99)
    assert finish("x", ["numpy"], [], [good], None, console) == 0
    assert finish("x", ["numpy"], [], [good, bad], tmp_path / "x.json", console) == 1
    assert "DOES NOT HOLD: quicker" in console.export_text()
    assert [claim["holds"] for claim in json.loads((tmp_path / "x.json").read_text())["claims"]] == [True, False]


def test_the_first_round_is_not_counted_and_a_ratio_is_the_median_of_the_rounds_ratios(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from _measure import compare, rates

    rounds = []
    found = rates({"a": lambda number: rounds.append(number) or 1.0, "b": lambda number: 1.0}, 3)
    assert rounds == [0, 1, 2, 3]
    assert {name: len(values) for name, values in found.items()} == {"a": 3, "b": 3}
    row = compare("w", np.array([1.0, 10.0, 30.0]), np.array([1.0, 20.0, 10.0]), "p", "u")
    assert (row.ours, row.peer, row.ratio) == (10.0, 10.0, 1.0)


@pytest.mark.parametrize(("holds", "word"), [(True, "holds"), (False, "does not hold"), (None, "not measured")])
def test_the_page_says_of_each_claim_whether_it_holds(monkeypatch, holds, word):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.__main__ import page

    machine = {"processor": "P", "cores": 2, "memory_gb": 24.0, "system": "S"}
    row = {"what": "w", "ours": 2000.0, "peer": 500.0, "peer_name": "other", "unit": "cells/s", "ratio": 4.0}
    claim = {"claim": "c", "target": 2, "measured": None if holds is None else 4.0, "holds": holds}
    result = {"name": "n", "machine": machine, "versions": {"v": "1"}, "rows": [row], "claims": [claim]}
    text = page([result], datetime.date(2026, 1, 2), quick=True)
    assert "| w | 2,000 | 500 | 4.00 | cells/s | other |" in text
    assert "`python -m benchmarks --quick` on 2026-01-02" in text
    assert word in next(line for line in text.splitlines() if line.startswith("| c |"))
