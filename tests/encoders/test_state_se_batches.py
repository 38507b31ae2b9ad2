"""SE on a CPU: other cells, and linear layers of oneDNN, change nothing."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from state_se_checkpoints import random_names, random_tensors, tiny

from vcc_fm.encoders.cells import state_se_model
from vcc_fm.encoders.cells.state_se_encoder import SeSettings, StateSeEncoder
from vcc_fm.encoders.cells.state_se_geometry import SeGeometry
from vcc_fm.encoders.cells.state_se_model import build_state_se
from vcc_fm.encoders.cells.state_se_weights import SeCheckpoint

WIDE = SeGeometry(512, 96, 2, heads=4, output=33, token_dim=48, genes=400, datasets=7)
# Sizes that fill no vector register: in one array, every second cell would begin elsewhere in one.
UNEVEN = SeGeometry(64, 91, 3, heads=4, output=33, token_dim=48, genes=400, datasets=7, bin_hidden=9)


def cells_of(cells: int, genes: int) -> sp.csr_matrix:
    rng = np.random.default_rng(0)
    return sp.csr_matrix(rng.poisson(rng.gamma(0.5, 1.0, genes), (cells, genes)).astype(np.int32))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("geometry", "pad"),
    [
        pytest.param(geometry, pad, id=f"{length}-{name}", marks=SLOW if geometry is WIDE and pad > 38 else ())
        for name, geometry in (("small", tiny(400)), ("oneDNN", WIDE), ("uneven", UNEVEN))
        for length, pad in (("short", 38), ("long", 128), ("ragged", 900))
    ],
)
def test_a_cell_alone_has_the_vector_that_it_has_among_others(geometry: SeGeometry, pad: int) -> None:
    checkpoint = SeCheckpoint(geometry, random_names(geometry), random_tensors(geometry), "random", None, ())
    encoder = StateSeEncoder(checkpoint, checkpoint.names[:380], SeSettings(pad_length=pad))
    rows = cells_of(29, 380)
    together = np.hstack(encoder.encode(rows))
    alone = np.vstack([np.hstack(encoder.encode(rows[cell])) for cell in range(29)])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(together[5:24], np.hstack(encoder.encode(rows[5:24])))


def test_packed_layers_give_the_same_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = random_tensors(WIDE)
    inputs = torch.arange(200)[None], torch.rand(1, 200, generator=torch.Generator().manual_seed(0)), torch.ones(1)
    packed = build_state_se(WIDE, tensors)
    assert packed.transformer_encoder.layers[0].linear1._packed is not None
    monkeypatch.setattr(state_se_model, "_PACKED_WIDTH", WIDE.width + 1)
    plain = build_state_se(WIDE, tensors)
    assert plain.transformer_encoder.layers[0].linear1._packed is None
    for ours, theirs in zip(packed(*inputs), plain(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
