"""Commands that share and use; a stranger who knows only the card; and `datasets` without this package."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import yaml
from hub_server import TOKEN, HubServer
from typer.testing import CliRunner

from vcc_fm.cli import app
from vcc_fm.ground.errors import UserError
from vcc_fm.pipeline import PerturbationPipeline
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.store.cells import CellStore

REPO = "ORG/tiny"


def run(*words: Any) -> str:
    """What a command prints on stdout.

    Raises:
        UserError: as the command.
    """
    done = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def recipe(finished: Recipe) -> Path:
    """The file of the finished recipe."""
    path = finished.run_folder.parents[1] / "recipe.yaml"
    path.write_text(yaml.safe_dump(finished.model_dump(mode="json", exclude_none=True)))
    (finished.run_folder / "pushed.json").unlink(missing_ok=True)
    return path


def counts(path: Path) -> np.ndarray:
    return np.asarray(anndata.read_h5ad(path).X.todense())


def fresh_process(hub: HubServer, folder: Path, script: str) -> str:
    """What a script prints in a process with an empty cache and no token, which works in ``folder``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, env=kept | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_push_pull_and_predict(hub: HubServer, finished: Recipe, recipe: Path, tmp_path: Path) -> None:
    said = json.loads(run("push", recipe, "--repo", REPO, "--json", "--quiet"))
    assert said["stages"][0]["ran"]
    assert not json.loads(run("push", recipe, "--repo", REPO, "--json", "--quiet"))["stages"][0]["ran"]
    pulled = json.loads(run("pull", REPO, "--to", tmp_path / "model", "--json", "--quiet"))
    assert set(pulled["holds"]) == {"model", "controls", "proteins"}
    pipeline = PerturbationPipeline.from_pretrained(tmp_path / "model")
    controls, asked = pipeline.control_cells("gamma"), pipeline.perturbations[:2]
    controls.write_h5ad(tmp_path / "controls.h5ad")
    (tmp_path / "list.txt").write_text("\n".join(asked))
    expected = np.asarray(pipeline(controls, asked, cells=30).X.todense())
    for model, names in ((REPO, ",".join(asked)), (finished.run_folder, tmp_path / "list.txt")):
        words = ["--model", model, "--controls", tmp_path / "controls.h5ad", "--perturbations", names]
        run("predict", *words, "--cells", 30, "--out", tmp_path / "p.h5ad", "--quiet")
        np.testing.assert_array_equal(counts(tmp_path / "p.h5ad"), expected)
    with pytest.raises(UserError, match="give a recipe, or --model with --controls and --perturbations"):
        run("predict", "--model", REPO)
    with pytest.raises(UserError, match="is not empty"):
        run("pull", REPO, "--to", tmp_path / "model")


@pytest.mark.slow
def test_a_stranger_runs_the_code_of_the_card(hub: HubServer, finished: Recipe, recipe: Path, tmp_path: Path) -> None:
    run("push", recipe, "--repo", REPO, "--quiet")
    card = hub.files(REPO)["README.md"].decode()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert code is not None
    script = code[1] + "predicted.write_h5ad('predicted.h5ad')\n"
    fresh_process(hub, tmp_path, script)
    here = PerturbationPipeline.from_pretrained(finished.run_folder)
    asked = anndata.read_h5ad(tmp_path / "predicted.h5ad").obs["perturbation"].unique().tolist()
    expected = here(here.control_cells("gamma"), asked, cells=100)
    np.testing.assert_array_equal(counts(tmp_path / "predicted.h5ad"), np.asarray(expected.X.todense()))


def test_a_store_is_read_by_datasets_alone(hub: HubServer, finished: Recipe, recipe: Path, tmp_path: Path) -> None:
    run("push", recipe, "--repo", REPO, "--what", "stores", "--quiet")
    script = f"""
import json, sys
from datasets import load_dataset
data = load_dataset("{REPO}", split="train")
vectors = load_dataset("{REPO}", "cell-embeddings", split="train")
proteins = load_dataset("{REPO}", "proteins", split="train")
assert "vcc_fm" not in sys.modules
row = data[3]
print(json.dumps([len(data), row, data.features["context"].names, len(vectors), len(proteins), vectors[3]["barcode"]]))
"""
    number, row, contexts, vectors, proteins, barcode = json.loads(fresh_process(hub, tmp_path, script))
    cells = CellStore(finished.embeddings_folder / "cells")
    assert (number, vectors, contexts) == (len(cells), len(cells), cells.contexts)
    assert proteins > 0
    genes, values, _ = cells.lists(np.array([3]))
    assert (row["genes"], row["counts"], row["barcode"]) == (genes.tolist(), values.tolist(), cells.barcodes[3])
    assert barcode == cells.barcodes[3]
    pulled = json.loads(run("pull", REPO, "--dataset", "--to", tmp_path / "data", "--json", "--quiet"))
    assert set(pulled["holds"]) == {"cells", "cell-embeddings", "proteins"}


def test_options_that_do_not_fit(hub: HubServer, recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no section hub; add one, or give --repo"):
        run("push", recipe)
    with pytest.raises(UserError, match=r"hub\.what"):
        run("push", recipe, "--repo", REPO, "--what", "everything")
    with pytest.raises(UserError, match=r"hub\.repo"):
        run("push", recipe, "--repo", "tiny")
    with pytest.raises(UserError, match=r"hub.what=adapter: its base \(decoder.base=pretrain\) has no address"):
        run("push", recipe, "--repo", REPO, "--what", "adapter", "--quiet")
    with pytest.raises(UserError, match="write ORG/NAME"):
        run("pull", "tiny")
    hub.add("ORG/empty", {"README.md": b"x"})
    with pytest.raises(UserError, match="holds nothing that this program shared"):
        run("pull", "ORG/empty")
    assert [key for key in hub.repos if key[1] == REPO] == []


def test_the_token_is_nowhere(hub: HubServer, recipe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run("push", recipe, "--repo", REPO)
    hub.token = "hf_other"
    with pytest.raises(UserError) as caught:
        run("push", recipe, "--repo", REPO, "--revision", "b")
    out, err = capfd.readouterr()
    assert TOKEN not in out + err + str(caught.value)
    assert all(TOKEN not in line for line in hub.asked)
