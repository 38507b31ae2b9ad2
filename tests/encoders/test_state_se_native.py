"""What the native code of SE's tokenizer makes of rare rows: wide numbers, several faults, memory in use before."""

import numpy as np
import pytest
import scipy.sparse as sp

from vcc_fm.encoders.cells.state_se_tokens import Tokenizer, match_genes
from vcc_fm.ground.errors import UserError

NAMES = [f"GENE{i}" for i in range(60)]
GENES = match_genes([*NAMES[::-1], "OTHER"], NAMES, "m.h5ad")


def row(data: list[float], columns: list[int]) -> sp.csr_matrix:
    return sp.csr_matrix((np.array(data), np.array(columns), np.array([0, len(data)])), shape=(1, 61))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_with_many_digits_are_sorted(dtype: type) -> None:
    """Neighbours among float32, whole numbers beyond 2^24 and 2^31, and the smallest beside the largest number."""
    genes = match_genes(NAMES, NAMES, "m.h5ad")
    rng = np.random.default_rng(12)
    near = (np.float32(1.5).view(np.uint32) + rng.integers(0, 40, (4, 60), np.uint32)).view(np.float32)
    large = rng.integers(2**24 - 20, 2**24 + 20, (4, 60)).astype(np.float32)
    wide = np.exp2(rng.integers(0, 36, (4, 60)).astype(np.float64)).astype(np.float32)
    small = np.exp2(rng.integers(-148, 128, (4, 60)).astype(np.float64)).astype(np.float32)
    for matrix, mode in ((near, "compat"), (large, "exact"), (large, "compat"), (wide, "exact"), (small, "compat")):
        matrix[:, 7] = 0
        tokens = Tokenizer(genes, 60, mode).tokenize(sp.csr_matrix(matrix.astype(dtype)))
        np.testing.assert_array_equal(tokens.ids, np.argsort(-matrix, axis=1, kind="stable")[:, :59])


@pytest.mark.parametrize("pad", [20, 50, 100], ids=["cut", "silent", "repeated"])
def test_slots_without_tokens_hold_zeros_whatever_the_memory_held(pad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(14).poisson(0.8, (20, 61))
    matrix[3], matrix[5] = 0, 1
    tokenizer = Tokenizer(GENES, pad)
    clean = tokenizer.tokenize(sp.csr_matrix(matrix))
    monkeypatch.setattr(np, "empty", lambda shape, dtype: np.full(shape, 7, dtype))
    tokens = tokenizer.tokenize(sp.csr_matrix(matrix))
    for name in ("ids", "values", "multiplicity"):
        found = getattr(tokens, name)
        assert all(not found[cell, tokens.length[cell] :].any() for cell in range(20))
        np.testing.assert_array_equal(found, getattr(clean, name))


@pytest.mark.parametrize(
    ("part", "values"), [("indices", [4, 61]), ("indices", [-1, 4]), ("indptr", [0, 3]), ("indptr", [1, 2])]
)
def test_native_code_looks_nowhere_else(part: str, values: list[int]) -> None:
    cell = row([2, 1], [4, 7])
    setattr(cell, part, np.array(values))
    with pytest.raises(ValueError, match="ind"):
        Tokenizer(GENES, 20).tokenize(cell)


def test_entries_beside_each_other_for_one_gene_may_be_zeros() -> None:
    tokenizer = Tokenizer(GENES, 40)
    one = tokenizer.tokenize(row([2, 1], [4, 7]))
    for data in ([2, 0, 1], [0, 2, 1]):
        assert tokenizer.tokenize(row(data, [4, 4, 7])).ids.tolist() == one.ids.tolist()


def test_columns_without_a_gene_may_repeat() -> None:
    tokenizer = Tokenizer(GENES, 40)
    one, twice = tokenizer.tokenize(row([2, 1], [4, 60])), tokenizer.tokenize(row([2, 1, 5], [4, 60, 60]))
    assert one.ids.tolist() == twice.ids.tolist()


@pytest.mark.parametrize(
    ("data", "entry", "message"),
    [
        ([1, 1, 1, 0.5, -1], 2, "two entries"),
        ([0, 1, 1, 0.5, -1], 3, "no count"),
        ([0, 1, 1, -1, 0.5], 3, "negative"),
        ([0, 1, 1, 1, -1], 4, "negative"),
    ],
)
def test_the_first_of_several_faults_of_a_row_is_named(data: list[float], entry: int, message: str) -> None:
    cell = row(data, [4, 7, 4, 9, 11])
    with pytest.raises(UserError, match=f"gene '{GENES.columns[cell.indices[entry]]}'.*{message}"):
        Tokenizer(GENES, 20).tokenize(cell)
