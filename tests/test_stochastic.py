"""SQ-VAE's and HQA's quantizers against their formulas, written as loops."""

import math

import pytest
import torch

from fq_ldm.quantization.lookup import count_entries
from fq_ldm.quantization.stochastic import HQA_LOSS_WEIGHT, HQACodebook, StochasticCodebook


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def posterior(token, entries, variance):
    distances = [sum((a - b) ** 2 for a, b in zip(token, entry, strict=True)) for entry in entries]
    weights = [math.exp(-d / (2 * variance)) for d in distances]
    return [w / sum(weights) for w in weights], distances


def filled(cls, **kwargs):
    codebook = cls(5, 3, **kwargs)
    with torch.no_grad():
        codebook.entries.copy_(randn(5, 3, seed=1))
        codebook.log_variance.fill_(math.log(0.7))
    return codebook


def test_sq_vae_loss_against_loops():
    """KL(q || uniform) + |z - z_q|^2 / (2 sigma^2) per token, over the components; evaluation takes the nearest."""
    codebook, tokens = filled(StochasticCodebook).eval(), randn(2, 4, 3)
    out = codebook.quantize(tokens)
    total = 0.0
    for b in range(2):
        for u in range(4):
            q, distances = posterior(tokens[b, u].tolist(), codebook.entries.tolist(), 0.7)
            nearest = min(range(5), key=distances.__getitem__)
            assert out.indices[b, u] == nearest
            torch.testing.assert_close(out.tokens[b, u], codebook.entries[nearest])
            total += sum(p * math.log(p * 5) for p in q) + distances[nearest] / (2 * 0.7)
    assert out.loss.item() == pytest.approx(total / 8 / 3, rel=1e-4)


def test_hqa_loss_against_loops():
    """1e-3 (KL(q || uniform) + E_q |z - e|^2 / (2 sigma^2)), over the numbers of the image."""
    codebook, tokens = filled(HQACodebook, data_elements=2.0).eval(), randn(2, 4, 3)
    total = 0.0
    for token in tokens.flatten(0, 1).tolist():
        q, distances = posterior(token, codebook.entries.tolist(), 0.7)
        total += sum(p * math.log(p * 5) for p in q) + sum(p * d for p, d in zip(q, distances, strict=True)) / 1.4
    expected = HQA_LOSS_WEIGHT * total / 8 / 3 / 2
    assert codebook.quantize(tokens).loss.item() == pytest.approx(expected, rel=1e-4)


def test_sq_vae_objective_is_the_bound_with_the_best_decoder_variance():
    """log(mse) / 2 is the Gaussian likelihood at its best variance, up to a constant."""
    codebook = StochasticCodebook(4, 2, data_elements=3.0)
    mse, nats = torch.tensor(0.02), torch.tensor(0.6)
    objective = codebook.objective(mse, nats)
    variances = torch.linspace(0.001, 0.2, 100_000)
    likelihood = (mse / (2 * variances) + variances.log() / 2).min() - 0.5
    torch.testing.assert_close(objective, likelihood + 0.2, rtol=1e-4, atol=1e-4)


def test_a_relaxed_draw_follows_the_posterior():
    """At a low temperature the draws are entries, each as often as q says."""
    codebook = filled(StochasticCodebook, temperature=0.05, temperature_decay=0.0).train()
    token = randn(1, 1, 3, seed=2)
    with torch.no_grad():
        draws = codebook.quantize(token.expand(4000, 1, 3)).tokens[:, 0]
    nearest = torch.cdist(draws, codebook.entries).argmin(1)
    shares = torch.bincount(nearest, minlength=5) / 4000
    expected = torch.tensor(posterior(token[0, 0].tolist(), codebook.entries.tolist(), 0.7)[0])
    torch.testing.assert_close(shares, expected, atol=0.04, rtol=0)


def test_the_temperature_falls_with_training_steps():
    codebook = filled(StochasticCodebook, temperature_decay=0.5).train()
    for _ in range(3):
        codebook.quantize(randn(2, 4, 3))
    assert codebook.temperature.item() == pytest.approx(math.exp(-1.5))
    codebook.steps.fill_(1000)
    assert codebook.temperature.item() == pytest.approx(0.05)


def test_sigma_is_learnt_by_sq_vae_only():
    for cls, learnt in ((StochasticCodebook, True), (HQACodebook, False)):
        codebook = filled(cls).train()
        out = codebook.quantize(randn(2, 4, 3).requires_grad_())
        out.loss.backward()
        assert (codebook.log_variance.grad is not None) is learnt


def test_unused_entries_of_hqa_restart_beside_popular_ones():
    codebook = filled(HQACodebook).train()
    with torch.no_grad():
        codebook.usage.copy_(torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0]))
        codebook.entries[0] = 50.0
    codebook.update_(count_entries(torch.ones(4, 4, dtype=torch.int64), len(codebook.entries)))
    assert (codebook.entries[0] - codebook.entries[1]).norm() < 1


@pytest.mark.parametrize("codebook", [StochasticCodebook, HQACodebook])
def test_an_entry_that_dies_in_a_step_does_not_disturb_its_gradients(codebook):
    """HQA writes over dead entries between the forward and the backward pass of the same step."""
    tokens = torch.randn(8, 16, 4, generator=torch.Generator().manual_seed(0))
    gradients = []
    for share in (1 / 16, 0.0):  # of entry 3 so far: alive, dead
        torch.manual_seed(0)
        quantizer = codebook(16, 4, data_elements=4.0)
        quantizer.initialize_(tokens.flatten(0, 1))
        quantizer.usage.fill_(1 / 16)[3] = share
        before = quantizer.entries[3].clone()
        torch.manual_seed(1)
        quantizer.train().quantize(tokens).loss.backward()
        gradients.append(quantizer.entries.grad)
        restarted = not torch.equal(before, quantizer.entries[3])
        assert restarted == (codebook is HQACodebook and share == 0)
    assert torch.equal(*gradients) and gradients[0].abs().sum() > 0
