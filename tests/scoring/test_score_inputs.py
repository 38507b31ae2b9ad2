import anndata as ad
import numpy as np
import pytest
from scoring_screens import CONTROL, make_screen, perturbed

from vcc_fm.ground.errors import UserError
from vcc_fm.scoring.inputs import check_pair, check_truth, read_context, read_labels


@pytest.fixture
def truth():
    return make_screen(0)


def check(folder, truth, prediction):
    """What scoring does before it measures anything."""
    truth.write_h5ad(folder / "truth.h5ad")
    prediction.write_h5ad(folder / "p.h5ad")
    measured, predicted = read_labels(folder / "truth.h5ad"), read_labels(folder / "p.h5ad")
    check_truth(measured, CONTROL)
    check_pair(measured, predicted, CONTROL)
    return [read_context(labels, context) for labels in (measured, predicted) for context in measured.contexts()]


def test_a_context_is_read_whole_and_by_itself(tmp_path, truth):
    shuffled = truth[np.random.default_rng(0).permutation(truth.n_obs)].copy()
    alpha, beta, predicted_alpha, _ = check(tmp_path, shuffled, perturbed(truth))
    assert alpha.n_obs + beta.n_obs == truth.n_obs
    assert (alpha.obs["context"] == "alpha").all()
    expected = shuffled[(shuffled.obs["context"] == "alpha").to_numpy()].X
    assert (alpha.X != expected).nnz == 0
    assert predicted_alpha.n_obs == alpha.n_obs - 80


def test_dense_integer_counts_are_read_as_well(tmp_path, truth):
    dense = perturbed(truth)
    dense.X = dense.X.toarray().astype(np.int64)
    counts = check(tmp_path, truth, dense)[2].X
    assert counts.dtype == np.float32
    assert counts.format == "csr"


def drop_gene(cells):
    return cells[:, cells.var_names != "G05"].copy()


def swap_genes(cells):
    return cells[:, ["G01", "G00", *cells.var_names[2:]]].copy()


def repeat_gene(cells):
    cells.var_names = ["G01", *cells.var_names[1:]]
    return cells


def drop_pair(cells):
    return cells[~((cells.obs["context"] == "beta") & (cells.obs["perturbation"] == "G03"))].copy()


def rename_pair(cells):
    cells.obs["perturbation"] = cells.obs["perturbation"].astype(str).replace("G03", "G3")
    return cells


def unlabel(cells):
    cells.obs["context"] = cells.obs["context"].astype(object).where(np.arange(cells.n_obs) > 3, None)
    return cells


def set_value(value):
    def change(cells):
        cells.X.data[0] = value
        return cells

    return change


def silence(cells):
    rows = ((cells.obs["perturbation"] == "G02") & (cells.obs["context"] == "alpha")).to_numpy()
    cells.X = cells.X.multiply(~rows[:, None]).tocsr()
    return cells


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_gene, r"p\.h5ad: 79 genes, but .* has 80; first difference at position 5: 'G06' against 'G05'"),
        (swap_genes, "gene axis differs .* first difference at position 0: 'G01' against 'G00'"),
        (repeat_gene, "gene 'G01' repeats in the var index"),
        (drop_pair, r"1 \(context, perturbation\) missing: beta/G03"),
        (rename_pair, r"2 \(context, perturbation\) missing: alpha/G03, beta/G03"),
        (unlabel, r"obs\.context is empty for 4 cells"),
        (lambda cells: cells[:, :0].copy(), "0 genes, but"),
        (set_value(-1), r"context 'alpha': X has negative values \(lowest -1\)"),
        (set_value(0.5), r"X has fractional values \(for example 0\.5\)"),
        (set_value(np.nan), "X has 1 values that are NaN or infinite"),
        (set_value(2e6), "the scorer accepts at most 1000000"),
        (silence, "context 'alpha': no counts at all in any cell of G02"),
    ],
)
def test_predictions_that_cannot_be_scored_are_refused(tmp_path, truth, change, message):
    with pytest.raises(UserError, match=message):
        check(tmp_path, truth, change(perturbed(truth)))


def test_what_has_no_truth_is_named_and_not_read(tmp_path, truth):
    asked = truth[truth.obs["perturbation"] != "G04"].copy()
    check(tmp_path, asked, perturbed(truth))
    labels = read_labels(tmp_path / "p.h5ad")
    assert check_pair(read_labels(tmp_path / "truth.h5ad"), labels, CONTROL) == ["alpha/G04", "beta/G04"]
    part = read_context(labels, "alpha", {"G01", "G02"})
    whole = read_context(labels, "alpha")
    assert set(part.obs["perturbation"]) == {"G01", "G02"}
    rows = whole.obs["perturbation"].isin(["G01", "G02"]).to_numpy()
    assert (part.X != whole[rows].X).nnz == 0


def test_a_name_that_is_wrong_is_missing_and_the_other_name_is_told(tmp_path, truth):
    renamed = perturbed(truth)
    renamed.obs["perturbation"] = renamed.obs["perturbation"].replace({"G04": "G4"})
    with pytest.raises(UserError, match=r"2 \(context, perturbation\) missing: alpha/G04, beta/G04.*it has alpha/G4"):
        check(tmp_path, truth, renamed)


def test_predicted_controls_are_refused(tmp_path, truth):
    with pytest.raises(UserError, match=r"160 control cells \('non-targeting'\); drop them"):
        check(tmp_path, truth, truth)


def without_controls(truth):
    return truth[~((truth.obs["perturbation"] == CONTROL) & (truth.obs["context"] == "beta"))].copy()


def single_cell(truth):
    rows = np.flatnonzero(((truth.obs["perturbation"] == "G02") & (truth.obs["context"] == "beta")).to_numpy())
    return truth[np.setdiff1d(np.arange(truth.n_obs), rows[1:])].copy()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_controls, r"no control cells \('non-targeting'\) in context beta"),
        (single_cell, "a single cell of G02 in beta; the replicate splits"),
    ],
)
def test_truths_without_a_scale_are_refused(tmp_path, truth, change, message):
    changed = change(truth)
    with pytest.raises(UserError, match=message):
        check(tmp_path, changed, perturbed(changed))


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"gone\.h5ad: no such file"):
        read_labels(tmp_path / "gone.h5ad")
    (tmp_path / "cut.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(UserError, match=r"cut\.h5ad is not readable as h5ad: "):
        read_labels(tmp_path / "cut.h5ad")
    cells = ad.AnnData(np.ones((2, 2), np.float32))
    cells.write_h5ad(tmp_path / "bare.h5ad")
    with pytest.raises(UserError, match="obs has no column 'context'"):
        read_labels(tmp_path / "bare.h5ad")
