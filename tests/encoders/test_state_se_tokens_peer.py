"""The tokens of SE, against those of arc-state, which is called as a black box."""

from collections import Counter
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from state_se_checkpoints import NEEDS_STATE, arc_batch, load_arc, random_names, random_tensors, tiny

from vcc_fm.encoders.cells.state_se_tokens import Tokenizer, match_genes

PAD = 64


@pytest.fixture(scope="module")
def arc(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Tokenises with arc-state: a matrix [16, G] and its columns -> ids and values [16, PAD], position 0 being CLS."""
    pytest.importorskip("state", reason=NEEDS_STATE)
    geometry = tiny(700)
    tensors, names = random_tensors(geometry), random_names(geometry)
    inference = load_arc(tmp_path_factory.mktemp("arc"), tensors, names, geometry, PAD)

    def tokenize(matrix: np.ndarray, columns: list[str]) -> tuple[np.ndarray, np.ndarray]:
        cells = anndata.AnnData(sp.csr_matrix(matrix.astype(np.float32)), var=pd.DataFrame(index=columns))
        batch = arc_batch(inference, cells, tensors, names, geometry, PAD)
        return batch[0].numpy(), batch[7].numpy()

    return tokenize, names


def peer_columns(names: list[str], known: int = 400) -> list[str]:
    rng = np.random.default_rng(2)
    columns = [*rng.permutation(names)[:known].tolist(), *(f"OTHER{i}" for i in range(40))]
    return [columns[i] for i in rng.permutation(len(columns))]


@pytest.mark.parametrize("scale", [1.0, 30.0], ids=["log", "raw"])
def test_cells_without_ties_have_the_tokens_of_arc_state(arc: Any, scale: float) -> None:
    tokenize, names = arc
    columns = peer_columns(names)
    rng = np.random.default_rng(7)
    # Arc-state needs genes with a value below 1 in every cell.
    matrix = (rng.gamma(2.0, 1.0, (16, 440)) * scale * (rng.random((16, 440)) < 0.7)).astype(np.float32)
    ids, values = tokenize(matrix, columns)
    tokens = Tokenizer(match_genes(columns, names, "m"), PAD, "compat").tokenize(sp.csr_matrix(matrix))
    for cell in range(16):
        ours, theirs = np.argsort(tokens.ids[cell]), 1 + np.argsort(ids[cell, 1:])
        np.testing.assert_array_equal(tokens.ids[cell, ours], ids[cell, theirs])
        np.testing.assert_allclose(tokens.values[cell, ours], values[cell, theirs], rtol=1e-6)
    np.testing.assert_allclose(tokens.cls_value, values[:, 0], rtol=1e-6)


@pytest.mark.parametrize("scale", [0.1, 8.0], ids=["few expressed", "many expressed"])
@pytest.mark.parametrize("logged", [True, False], ids=["log", "raw"])
def test_cells_with_ties_have_the_certain_tokens_of_arc_state(arc: Any, logged: bool, scale: float) -> None:
    tokenize, names = arc
    columns = peer_columns(names)
    matrix = np.random.default_rng(8).poisson(np.random.default_rng(9).gamma(0.5, scale, 440), (16, 440))
    matrix[:, 5] += 50
    matrix = np.log1p(matrix) if logged else matrix
    matrix = matrix.astype(np.float32)
    ids, values = tokenize(matrix, columns)
    tokens = Tokenizer(match_genes(columns, names, "m"), PAD, "compat").tokenize(sp.csr_matrix(matrix))
    for cell in range(16):
        ours = tokens.values[cell]
        np.testing.assert_allclose(ours, np.sort(values[cell, 1:])[::-1], rtol=1e-6)
        certain = ours > ours[-1]
        assert (ours[-1] > 0) == (scale > 1)
        theirs = dict(zip(ids[cell, 1:].tolist(), values[cell, 1:].tolist(), strict=True))
        assert len(theirs) == PAD - 1
        np.testing.assert_allclose([theirs[gene] for gene in tokens.ids[cell, certain]], ours[certain], rtol=1e-6)
    np.testing.assert_allclose(tokens.cls_value, values[:, 0], rtol=1e-6)


def test_each_cell_is_taken_as_counts_or_logarithms_as_by_arc_state(arc: Any) -> None:
    tokenize, names = arc
    columns = peer_columns(names)
    cell = np.random.default_rng(11).gamma(1.0, 0.5, 440)
    cell[:100] = 0
    matrix = np.tile(cell, (16, 1))
    outside = [place for place, name in enumerate(columns) if name not in set(names)][:2]
    matrix[:, outside] = [[a, b] for a in (0, 12, 15, 15.4) for b in (0, 15, 15.5, 40)]
    _, values = tokenize(matrix, columns)
    tokens = Tokenizer(match_genes(columns, names, "m"), PAD, "compat").tokenize(sp.csr_matrix(matrix))
    np.testing.assert_allclose(tokens.values, -np.sort(-values[:, 1:], axis=1), rtol=1e-6)
    assert len(np.unique(tokens.values[:, 0])) == 2


def test_short_cells_have_the_expressed_tokens_of_arc_state(arc: Any) -> None:
    """Fewer matched genes than places: silent genes repeat, as many places in all."""
    tokenize, names = arc
    columns = peer_columns(names, known=50)
    matrix = np.random.default_rng(10).poisson(0.6, (16, 90)).astype(np.float32)
    ids, values = tokenize(matrix, columns)
    genes = match_genes(columns, names, "m")
    tokens = Tokenizer(genes, PAD, "compat").tokenize(sp.csr_matrix(matrix))
    for cell in range(16):
        theirs = Counter(zip(ids[cell, 1:].tolist(), values[cell, 1:].tolist(), strict=True))
        expressed = {gene: value for gene, value in theirs if value > 0}
        known = tokens.values[cell] > 0
        ours = dict(zip(tokens.ids[cell, known].tolist(), tokens.values[cell, known].tolist(), strict=True))
        assert expressed == pytest.approx(ours, rel=1e-6)
        assert sum(times for (_, value), times in theirs.items() if value > 0) == len(ours)
        assert {gene for gene, value in theirs if value == 0} <= set(genes.ids[matrix[cell] == 0])
    np.testing.assert_allclose(tokens.cls_value, values[:, 0], rtol=1e-6)
