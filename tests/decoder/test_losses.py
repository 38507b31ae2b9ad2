"""Each loss term against an independent computation, and what must leave it alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from test_decoder_model import CELLS, SETS, make_batch, make_decoder, set_alone, with_log_shares

from vcc_fm.cellsets.batch import Batch, _each
from vcc_fm.decoder import losses
from vcc_fm.decoder.count_head import CountDistribution
from vcc_fm.decoder.losses import (
    SMALLEST_MEAN,
    SetLosses,
    _energy,
    _noise,
    _table,
    negative_binomial_nll,
    set_losses,
)
from vcc_fm.recipe.train import LossWeights
from vcc_fm.training.loop import mean_loss


@pytest.mark.parametrize("look", [True, False], ids=["as on a CPU", "as on a GPU"])
def test_negative_binomial_against_scipy(look: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "pays_to_look_for_zeros", lambda _: look)
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 200, 1000)
    mean, alpha = rng.gamma(2.0, 20.0, 1000) + 1e-3, rng.gamma(2.0, 0.5, 1000) + 0.02
    size = 1.0 / alpha
    expected = -scipy.stats.nbinom.logpmf(counts, size, size / (size + mean))
    found = negative_binomial_nll(*(torch.from_numpy(np.asarray(x, np.float64)) for x in (counts, mean, alpha)))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)


def test_negative_binomial_is_finite_where_nothing_is_expected() -> None:
    counts, nothing, alpha = torch.tensor([0.0, 2.0]), torch.zeros(2), torch.full((2,), 0.3)
    found = negative_binomial_nll(counts, nothing, alpha)
    assert found[0] == 0
    assert found[1] == negative_binomial_nll(counts, torch.full((2,), SMALLEST_MEAN), alpha)[1]


def test_energy_distance_by_hand() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(4, 6)), rng.normal(size=(4, 6)) + 0.5

    def mean_distance(a: np.ndarray, b: np.ndarray, skip: bool) -> float:
        pairs = [np.linalg.norm(p - q) for i, p in enumerate(a) for j, q in enumerate(b) if not (skip and i == j)]
        return float(np.mean(pairs))

    expected = 2 * mean_distance(x, y, False) - mean_distance(x, x, True) - mean_distance(y, y, True)
    padded = [torch.from_numpy(np.concatenate([v, 1e3 + rng.normal(size=(2, 6))])[None]) for v in (x, y)]
    mask = torch.tensor([[True] * 4 + [False] * 2])
    assert _energy(*padded, mask)[0].item() == pytest.approx(expected, rel=1e-5)


def test_the_energy_distance_has_the_gradient_of_its_definition() -> None:
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(3, 5, 7, generator=generator).double(), torch.randn(3, 5, 7, generator=generator).double()
    x[0, 1], x[1, 2] = x[0, 0], y[1, 3]  # a distance of zero, which nothing moves
    mask = torch.tensor([[True] * 5, [True] * 4 + [False], [True] + [False] * 4])
    x.requires_grad_()
    (found, slope), wanted = _energy(x, y, mask), plain_energy(x, y, mask)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slope, torch.autograd.grad(wanted.sum(), x)[0], rtol=1e-9, atol=1e-9)


def test_terms_belong_to_their_set_alone() -> None:
    decoder, batch = make_decoder(), make_batch()
    together = set_losses(decoder(batch), batch)
    for i in range(SETS):
        one = set_alone(batch, i)
        alone = set_losses(decoder(one), one)
        for name, value in together.items():
            assert alone[name].item() == pytest.approx(value[i].item(), rel=1e-4), name


def test_a_gene_that_was_not_measured_has_no_loss_and_no_gradient() -> None:
    decoder, batch = make_decoder(), make_batch()
    unmeasured = batch.log_share_BSG.clone()
    unmeasured[:, :, 5] = -torch.inf
    assert batch.counts_BSG is not None
    counts = batch.counts_BSG.clone()
    counts[:, :, 5] = 0
    batch = replace(with_log_shares(batch, torch.log_softmax(unmeasured, -1)), counts_BSG=counts)
    batch.response_BG[:, 5] = 0  # as of a gene that was not measured; the response token sees it
    objective = SetLosses(LossWeights())
    loss = mean_loss(objective(decoder, batch), objective)
    loss.backward()
    assert torch.isfinite(loss)
    free = decoder.gene_factors.free.grad
    assert free is not None
    assert (free[5] == 0).all()
    assert (free[4] != 0).any()
    for name, parameter in decoder.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name


def test_padded_cells_have_no_loss() -> None:
    decoder, batch = make_decoder(), make_batch()
    assert batch.counts_BSG is not None
    shares = batch.log_share_BSG.clone()
    shares[1, 3:] = shares[1, 3:].flip(-1)
    depth = batch.control_depth_BS.clone()
    depth[1, 3:] = 7.0
    plain = set_losses(decoder(batch), batch)
    touched = replace(with_log_shares(batch, shares), control_depth_BS=depth)
    for name, value in set_losses(decoder(touched), touched).items():
        torch.testing.assert_close(value, plain[name], rtol=1e-4, atol=1e-5, msg=name)


def test_delta_is_zero_where_the_pseudobulk_is_right() -> None:
    batch = make_batch()
    assert batch.counts_BSG is not None
    bulk = batch.counts_BSG.sum(1) / batch.counts_BSG.sum((1, 2))[:, None]
    predicted = CountDistribution(bulk.clamp(min=1e-30).log(), torch.full((bulk.shape[-1],), 0.3))
    batch = with_log_shares(batch, torch.zeros_like(batch.counts_BSG))
    torch.testing.assert_close(set_losses(predicted, batch)["delta"], torch.zeros(SETS), rtol=0, atol=1e-6)


def test_delta_of_shallow_sets_has_its_optimum_at_the_truth() -> None:
    # Half a count of each gene a set: the mean logarithm of such counts is far below the logarithm of their mean.
    generator, sets = torch.Generator().manual_seed(0), 20_000
    batch = make_batch()
    share = torch.softmax(torch.randn(12, generator=generator), 0)
    drawn = torch.multinomial(share, 6 * sets, replacement=True, generator=generator).view(sets, 6)
    counts = torch.nn.functional.one_hot(drawn, 12).sum(1, keepdim=True).float()
    delta_BG = torch.zeros(sets, 12, requires_grad=True)
    fields = {"cell_mask_BS": torch.ones(sets, 1, dtype=torch.bool), "counts_BSG": counts}
    batch = replace(batch, **fields, null_ratio_BG=torch.ones(sets, 12), control_depth_BS=torch.ones(sets, 1))
    batch = with_log_shares(batch, share.log().expand(sets, 1, -1))
    delta = set_losses(CountDistribution(delta_BG, torch.full((12,), 1e-3)), batch, ["delta"])["delta"]
    delta.sum().backward()
    gradient = delta_BG.grad
    assert gradient is not None
    assert (gradient.mean(0).abs() < 4 * gradient.std(0) / sets**0.5).all()


def test_energy_prefers_the_right_cells() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = make_batch()
    depth, share = 1000.0, torch.softmax(torch.randn(12, generator=generator), 0)
    counts = torch.poisson(depth * share.expand(SETS, CELLS, -1).contiguous(), generator=generator)
    batch = replace(batch, counts_BSG=counts, cell_mask_BS=torch.ones(SETS, CELLS, dtype=torch.bool))
    batch = with_log_shares(batch, share.log().expand(SETS, CELLS, -1))

    def energy(delta: torch.Tensor) -> float:
        predicted = CountDistribution(delta.expand(SETS, -1), torch.full((12,), 1e-3))
        return set_losses(predicted, batch)["energy"].mean().item()

    assert energy(torch.zeros(12)) < 0.1 * energy(share.log().flip(0) - share.log())


def test_noise_belongs_to_a_set_and_is_normal() -> None:
    shape, table = torch.Size((3, 40, 50)), _table(16_000, torch.device("cpu"))
    first = _noise(table, torch.tensor([7, 2**61 + 1, 9]), shape)
    again = _noise(table, torch.tensor([9, 8, 7]), shape)
    assert torch.equal(first[0], again[2])
    assert torch.equal(first[2], again[0])
    assert not torch.equal(again[0], again[1])
    assert first.mean().item() == pytest.approx(0.0, abs=0.06)
    assert first.std().item() == pytest.approx(1.0, abs=0.06)


def test_weights_weigh() -> None:
    terms = {"likelihood": torch.tensor([1.0, 3.0]), "energy": torch.tensor([1.0, 1.0]), "delta": torch.ones(2)}
    assert mean_loss(terms, SetLosses(LossWeights(likelihood=2.0, energy=0.5, delta=0.0))).item() == pytest.approx(4.5)


def plain_losses(delta_BG: torch.Tensor, dispersion_G: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
    """The three terms as they are defined, for torch to derive; of the delta's unit it is told not to."""
    control_BSG, counts_BSG, mask_BS = batch.log_share_BSG, batch.counts_BSG, batch.cell_mask_BS
    assert counts_BSG is not None
    measured_BSG = torch.isfinite(control_BSG) & mask_BS[..., None]
    genes_B = measured_BSG.any(1).sum(-1)
    share_BSG = torch.log_softmax(control_BSG + delta_BG[:, None], -1).exp()
    expected_BSG = counts_BSG.sum(-1, keepdim=True) * share_BSG
    mean_BSG = expected_BSG * batch.null_ratio_BG[:, None]
    law = torch.distributions.NegativeBinomial(1.0 / dispersion_G, logits=(dispersion_G * mean_BSG + 1e-30).log())
    found_BG, wanted_BG = (each.sum(1) / counts_BSG.sum((1, 2))[:, None] for each in (expected_BSG, counts_BSG))
    unit_BG = losses.BULK_TARGET_SUM / (1.0 + losses.BULK_TARGET_SUM * found_BG.detach())
    depth_BS1 = batch.control_depth_BS[..., None]
    mean_BSG = depth_BS1 * share_BSG
    spread_BSG = (mean_BSG + dispersion_G * mean_BSG.square() + 1e-12).sqrt()
    noise_BSG = _noise(losses._noise_table(batch), batch.noise_seed_B, share_BSG.shape)
    drawn_BSG = torch.log1p(1e4 * torch.relu(mean_BSG + spread_BSG * noise_BSG) / depth_BS1)
    real_BSG = torch.log1p(1e4 * counts_BSG / counts_BSG.sum(-1, keepdim=True).clamp(min=1.0))
    return {
        "likelihood": -(law.log_prob(counts_BSG) * measured_BSG).sum((1, 2)) / measured_BSG.sum((1, 2)),
        "energy": plain_energy(drawn_BSG, real_BSG, mask_BS) / genes_B.sqrt(),
        "delta": (unit_BG * (found_BG - wanted_BG)).square().sum(-1) / genes_B,
    }


def plain_energy(x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """2 E|x - y| - E|x - x'| - E|y - y'| as it is defined."""
    pairs = (mask[:, :, None] & mask[:, None]).double()
    others = pairs * (1.0 - torch.eye(mask.shape[1]))
    mean = [(pairs, (x, y)), (others, (x, x)), (others, (y, y))]
    terms = [
        (weight * (one[:, :, None] - other[:, None]).square().sum(-1).clamp(min=1e-4).sqrt()).sum((1, 2))
        / weight.sum((1, 2)).clamp(min=1.0)
        for weight, (one, other) in mean
    ]
    return 2.0 * terms[0] - terms[1] - terms[2]


@pytest.mark.parametrize("at_a_time", [1, 2**20])
@pytest.mark.parametrize("look", [True, False], ids=["as on a CPU", "as on a GPU"])
def test_each_term_has_the_value_and_the_gradient_of_its_definition(
    look: bool, at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "pays_to_look_for_zeros", lambda _: look)
    monkeypatch.setattr(losses, "VALUES_AT_A_TIME", {"cpu": at_a_time})
    generator = torch.Generator().manual_seed(0)
    batch = _each(make_batch(), lambda value: value.double() if value.is_floating_point() else value)
    ratio = 0.5 + torch.rand(batch.null_ratio_BG.shape, generator=generator).double()
    # Counts of controls about as deep as the measured cells, so that some drawn counts are below zero.
    batch = replace(batch, null_ratio_BG=ratio, control_depth_BS=20.0 + torch.rand(SETS, CELLS).double())
    delta = torch.randn(ratio.shape, generator=generator).double().requires_grad_()
    dispersion = 0.1 + torch.rand(ratio.shape[1], generator=generator).double()
    found, wanted = set_losses(CountDistribution(delta, dispersion), batch), plain_losses(delta, dispersion, batch)
    weights = torch.tensor([1.0, -2.0, 0.5]).double()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)
        gradients = [torch.autograd.grad(one, delta, weights, retain_graph=True)[0] for one in (found[name], value)]
        assert gradients[1].abs().max() > 1e-5
        torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-10, msg=name)
        assert (batch.log_share_BSG[2, :, 7] == -torch.inf).all()
        assert gradients[0][2, 7] == 0, f"{name}: a gene that was not measured"


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_losses_of_a_gpu_can_be_compiled_whole(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setattr(losses, "pays_to_look_for_zeros", lambda _: False)
    batch, predicted = make_batch(), make_decoder()(make_batch())
    predicted = predicted._replace(delta_BG=predicted.delta_BG.detach().requires_grad_())
    terms, noise = ("likelihood", "energy", "delta"), losses._noise_table(batch)
    traced = torch.compile(set_losses, fullgraph=True, backend=backend)
    found = []
    for compute in (set_losses, traced):
        values = compute(predicted, batch, terms, noise)
        total = torch.stack([values[name].sum() for name in terms])
        found.append((total, torch.autograd.grad(total.sum(), predicted.delta_BG)[0]))
    torch.testing.assert_close(found[0], found[1])


def test_a_term_of_weight_zero_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def computed(*_: object) -> torch.Tensor:
        raise AssertionError("the energy distance was computed")

    monkeypatch.setattr(losses, "_energy", computed)
    with monkeypatch.context() as patched:
        patched.setattr(losses, "_noise_table", computed)
        assert list(SetLosses(LossWeights(energy=0.0))(make_decoder(), make_batch())) == ["likelihood", "delta"]
    with pytest.raises(AssertionError, match="energy distance"):
        SetLosses(LossWeights())(make_decoder(), make_batch())
