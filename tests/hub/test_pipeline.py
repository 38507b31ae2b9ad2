"""Predictions from a shared model: equal to those of its run, and refused or told where they cannot be."""

import tempfile
import warnings
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from program import QUIET

from vcc_fm.ground.errors import UserError
from vcc_fm.pipeline import PerturbationPipeline
from vcc_fm.recipe.recipe import Recipe
from vcc_fm.run.layout import Layout
from vcc_fm.store.cells import CellStore

CONTEXT = "gamma"


@pytest.fixture(scope="module")
def pipeline(finished: Recipe) -> PerturbationPipeline:
    return PerturbationPipeline.from_pretrained(finished.run_folder)


@pytest.fixture(scope="module")
def controls(finished: Recipe) -> anndata.AnnData:
    """All control cells of the test context, in the order of the store."""
    cells = CellStore(Layout(finished).cells.path)
    rows = cells.rows(CONTEXT, cells.control)
    obs = pd.DataFrame(
        {"context": CONTEXT, "batch": np.asarray(cells.batches)[cells.batch[rows]]}, index=cells.barcodes[rows]
    )
    return anndata.AnnData(cells.sparse(rows), obs=obs, var=pd.DataFrame(index=cells.genes))


def dense(table: anndata.AnnData) -> np.ndarray:
    return np.asarray(table.X.todense())


def test_the_controls_of_a_run_give_what_the_run_predicted(finished, pipeline, controls):
    expected = anndata.read_h5ad(Layout(finished).prediction("model"))
    assert set(expected.obs["context"]) == {CONTEXT}
    for label, rows in expected.obs.groupby("perturbation", observed=True).indices.items():
        predicted = pipeline(controls, [label], cells=len(rows))
        np.testing.assert_array_equal(dense(predicted), dense(expected[rows]))
        assert predicted.obs["batch"].tolist() == expected.obs["batch"].iloc[rows].tolist()
        assert predicted.var_names.tolist() == expected.var_names.tolist()


def test_what_is_predicted_does_not_depend_on_what_else_is_asked(pipeline, controls):
    labels = pipeline.perturbations
    one = pipeline(controls, [labels[2]], cells=20)
    several = pipeline(controls, labels[:4], cells=20)
    np.testing.assert_array_equal(dense(several[several.obs["perturbation"] == labels[2]]), dense(one))
    assert several.obs["perturbation"].value_counts().to_dict() == dict.fromkeys(labels[:4], 20)


def test_genes_in_another_order_and_in_another_form_change_nothing(pipeline, controls):
    label = pipeline.perturbations[:1]
    expected = dense(pipeline(controls, label, cells=30))
    order = np.random.default_rng(0).permutation(controls.n_vars)
    shuffled = controls[:, order]
    shuffled = anndata.AnnData(
        dense(shuffled).astype(np.float32),
        obs=shuffled.obs,
        var=pd.DataFrame({"symbol": shuffled.var_names}, index=[f"ENSG{i:011d}" for i in range(shuffled.n_vars)]),
    )
    np.testing.assert_array_equal(dense(pipeline(shuffled, label, cells=30, symbols="symbol")), expected)


def test_a_new_context_and_several_contexts(pipeline, controls):
    both = controls.copy()
    both.obs["context"] = np.where(np.arange(both.n_obs) % 2, "K562", "HepG2")
    del both.obs["batch"]
    predicted = pipeline(both, pipeline.perturbations[:2], cells=15)
    assert predicted.obs.groupby(["context", "perturbation"], observed=True).size().tolist() == [15] * 4
    assert set(predicted.obs["context"]) == {"K562", "HepG2"}
    del both.obs["context"]
    assert set(pipeline(both, pipeline.perturbations[:1], cells=5, context="mine").obs["context"]) == {"mine"}


def test_the_seed_and_the_size_of_effects(pipeline, controls):
    label = pipeline.perturbations[:1]
    first, again, other = (dense(pipeline(controls, label, cells=30, seed=seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    unchanged = pipeline(controls, label, cells=controls.n_obs, effect_scale=0.0)
    # Without an effect each control cell comes back as it is, once.
    assert sorted(map(tuple, dense(unchanged))) == sorted(map(tuple, dense(controls)))


def test_combinations_and_genes_that_were_never_perturbed(pipeline, controls):
    measured = set(pipeline.perturbations)
    new = next(str(name) for name in pipeline.bundle.proteins.keys if name not in measured)
    first, second = sorted(pipeline.perturbations[:2])
    predicted = pipeline(controls, [new, f"{first}+{second}"], cells=10)
    assert set(predicted.obs["perturbation"]) == {new, f"{first}+{second}"}
    # Whatever the order of its genes, which the model knows in one order only.
    turned = pipeline(controls, [new, f"{second}+{first}"], cells=10)
    assert list(turned.obs["perturbation"]) == list(predicted.obs["perturbation"])
    np.testing.assert_array_equal(dense(turned), dense(predicted))
    with pytest.raises(UserError, match=rf"{first}\+{second} stands twice"):
        pipeline(controls, [f"{second}+{first}", f"{first}+{second}"])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (["NOGENE"], "1 target genes have no protein vector in this model: NOGENE"),
        ([], "give a list of target genes"),
        ("TP53", "give a list of target genes"),
        (["non-targeting"], "non-targeting is the control"),
    ],
)
def test_what_cannot_be_asked_for(pipeline, controls, asked, message):
    with pytest.raises(UserError, match=message):
        pipeline(controls, asked)


def test_a_near_name_is_suggested_and_nothing_is_asked_twice(pipeline, controls):
    label = pipeline.perturbations[0]
    with pytest.raises(UserError, match=f"did you mean {label}"):
        pipeline(controls, [f"{label}x"])
    with pytest.raises(UserError, match=f"{label} stands twice"):
        pipeline(controls, [label, label])
    with pytest.raises(UserError, match="cells=0"):
        pipeline(controls, [label], cells=0)


def test_controls_that_are_too_few_or_no_counts(pipeline, controls):
    label = pipeline.perturbations[:1]
    with pytest.raises(UserError, match="context gamma has 9 control cells"):
        pipeline(controls[:9], label)
    with pytest.raises(UserError, match="no cells"):
        pipeline(controls[:0], label)
    wrong = controls.copy()
    wrong.X = sp.csr_matrix(dense(controls) * 0.37 + 0.1)
    with pytest.raises(UserError, match="values"):
        pipeline(wrong, label)


def test_perturbed_cells_are_not_taken_for_controls(pipeline, controls):
    label = pipeline.perturbations[:1]
    mixed = controls.copy()
    mixed.obs["target_gene"] = pd.Categorical(["non-targeting"] * (mixed.n_obs - 3) + ["TP53", "KLF1", "KLF1"])
    with pytest.raises(
        UserError, match=r"obs.target_gene has 2 labels beside non-targeting; give the control cells alone"
    ):
        pipeline(mixed, label)
    assert pipeline(mixed[mixed.obs["target_gene"] == "non-targeting"], label, cells=5).n_obs == 5


def test_missing_genes_are_told_and_too_many_refused(pipeline, controls):
    label = pipeline.perturbations[:1]
    with pytest.warns(UserWarning, match=r"5 of the model's 50 genes are missing, such as"):
        predicted = pipeline(controls[:, 5:], label, cells=20)
    assert predicted.n_vars == 50
    assert not dense(predicted)[:, :5].any()
    with pytest.raises(UserError, match=r"30 of the model's 50 genes are missing"):
        pipeline(controls[:, 30:], label)
    names = controls.copy()
    names.var_names = [f"ENSG{i:011d}" for i in range(50)]
    with pytest.raises(UserError, match="ENSG"):
        pipeline(names, label)


def test_a_gene_that_was_not_measured_is_no_silent_gene_to_the_encoder(pipeline, controls):
    """Vectors of cells without some genes are nearer to those with them than if these genes were taken for silent."""
    loud = np.argsort(-dense(controls).sum(axis=0))[:5]
    silent = controls.copy()
    silent.X = sp.csr_matrix(np.where(np.isin(np.arange(50), loud), 0, dense(controls)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        vectors = [vectors_of(pipeline, one) for one in (controls, controls[:, ~np.isin(np.arange(50), loud)], silent)]
    whole, without, as_silent = vectors
    assert np.linalg.norm(without - whole) < 0.7 * np.linalg.norm(as_silent - whole)


def vectors_of(pipeline: PerturbationPipeline, controls: anndata.AnnData) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        data = pipeline._dataset(Path(folder), controls, "x", "auto", "index", QUIET)
        return data.cell_vectors.take(np.arange(len(data.cells)))


def test_the_controls_that_come_with_a_model(pipeline, finished):
    shared = pipeline.control_cells(CONTEXT)
    cells = CellStore(Layout(finished).cells.path)
    rows = {barcode: row for row, barcode in enumerate(cells.barcodes)}
    np.testing.assert_array_equal(dense(shared), cells.dense(np.array([rows[name] for name in shared.obs_names])))
    with pytest.raises(UserError, match="no control cells of 'nowhere'"):
        pipeline.control_cells("nowhere")
    predicted = pipeline(shared, pipeline.perturbations[:1], cells=10)
    assert predicted.uns["simulated"]
    assert predicted.uns["values"] == "counts"
