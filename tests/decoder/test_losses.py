"""Each loss term against an independent computation, and what must leave it alone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from test_decoder_model import CELLS, SETS, make_batch, make_decoder, set_alone, with_log_shares

from vcc_fm.decoder import losses
from vcc_fm.decoder.count_head import CountDistribution
from vcc_fm.decoder.losses import (
    SMALLEST_MEAN,
    SetLosses,
    _Energy,
    _Likelihood,
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
    zero, alpha = torch.zeros(1), torch.full((1,), 0.3)
    mean = torch.full((1,), SMALLEST_MEAN, requires_grad=True)
    loss = negative_binomial_nll(zero, mean, alpha)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert torch.isfinite(mean.grad).all()


def test_energy_distance_by_hand() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(4, 6)), rng.normal(size=(4, 6)) + 0.5

    def mean_distance(a: np.ndarray, b: np.ndarray, skip: bool) -> float:
        pairs = [np.linalg.norm(p - q) for i, p in enumerate(a) for j, q in enumerate(b) if not (skip and i == j)]
        return float(np.mean(pairs))

    expected = 2 * mean_distance(x, y, False) - mean_distance(x, x, True) - mean_distance(y, y, True)
    padded = [torch.from_numpy(np.concatenate([v, 1e3 + rng.normal(size=(2, 6))])[None]) for v in (x, y)]
    mask = torch.tensor([[True] * 4 + [False] * 2])
    assert _Energy.apply(*padded, mask).item() == pytest.approx(expected, rel=1e-5)


def test_the_energy_distance_has_the_gradient_of_its_definition() -> None:
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(3, 5, 7, generator=generator).double(), torch.randn(3, 5, 7, generator=generator).double()
    x[0, 1], x[1, 2] = x[0, 0], y[1, 3]  # a distance of zero, which nothing moves
    mask = torch.tensor([[True] * 5, [True] * 4 + [False], [True] + [False] * 4])
    x.requires_grad_()

    def plain() -> torch.Tensor:
        pairs = (mask[:, :, None] & mask[:, None]).double()
        others = pairs * (1.0 - torch.eye(5))
        mean = [(pairs, (x, y)), (others, (x, x)), (others, (y, y))]
        terms = [
            (weight * (one[:, :, None] - other[:, None]).square().sum(-1).clamp(min=1e-4).sqrt()).sum((1, 2))
            / weight.sum((1, 2)).clamp(min=1.0)
            for weight, (one, other) in mean
        ]
        return 2.0 * terms[0] - terms[1] - terms[2]

    weights = torch.tensor([1.0, -2.0, 0.5]).double()
    found, wanted = _Energy.apply(x, y, mask), plain()
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(value, x, weights)[0] for value in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


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
    right = bulk.log()[:, None].expand(-1, CELLS, -1)
    predicted = CountDistribution(right, torch.zeros_like(right), torch.full((right.shape[-1],), 0.3))
    torch.testing.assert_close(set_losses(predicted, batch)["delta"], torch.zeros(SETS), rtol=0, atol=1e-6)


def test_delta_of_shallow_sets_has_its_optimum_at_the_truth() -> None:
    # Half a count of each gene a set: the mean logarithm of such counts is far below the logarithm of their mean.
    generator, sets = torch.Generator().manual_seed(0), 20_000
    batch = make_batch()
    share = torch.softmax(torch.randn(12, generator=generator), 0)
    drawn = torch.multinomial(share, 6 * sets, replacement=True, generator=generator).view(sets, 6)
    counts = torch.nn.functional.one_hot(drawn, 12).sum(1, keepdim=True).float()
    found = share.log().expand(sets, 1, -1).clone().requires_grad_()
    fields = {"cell_mask_BS": torch.ones(sets, 1, dtype=torch.bool), "counts_BSG": counts}
    batch = replace(batch, **fields, null_ratio_BG=torch.ones(sets, 12), control_depth_BS=torch.ones(sets, 1))
    batch = with_log_shares(batch, share.log().expand(sets, 1, -1))
    delta = set_losses(CountDistribution(found, found[:, 0], torch.full((12,), 1e-3)), batch, ["delta"])["delta"]
    delta.sum().backward()
    assert found.grad is not None
    gradient = found.grad[:, 0]
    assert (gradient.mean(0).abs() < 4 * gradient.std(0) / sets**0.5).all()


def test_energy_prefers_the_right_cells() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = make_batch()
    depth, share = 1000.0, torch.softmax(torch.randn(12, generator=generator), 0)
    counts = torch.poisson(depth * share.expand(SETS, CELLS, -1).contiguous(), generator=generator)
    batch = replace(batch, counts_BSG=counts, cell_mask_BS=torch.ones(SETS, CELLS, dtype=torch.bool))
    batch = with_log_shares(batch, share.log().expand(SETS, CELLS, -1))

    def energy(log_share: torch.Tensor) -> float:
        wide = log_share.expand(SETS, CELLS, -1)
        predicted = CountDistribution(wide, torch.zeros_like(wide), torch.full((12,), 1e-3))
        return set_losses(predicted, batch)["energy"].mean().item()

    assert energy(share.log()) < 0.1 * energy(share.log().flip(0))


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


def test_the_likelihood_has_the_gradient_of_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.rand(3, 4, 6, generator=generator).double() * 3.0, generator=generator)
    measured = torch.ones(3, 4, 6, dtype=torch.bool)
    measured[:, :, 2] = measured[1, 3] = False
    counts[~measured] = 0.0
    ratio, dispersion = (
        0.5 + torch.rand(3, 6, generator=generator).double(),
        torch.rand(6, generator=generator).double(),
    )
    logits = torch.randn(3, 4, 6, generator=generator).double().requires_grad_()
    depth = counts.sum(-1, keepdim=True)

    def unmeasured(log_share: torch.Tensor) -> torch.Tensor:
        return torch.where(measured, log_share, -torch.inf)

    def terms(log_share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _Likelihood.apply(unmeasured(log_share), counts, depth, measured, ratio, dispersion)

    def plain(log_share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        expected = depth * unmeasured(log_share).exp()
        law = torch.distributions.NegativeBinomial(
            1.0 / dispersion, logits=(dispersion * (expected * ratio[:, None] + SMALLEST_MEAN)).log()
        )
        return -(law.log_prob(counts) * measured).sum((1, 2)), expected.sum(1)

    assert torch.autograd.gradcheck(terms, logits)
    found, wanted = terms(logits), plain(logits)
    weights = [torch.randn(value.shape, generator=generator).double() for value in found]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(values, logits, weights)[0] for values in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    # However many sets are worked on at a time.
    monkeypatch.setattr(losses, "VALUES_AT_A_TIME", {"cpu": 1, "cuda": 1})
    assert torch.equal(torch.autograd.grad(terms(logits), logits, weights)[0], gradients[0])


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_losses_of_a_gpu_can_be_compiled_whole(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setattr(losses, "pays_to_look_for_zeros", lambda _: False)
    batch, predicted = make_batch(), make_decoder()(make_batch())
    predicted = predicted._replace(log_share_BSG=predicted.log_share_BSG.detach().requires_grad_())
    terms, noise = ("likelihood", "energy", "delta"), losses._noise_table(batch)
    traced = torch.compile(set_losses, fullgraph=True, backend=backend)
    found = []
    for compute in (set_losses, traced):
        values = compute(predicted, batch, terms, noise)
        total = torch.stack([values[name].sum() for name in terms])
        found.append((total, torch.autograd.grad(total.sum(), predicted.log_share_BSG)[0]))
    torch.testing.assert_close(found[0], found[1])


def test_a_term_of_weight_zero_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def computed(*_: object) -> torch.Tensor:
        raise AssertionError("the energy distance was computed")

    monkeypatch.setattr(losses, "_Energy", SimpleNamespace(apply=computed))
    with monkeypatch.context() as patched:
        patched.setattr(losses, "_noise_table", computed)
        assert list(SetLosses(LossWeights(energy=0.0))(make_decoder(), make_batch())) == ["likelihood", "delta"]
    with pytest.raises(AssertionError, match="energy distance"):
        SetLosses(LossWeights())(make_decoder(), make_batch())
