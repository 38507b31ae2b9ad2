"""The expression encoder against scikit-learn on dense log-normalised counts."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.decomposition import PCA

from vcc_fm.encoders.cells.expression import Expression, ExpressionEncoder, ExpressionSettings, log_normalise
from vcc_fm.ground.errors import UserError

EVERY = np.ones(30, bool)


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    rng = np.random.default_rng(0)
    programs = np.exp(0.8 * rng.standard_normal((4, 30)))
    return rng.poisson(rng.dirichlet(np.ones(4), 200) @ programs * rng.uniform(1, 4, (200, 1)))


def dense_log(counts: np.ndarray, target_sum: float) -> np.ndarray:
    return np.log1p(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) * target_sum)


def test_log_normalise(counts):
    counts = np.vstack([counts, np.zeros((1, 30), int)])
    found = log_normalise(sp.csr_matrix(counts), 1e4)
    np.testing.assert_allclose(found.toarray(), dense_log(counts, 1e4), rtol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("target_sum", [1e4, 50.0])
def test_vectors_equal_those_of_scikit_learn(counts, target_sum):
    encoder = ExpressionEncoder.fit(sp.csr_matrix(counts[:150]), EVERY, 3, target_sum)
    reference = PCA(3, svd_solver="full").fit(dense_log(counts[:150], target_sum))
    expected = reference.transform(dense_log(counts, target_sum)) / np.sqrt(reference.explained_variance_[0])
    found = encoder.encode(sp.csr_matrix(counts))
    signs = np.sign((found * expected).sum(axis=0))
    np.testing.assert_allclose(found, expected * signs, atol=2e-4)
    np.testing.assert_allclose(encoder.components @ encoder.components.T, np.eye(3), atol=1e-5)
    assert found[:150].std(axis=0, ddof=1)[0] == pytest.approx(1.0, abs=1e-4)


def test_a_cell_is_encoded_alike_in_every_company(counts):
    encoder = ExpressionEncoder.fit(sp.csr_matrix(counts), EVERY, 5, 1e4)
    whole = encoder.encode(sp.csr_matrix(counts))
    np.testing.assert_array_equal(encoder.encode(sp.csr_matrix(counts[40:41])), whole[40:41])
    order = np.random.default_rng(0).permutation(200)
    np.testing.assert_array_equal(encoder.encode(sp.csr_matrix(counts[order])), whole[order])


def test_two_fits_are_equal_to_the_last_bit_and_survive_a_file(counts, tmp_path):
    first, second = (ExpressionEncoder.fit(sp.csr_matrix(counts), EVERY, 5, 1e4) for _ in range(2))
    first.save(tmp_path / "first.safetensors")
    second.save(tmp_path / "second.safetensors")
    assert (tmp_path / "first.safetensors").read_bytes() == (tmp_path / "second.safetensors").read_bytes()
    read = ExpressionEncoder.load(tmp_path / "first.safetensors", first.width, counts.shape[1])
    np.testing.assert_array_equal(read.encode(sp.csr_matrix(counts)), first.encode(sp.csr_matrix(counts)))
    assert (read.width, read.target_sum, len(read.columns), read.cells) == (5, 1e4, 30, 200)


def test_genes_that_a_source_did_not_measure_are_not_used(counts):
    measured = EVERY.copy()
    measured[[3, 17]] = False
    without = counts.copy()
    without[:100, ~measured] = 0
    encoders = [ExpressionEncoder.fit(sp.csr_matrix(table), measured, 4, 1e4) for table in (counts, without)]
    vectors = [one.encode(sp.csr_matrix(table)) for one, table in zip(encoders, (counts, without), strict=True)]
    np.testing.assert_array_equal(*vectors)
    assert 3 not in encoders[0].columns
    assert len(encoders[0].columns) == 28


def test_a_cell_without_counts_has_a_finite_vector(counts):
    encoder = ExpressionEncoder.fit(sp.csr_matrix(counts), EVERY, 4, 1e4)
    assert np.isfinite(encoder.encode(sp.csr_matrix((2, 30), dtype=np.int32))).all()
    assert encoder.encode(sp.csr_matrix((0, 30), dtype=np.int32)).shape == (0, 4)


def test_too_large_a_width_is_refused():
    encoder = Expression(ExpressionSettings(width=9))
    for genes, cells in ((9, 200), (200, 9), (3, 9)):
        with pytest.raises(
            UserError, match=rf"width=9: {genes} genes .* {cells} control cells .* below {min(genes, cells)}"
        ):
            encoder.check(genes, cells)
    encoder.check(10, 10)
