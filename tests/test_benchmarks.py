"""The benchmarks: the shape of their JSON, their exit code, and the page made of it."""

import datetime
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from vcc_fm.baselines.mixed_model import Mixed
from vcc_fm.recipe.parts import BASELINES
from vcc_fm.run.load import load_dataset

ROOT = Path(__file__).parents[1]
NEEDS_STATE = "needs arc-state: pip install -e '.[peers]'"


@pytest.mark.parametrize("script", sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py")))
def test_every_benchmark_can_be_loaded(script, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location(f"benchmark_{script}", ROOT / "benchmarks" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert callable(module.main)


@pytest.mark.slow
def test_the_loader_writes_rows_and_claims_and_its_exit_code_is_theirs(tmp_path):
    # Started elsewhere, so that nothing is found by luck of the working folder.
    command = [sys.executable, str(ROOT / "benchmarks" / "loader.py"), "--quick", "--cells", "1000"]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([*command, "--json", "loader.json"], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode in (0, 1), done.stderr
    result = json.loads((tmp_path / "loader.json").read_text())
    assert list(result) == ["name", "machine", "versions", "rows", "claims"]
    assert result["name"] == "loader"
    assert set(result["machine"]) == {"processor", "cores", "gpu", "memory_gb", "system"}
    peers = {"cell-load": "cell_load", "scdataset": "scdataset", "datasets": "datasets"}
    there = {package for package, module in peers.items() if importlib.util.find_spec(module)}
    assert set(result["versions"]) == {"python", "vcc-fm", "numpy", "numba", "pyarrow", "torch"} | there
    for package in peers.keys() - there:
        assert f"pip install {package}" in done.stdout
    for row in result["rows"]:
        assert list(row) == ["what", "ours", "peer", "peer_name", "unit", "ratio"]
        assert "1,000 cells" in row["what"]
        assert min(row["ours"], row["peer"], row["ratio"]) > 0
    measured = set()
    for claim in result["claims"]:
        assert list(claim) == ["claim", "target", "measured", "holds"]
        if claim["measured"] is None:
            assert claim["holds"] is None
        else:
            assert claim["holds"] == (claim["measured"] >= claim["target"])
            measured.add(claim["claim"])
    # Of the waits only that of this machine's device is known, of the peers only those that are installed.
    assert sum("training loop" in claim for claim in measured) == 1
    assert any("cell-load" in claim for claim in measured) == ("cell-load" in there)
    assert any("scDataset" in claim for claim in measured) == ("scdataset" in there)
    assert done.returncode == (1 if any(claim["holds"] is False for claim in result["claims"]) else 0)
    assert not list(tmp_path.glob("loader-*")), "the screen was not removed"


def test_a_peer_that_delivers_other_counts_or_other_embeddings_is_no_comparison(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from _loader_peers import Delivery, check

    barcodes = np.array(["a", "b", "c"])
    counts, vectors = np.diag([1.0, 2.0, 3.0]), np.arange(6.0).reshape(3, 2)
    cells = SimpleNamespace(barcodes=barcodes, dense=lambda rows: counts[rows])
    data = SimpleNamespace(cells=cells, cell_vectors=SimpleNamespace(take=lambda rows: vectors[rows]))
    check(Delivery(counts[[2, 0]], vectors[[1, 1]], barcodes[[2, 0]], barcodes[[1, 1]]), data)
    for counts_of, vectors_of in (([0, 2], [1, 1]), ([2, 0], [1, 2])):
        with pytest.raises(AssertionError):
            check(Delivery(counts[[2, 0]], vectors[[1, 1]], barcodes[counts_of], barcodes[vectors_of]), data)


@pytest.mark.parametrize("cells", ["999", "0"])
def test_too_few_cells_are_refused(monkeypatch, capsys, cells):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from loader import main

    with pytest.raises(SystemExit, match="2"):
        main(["--cells", cells])
    expected = f"--cells {cells}: every context needs a set of control cells, use at least 1000"
    assert expected in capsys.readouterr().err


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

    machine = {"processor": "P", "cores": 2, "gpu": None, "memory_gb": 24.0, "system": "S"}
    row = {"what": "w", "ours": 2000.0, "peer": 500.0, "peer_name": "other", "unit": "cells/s", "ratio": 4.0}
    claim = {"claim": "c", "target": 2, "measured": None if holds is None else 4.0, "holds": holds}
    result = {"name": "n", "machine": machine, "versions": {"v": "1"}, "rows": [row], "claims": [claim]}
    text = page([result], datetime.date(2026, 1, 2), quick=True)
    assert "| w | 2,000 | 500 | 4.00 | cells/s | other |" in text
    assert "`python -m benchmarks --quick` on 2026-01-02" in text
    assert word in next(line for line in text.splitlines() if line.startswith("| c |"))


def test_responses_are_looked_up_and_equal_the_means_over_rows(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import responses

    # Equality is asserted inside.
    code = responses.main(["--quick", "--json", str(tmp_path / "responses.json")])
    result = json.loads((tmp_path / "responses.json").read_text())
    assert ["24 groups" in row["what"] for row in result["rows"]] == [True, True]
    (claim,) = result["claims"]
    assert claim["measured"] > 0
    assert code == (0 if claim["holds"] else 1)


@pytest.mark.slow
def test_without_its_peer_se_measures_memory_and_says_what_it_cannot(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import se

    monkeypatch.setattr(se, "HAS_ARC", False)
    monkeypatch.setattr(se.torch.cuda, "is_available", lambda: False)
    code = se.main(["--quick", "--json", str(tmp_path / "se.json")])
    said = capsys.readouterr().out
    assert "arc-state is not installed: pip install -e '.[peers]'" in said
    assert "no GPU here" in said
    result = json.loads((tmp_path / "se.json").read_text())
    assert "arc-state" not in result["versions"]
    (row,) = result["rows"]
    assert "600 cells" in row["what"]
    assert 50 < row["ours"] < 5000, "MB"
    memory, *others = result["claims"]
    assert memory["measured"] == pytest.approx(row["peer"] / row["ours"])
    assert len(others) == 3
    assert all(claim["holds"] is None for claim in others)
    assert code == (0 if memory["holds"] else 1)


@pytest.mark.slow
def test_beside_its_peer_se_gives_equal_tokens_and_its_rate(tmp_path, monkeypatch):
    pytest.importorskip("state", reason=NEEDS_STATE)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import se

    # Equality is asserted inside.
    assert se.main(["--quick", "--json", str(tmp_path / "se.json")]) in (0, 1)
    result = json.loads((tmp_path / "se.json").read_text())
    assert [row["unit"] for row in result["rows"][:2]] == ["MB", "cells/s"]
    assert min(row["ratio"] for row in result["rows"]) > 0
    assert "arc-state" in result["versions"]


def test_operations_of_se_are_those_that_torch_counts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from _se import operations, random_tensors
    from torch.utils.flop_counter import FlopCounterMode

    from vcc_fm.encoders.cells.state_se_geometry import SeGeometry
    from vcc_fm.encoders.cells.state_se_model import build_state_se

    geometry = SeGeometry(256, 384, 4, heads=4, output=64, token_dim=8, genes=200, datasets=3)
    network = build_state_se(geometry, random_tensors(geometry))
    with FlopCounterMode(display=False) as counter:
        network(torch.arange(198)[None], torch.ones(1, 198), torch.ones(1))
    # Attention, which the counter leaves out on a CPU: scores and their use, in the last layer for two tokens.
    attention = 4 * 256 * 200 * (3 * 200 + 2)
    assert counter.get_total_flops() + attention == pytest.approx(operations(geometry, 200), rel=0.03)


def test_cells_for_se_express_as_many_genes_as_asked(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from _se import counts

    assert counts(100, 1000, 100).nnz / 100 == pytest.approx(100, rel=0.05)


def test_state_sees_the_cells_of_our_split_and_no_other(tmp_path, tiny_run, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import state_tx

    data = load_dataset(tiny_run, 0)
    cells, split = data.cells, data.split
    state_tx.hand_over(data, tmp_path)
    seen = anndata.read_h5ad(tmp_path / "seen.h5ad")
    groups = set(zip(seen.obs["context"], seen.obs["perturbation"], strict=True))
    controls = {(context, cells.control) for context in cells.contexts}
    assert groups == {*split.groups("train"), *split.groups("validation"), *controls}
    assert split.groups("test")
    assert split.groups("unused")
    # Logarithms of counts that all have the median depth.
    np.testing.assert_allclose(np.expm1(seen.X).sum(1), np.median(seen.obs["depth"]), rtol=1e-5)
    table = tomllib.loads((tmp_path / "split.toml").read_text())
    assert table["fewshot"] == {
        "screen.gamma": {"val": [label for _, label in split.groups("validation")], "test": []}
    }
    only = anndata.read_h5ad(tmp_path / "controls.h5ad").obs
    assert (set(only["context"]), set(only["perturbation"])) == ({"gamma"}, {cells.control})
    asked = pd.read_csv(tmp_path / "asked.tsv", sep="\t").set_index("perturbation")["num_cells"].to_dict()
    assert asked == {g[1]: split.cells[g] for role in ("validation", "test") for g in split.groups(role)}
    # A perturbation that was trained nowhere has no place in the one-hot, its protein alone tells what it is.
    vectors, trained = torch.load(tmp_path / "vectors.pt"), {label for _, label in split.groups("train")}
    assert {label: float(row[: len(trained)].sum()) for label, row in vectors.items()} == {
        label: float(label in trained) for label in cells.labels
    }
    assert trained < set(cells.labels)
    assert len({tuple(row[len(trained) :].tolist()) for row in vectors.values()}) == len(cells.labels)


def test_what_state_answers_becomes_log_ratios_and_integers(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import state_tx

    values = np.log1p([[3.0, 1.0], [3.0, 1.0], [8.0, 0.0], [2.0, 0.0]])
    obs = pd.DataFrame({"context": "x", "perturbation": ["none", "none", "a", "a"], "depth": [8, 10, 9, 5]})
    cells = anndata.AnnData(None, obs.set_index(pd.Index(list("1234"))), obsm={"X_hvg": values})
    found = state_tx.log_ratios(cells, "none")
    # The mean of log 9 and log 3 is log 5.196...: 27 ** 0.5 - 1 after expm1.
    expected = np.log([(27**0.5 - 0.95) / 3.05, 0.05 / 1.05])
    np.testing.assert_allclose(found["x", "a"], expected, rtol=1e-5)
    assert state_tx.integers(cells).toarray().tolist() == [[6, 2], [8, 2], [9, 0], [5, 0]]


def test_without_state_nothing_is_said_of_it(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import state_tx

    monkeypatch.setattr(state_tx.state, "INSTALLED", False)
    assert state_tx.main(["--json", str(tmp_path / "state.json")]) == 0
    assert "skipped: state is not installed (pip install -e '.[peers]')" in capsys.readouterr().out
    assert {claim["measured"] for claim in json.loads((tmp_path / "state.json").read_text())["claims"]} == {None}


@pytest.mark.slow
def test_state_trains_on_the_demo_and_both_its_answers_are_scored(tmp_path, monkeypatch, capsys):
    pytest.importorskip("state", reason=NEEDS_STATE)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import state_tx

    assert state_tx.main(["--quick", "--json", str(tmp_path / "state.json")]) == 0
    said = capsys.readouterr().out
    for entry in ("model", "mixed-model", "state-4-steps", "state-4-steps, own cells"):
        assert re.search(rf"(^|; ){entry} -?\d\.\d{{3}}", said, re.MULTILINE), said
    result = json.loads((tmp_path / "state.json").read_text())
    assert result["versions"]["arc-state"] != "not installed"
    assert len(result["claims"]) == 3
    assert {claim["measured"] for claim in result["claims"]} == {None}, "one world tells nothing"


def test_ablations_are_the_mixed_model_without_a_part(tiny_run, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(BASELINES, "_parts", dict(BASELINES._parts))
    import _ablations as rungs

    data = load_dataset(tiny_run, 0)
    group = data.split.groups("test")[0]
    whole = Mixed(data).log_ratio(*group)
    expected = data.expected.of(*group)
    own, sure = (rung(data).log_ratio(*group) for rung in (rungs.OwnMean, rungs.SureSize))
    np.testing.assert_array_equal(own, expected.mean)
    # Between the two, gene by gene.
    assert ((np.minimum(own, whole) <= sure + 1e-7) & (sure <= np.maximum(own, whole) + 1e-7)).all()
    one, all_ = (x.expected.model.model_of(data.split.groups("train")[0][1]) for x in (rungs.OneAmplitude(data), data))
    assert (one.amplitude == 1).all()
    assert all_.amplitude.std() > 0
    assert not rungs.NoTables(data).expected.tables
    for rung in (rungs.OneAmplitude, rungs.NoTables, rungs.NoCoResponse):
        assert np.isfinite(rung(data).log_ratio(*group)).all()
