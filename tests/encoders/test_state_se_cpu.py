"""SE in native code: against torch, against exact functions, and against what must change no bit."""

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy import special
from state_se_checkpoints import TINY, random_names, random_tensors, tiny
from torch import Tensor
from torch.nn import functional as F

from vcc_fm.encoders.cells import state_se_cpu, state_se_model
from vcc_fm.encoders.cells.simd import LANES, load, store
from vcc_fm.encoders.cells.state_se_cpu_weights import weights_of
from vcc_fm.encoders.cells.state_se_encoder import SeSettings, StateSeEncoder
from vcc_fm.encoders.cells.state_se_model import SeGeometry, StateSe, build_state_se
from vcc_fm.encoders.cells.state_se_weights import SeCheckpoint

GENES = 400


def both(monkeypatch: pytest.MonkeyPatch, geometry: SeGeometry, tensors: dict[str, Tensor]) -> tuple[StateSe, StateSe]:
    """The network in native code and in torch's."""
    native = build_state_se(geometry, tensors)
    assert native._native is not None
    monkeypatch.setattr(state_se_model, "_NATIVE_WIDTH", 0)
    plain = build_state_se(geometry, tensors)
    assert plain._native is None
    return native, plain


def inputs(batch: int, tokens: int, genes: int = GENES) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    ids = torch.randint(genes, (batch, tokens), generator=generator)
    values = torch.rand(batch, tokens, generator=generator) ** 3
    return ids, 100 * values / values.sum(1, keepdim=True), 3 * torch.rand(batch, generator=generator)


def assert_same(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor], tolerance: float = 2e-6) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance)


# ------------------------------------------------------------------------------------------------------ against torch
@pytest.mark.parametrize(
    ("width", "heads", "hidden", "output"),
    [(64, 4, 96, 32), (64, 8, 91, 33), (72, 3, 40, 8), (128, 2, 200, 50), (8, 1, 5, 3)],
)
def test_equals_torch(monkeypatch: pytest.MonkeyPatch, width: int, heads: int, hidden: int, output: int) -> None:
    """Heads of 8, 16, 24 and 64 channels; channels that fill no tile."""
    geometry = dataclasses.replace(tiny(GENES), width=width, heads=heads, hidden=hidden, output=output)
    native, plain = both(monkeypatch, geometry, random_tensors(geometry))
    # Around whole registers, tiles of three, and blocks of keys; one gene; SE-like lengths.
    for tokens in (1, 6, 13, 14, 15, 46, 47, 94, 127, 158, 159, 400):
        assert_same(native(*inputs(2, tokens)), plain(*inputs(2, tokens)))


def test_equals_torch_with_one_layer_and_other_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    geometry = dataclasses.replace(tiny(GENES), layers=1, bins=5, bin_hidden=9, dataset_width=6)
    native, plain = both(monkeypatch, geometry, random_tensors(geometry))
    assert_same(native(*inputs(3, 60)), plain(*inputs(3, 60)))


def test_equals_torch_with_a_key_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    native, plain = both(monkeypatch, tiny(GENES), random_tensors(tiny(GENES)))
    for tokens in (20, 400):
        bias = torch.randint(0, 40, (3, tokens), generator=torch.Generator().manual_seed(2)).log()
        assert bias.isinf().any()
        assert_same(native(*inputs(3, tokens), bias), plain(*inputs(3, tokens), bias))


def test_takes_parts_of_arrays_and_inputs_of_inference(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build_state_se(TINY, random_tensors(TINY))
    ids, values, cls_value = inputs(4, 30, TINY.genes)
    whole = network(ids[:, 1:].contiguous(), values[:, 1:].contiguous(), cls_value)
    with torch.inference_mode():
        part = network(ids[:, 1:], values[:, 1:], cls_value)
    assert torch.equal(torch.hstack(part), torch.hstack(whole))


def test_leaves_the_weights_as_they_are() -> None:
    tensors = random_tensors(TINY)
    before = {key: tensor.clone() for key, tensor in tensors.items()}
    build_state_se(TINY, tensors)(*inputs(2, 30, TINY.genes))
    assert all(torch.equal(tensor, before[key]) for key, tensor in tensors.items())


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({"width": 2 * state_se_model._NATIVE_WIDTH}, torch.float32),
        ({"width": 48, "heads": 4}, torch.float32),  # heads of 12 channels
        ({}, torch.bfloat16),
    ],
    ids=["wide", "heads", "bfloat16"],
)
def test_other_networks_are_left_to_torch(changes: dict[str, int], dtype: torch.dtype) -> None:
    geometry = dataclasses.replace(TINY, **changes)
    network = build_state_se(geometry, random_tensors(geometry), dtype=dtype)
    assert network._native is None
    assert network(*inputs(1, 9, TINY.genes))[0].isfinite().all()


# -------------------------------------------------------------------------------------------- against exact functions
@numba.njit
def of_exp2(x, out):  # type: ignore[no-untyped-def]
    for at in range(0, x.shape[1], LANES):
        store(state_se_cpu._exp2(load(x, 0, at)), out, 0, at)


@numba.njit
def of_gelu(x, out):  # type: ignore[no-untyped-def]
    for at in range(0, x.shape[1], LANES):
        store(state_se_cpu._gelu(load(x, 0, at)), out, 0, at)


def computed(function: Callable[..., None], x: np.ndarray) -> np.ndarray:
    out = np.empty((1, len(x)), np.float32)
    function(x[None], out)
    return out[0]


def test_powers_of_two() -> None:
    x = np.linspace(-126.4, 0, 100_000 // LANES * LANES).astype(np.float32)
    np.testing.assert_allclose(computed(of_exp2, x), np.exp2(x.astype(np.float64)), rtol=3e-7, atol=0)
    low = np.full(LANES, -np.inf, np.float32)
    low[:3] = -126.6, -1e4, -3e38
    np.testing.assert_array_equal(computed(of_exp2, low), 0)


def test_gelu() -> None:
    x = np.linspace(-14, 14, 200_000 // LANES * LANES).astype(np.float32)
    x[:3] = 0, -3e3, 3e3
    wanted = x * special.ndtr(x.astype(np.float64))
    error = np.abs(computed(of_gelu, x) - wanted)
    assert (error / np.maximum(1, np.abs(x))).max() < 1e-7
    negative = (x < 0) & (x > -12)
    np.testing.assert_allclose(computed(of_gelu, x)[negative], wanted[negative], rtol=1e-5, atol=0)


@pytest.mark.parametrize("keys", [8, 160, 168, 1040])
@pytest.mark.parametrize("order", [1, -1], ids=["rising", "falling"])
def test_attention_with_scores_of_hundreds(keys: int, order: int) -> None:
    """Later keys count for more, or less, than all before by many powers of two; some are not to be attended to."""
    rng = np.random.default_rng(keys)
    queries, value = rng.normal(size=(16, 48)).astype(np.float32), rng.normal(size=(16, keys)).astype(np.float32)
    key = (rng.normal(size=(16, keys)) * np.linspace(0, 30, keys)[::order]).astype(np.float32)
    bias = np.where(rng.random(keys) < 0.3, -np.inf, rng.normal(size=keys)).astype(np.float32)
    bias[:2] = 0
    attended, scores, most, total = (np.full((rows, 48), np.nan, np.float32) for rows in (16, 160, 1, 1))
    state_se_cpu._attend(
        attended[:16], queries[:, :48], key[:, :keys], value[:, :keys], bias, scores, most[:, :48], total[:, :48]
    )
    exact = key.T.astype(np.float64) @ queries + bias[:, None]
    if keys > 8:
        assert exact.max() > 200
    wanted = value @ special.softmax(exact * np.log(2), axis=0)
    np.testing.assert_allclose(attended, wanted, rtol=0, atol=3e-4)


def test_values_are_binned_as_by_the_network_of_values() -> None:
    """Left and right of all bends and on them; units whose weight is 0; bends that coincide."""
    generator = torch.Generator().manual_seed(0)
    tensors = random_tensors(TINY)
    first, bias = torch.randn(512, generator=generator), torch.randn(512, generator=generator)
    first[:6], bias[:2] = 0, torch.tensor([1.0, -1.0])
    first[6:10], bias[6:10] = torch.tensor([2.0, -2.0, 1.0, -1.0]), torch.tensor([-6.0, 6.0, -3.0, 3.0])
    tensors |= {"count_encoder.0.weight": first[:, None], "count_encoder.0.bias": bias}
    arrays = {key: tensor.numpy() for key, tensor in tensors.items()}
    weights = weights_of(arrays, 4, np.zeros((1, 64), np.float32), np.zeros((2, 64), np.float32))
    x = torch.cat([torch.tensor([0.0, 3.0, -1e3, 1e3]), 100 * torch.rand(500), -10 * torch.rand(100)]).double()
    inner = F.leaky_relu(x[:, None] * first.double() + bias.double(), 0.01)
    wanted = inner @ tensors["count_encoder.2.weight"].double().T + tensors["count_encoder.2.bias"].double()
    piece = np.searchsorted(weights.bends, x.numpy())
    found = weights.slopes[piece] * x.numpy()[:, None] + weights.offsets[piece]
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-12, atol=1e-11)


# ---------------------------------------------------------------------------------- what must not change a cell's bits
def bits(parts: tuple[Tensor, Tensor]) -> bytes:
    return torch.hstack(parts).numpy().tobytes()


@pytest.fixture(scope="module")
def network() -> StateSe:
    return build_state_se(tiny(GENES), random_tensors(tiny(GENES)))


def test_cells_before_and_beside_change_no_bit(network: StateSe) -> None:
    """Memory is used again for the next cell, and was used by longer ones, with NaN in it, before."""
    cells = inputs(9, 37)
    together = network(*cells)
    spoilt = inputs(1, 390)
    spoilt[1][:] = torch.nan
    for cell in range(9):
        assert network(*spoilt)[0].isnan().all()
        alone = network(*(part[cell : cell + 1] for part in cells))
        assert bits(alone) == bits((together[0][cell : cell + 1], together[1][cell : cell + 1]))
    values = cells[1].clone()
    values[4] = torch.nan
    beside = network(cells[0], values, cells[2])
    kept = torch.arange(9) != 4
    assert beside[0][4].isnan().all()
    assert bits((beside[0][kept], beside[1][kept])) == bits((together[0][kept], together[1][kept]))


def test_threads_at_the_same_time_change_no_bit(network: StateSe) -> None:
    cells = [inputs(2, tokens) for tokens in range(20, 60)]
    wanted = [bits(network(*cell)) for cell in cells]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda cell: bits(network(*cell)), cells)) == wanted


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_number_of_threads_and_of_cells_changes_no_bit() -> None:
    geometry = tiny(1100)
    checkpoint = SeCheckpoint(geometry, random_names(geometry), random_tensors(geometry), "random", None, ())
    encoder = StateSeEncoder(checkpoint, checkpoint.names, SeSettings(pad_length=1024))
    rng = np.random.default_rng(0)
    rows = sp.csr_matrix(rng.poisson(rng.gamma(0.5, 1.0, 1100), (13, 1100)).astype(np.float32))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(np.hstack(encoder.encode(rows)).tobytes())
    found.append(np.vstack([np.hstack(encoder.encode(rows[cell])) for cell in range(13)]).tobytes())
    assert len(set(found)) == 1


# ----------------------------------------------------------------------------------------------------- what is refused
def test_what_is_compiled_in_is_what_is_there() -> None:
    folder = Path(state_se_cpu.__file__).parent
    parts = b"".join((folder / name).read_bytes() for name in ("simd.py", "state_se_cpu_weights.py"))
    assert state_se_cpu.COMPILED_IN == hashlib.sha256(parts).hexdigest()[:16], "write this into state_se_cpu.py"


def test_compiled_code_looks_nowhere_else() -> None:
    network = build_state_se(TINY, random_tensors(TINY))
    assert network._native is not None
    ids, values, cls_value = torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 5), torch.ones(2)
    for wrong in (-1, len(network.gene_tokens), 10**13):
        changed = ids.clone()
        changed[1, 3] = wrong
        with pytest.raises(IndexError, match="ids must be 0 to"):
            network(changed, values, cls_value)
    for given in ((ids, values[:, :4], cls_value), (ids, values[:1], cls_value), (ids, values, cls_value[:1])):
        with pytest.raises(ValueError, match="do not fit"):
            network(*given)
    bias = torch.tensor([[0.0, -1.0, 0.0, 0.5, 0.0]])
    assert torch.equal(network(ids, values, cls_value, bias)[0], network(ids, values, cls_value, bias.repeat(2, 1))[0])


@pytest.mark.parametrize(
    "name", ["count_encoder.2.weight", "count_encoder.2.bias", "decoder.0.intermediate_dense.bias"]
)
def test_what_is_no_number_is_not_hidden(name: str) -> None:
    tensors = random_tensors(TINY)
    tensors[name].view(-1)[0] = math.nan
    assert build_state_se(TINY, tensors)(*inputs(2, 9, TINY.genes))[0].isnan().all()
