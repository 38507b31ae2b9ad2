"""`vcc-fm submission`: from a finished run to the archive, by command."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pytest
from program import vcc_fm
from submission_kit import cells_in


@pytest.fixture
def lists(scored_run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The challenge's lists for what the tiny run predicts; its genes in another order."""
    predicted = anndata.read_h5ad(scored_run.parent / "runs" / "tiny" / "predictions.h5ad")
    genes, targets = tmp_path / "gene_names.csv", tmp_path / "pert_counts.csv"
    genes.write_text("\n".join(np.random.default_rng(0).permutation(predicted.var_names)))
    groups = predicted.obs["perturbation"].value_counts(sort=False)
    targets.write_text("target_gene,n_cells\n" + "".join(f"{label},{n}\n" for label, n in groups.items()))
    return genes, targets


def submission(recipe: Path, lists: tuple[Path, Path], *words: object):
    return vcc_fm("submission", recipe, "--genes", lists[0], "--perturbations", lists[1], *words)


def test_the_model_and_a_baseline_become_archives_beside_their_predictions(scored_run, lists, tmp_path):
    run = scored_run.parent / "runs" / "tiny"
    places = {"model": run / "predictions.vcc2026.vcc", "control": run / "baselines" / "control.vcc2026.vcc"}
    sources = {"model": run / "predictions.h5ad", "control": run / "baselines" / "control.h5ad"}
    for predictor, place in places.items():
        try:
            words = ["--challenge", "vcc2026", "--contexts", "gamma", "--predictor", predictor]
            done = submission(scored_run, lists, *words, "--json")
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["file"] == str(place)
            ours, source = cells_in(place, tmp_path), anndata.read_h5ad(sources[predictor])
            np.testing.assert_array_equal(ours.X.toarray(), source[:, ours.var_names].X.toarray())
            assert ours.obs["target_gene"].tolist() == source.obs["perturbation"].tolist()
        finally:
            place.unlink(missing_ok=True)


def test_2025_takes_its_controls_from_the_cell_store_of_the_run(scored_run, lists, tmp_path):
    done = submission(scored_run, lists, "--challenge", "vcc2025", "--output", tmp_path / "new" / "x.vcc")
    assert done.returncode == 0, done.stderr
    truth = anndata.read_h5ad(scored_run.parent / "runs" / "tiny" / "truth.h5ad")
    controls = int((truth.obs["perturbation"] == "non-targeting").sum())
    cells = cells_in(tmp_path / "new" / "x.vcc", tmp_path)
    assert (cells.obs["target_gene"] == "non-targeting").sum() == controls > 0
    assert "read back and equal to the predictions" in done.stdout
    assert "cell-eval prep: " in done.stdout
    assert "next: upload it" in done.stdout
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.vcc"]


def test_predictions_of_another_recipe_another_predictor_or_no_list_are_refused(scored_run, lists, tmp_path):
    words = ["--challenge", "vcc2026", "--contexts", "gamma", "--output", tmp_path / "x.vcc"]
    done = submission(scored_run, lists, "predict.set_size=7", *words)
    assert done.returncode == 2
    assert (
        "predictions.h5ad was made from another recipe or other data; run `vcc-fm predict RECIPE` first" in done.stderr
    )
    done = submission(scored_run, lists, *words, "--predictor", "additive")
    assert done.returncode == 2
    assert "--predictor additive: the recipe predicts by model, control, mean-response, other-contexts" in done.stderr
    done = submission(scored_run, (lists[0], tmp_path / "none.csv"), *words)
    assert done.returncode == 2
    assert "none.csv" in done.stderr
    assert not (tmp_path / "x.vcc").exists()
