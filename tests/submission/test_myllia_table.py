"""The table that "Echoes of Silenced Genes" takes, from a finished run."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from program import vcc_fm

from vcc_fm.ground.errors import UserError
from vcc_fm.store.cells import CellStore
from vcc_fm.submission.challenge import Inputs
from vcc_fm.submission.myllia import Myllia


def mean_logs(counts):
    depth = counts.sum(axis=1, keepdims=True)
    return np.log2(1 + 1e4 * counts / depth).mean(axis=0)


@pytest.fixture
def files(scored_run, tmp_path):
    """The platform's files for what the tiny run predicts: fewer genes in another order, two ids of one gene."""
    predicted = anndata.read_h5ad(scored_run.parent / "runs/tiny/predictions.h5ad")
    genes = np.random.default_rng(0).permutation(predicted.var_names)[:30].tolist()
    names = predicted.obs["perturbation"].astype(str).unique()[[1, 0, 1]]
    ids = [f"pert_{number}" for number in range(1, 4)]
    pd.DataFrame({"pert_id": ids, "pert": names, "class": "val"}).to_csv(tmp_path / "pert_ids_all.csv", index=False)
    sample = pd.DataFrame(0.0, index=pd.Index(ids, name="pert_id"), columns=genes)
    sample.to_csv(tmp_path / "sample_submission.csv")
    return predicted, genes, names


def test_the_table_holds_responses_against_measured_controls(scored_run, files, tmp_path):
    predicted, genes, names = files
    lists = ["--genes", tmp_path / "sample_submission.csv", "--perturbations", tmp_path / "pert_ids_all.csv"]
    out = tmp_path / "submission.csv"
    done = vcc_fm("submission", scored_run, "--challenge", "myllia", *lists, "--output", out)
    assert done.returncode == 0, done.stderr
    assert "3 rows x 30 genes, read back and equal" in done.stdout
    table = pd.read_csv(out, index_col="pert_id")
    assert table.columns.tolist() == genes
    assert table.index.tolist() == ["pert_1", "pert_2", "pert_3"]
    store = CellStore(scored_run.parent / "embeddings/tiny/cells")
    control = mean_logs(store.dense(store.rows("gamma", store.control)).astype(float))
    for row, name in zip(table.to_numpy(), names, strict=True):
        cells = predicted[predicted.obs["perturbation"] == name].X.toarray().astype(float)
        expected = pd.Series(mean_logs(cells) - control, index=store.genes)[genes]
        np.testing.assert_allclose(row, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("pert_ids_all.csv", "pert_id,pert\np,NOSUCH\n"), "lacks 1 perturbation of .*NOSUCH; predict"),
        (("pert_ids_all.csv", "pert_id,gene\np,A\n"), "pert_ids_all.csv: no column pert"),
        (("sample_submission.csv", "pert_id,NOSUCH\np,0\n"), "lacks 1 gene of .*NOSUCH"),
        (("sample_submission.csv", "A\nB\n"), "sample_submission.csv: no column pert_id"),
        (("sample_submission.csv", "pert_id,A\np,0\np,0\n"), "p stands twice"),
    ],
)
def test_files_that_do_not_fit_are_named(scored_run, files, tmp_path, change, message):
    name, text = change
    (tmp_path / name).write_text(text)
    run = scored_run.parent
    inputs = Inputs(
        run / "runs/tiny/predictions.h5ad",
        lambda: CellStore(run / "embeddings/tiny/cells"),
        tmp_path / "sample_submission.csv",
        tmp_path / "pert_ids_all.csv",
    )
    with pytest.raises(UserError, match=message):
        Myllia(inputs)
