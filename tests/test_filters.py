"""The paper's tokens (equations 3-5), against loops over the formulas."""

import cmath

import pytest
import torch

from fq_ldm.quantization.filters import DynamicFilterTokens


def trained_tokens(shape=(2, 4, 5), num_tokens=6):
    torch.manual_seed(0)
    tokens = DynamicFilterTokens(shape, num_tokens)
    for parameter in tokens.parameters():
        torch.nn.init.normal_(parameter)
    return tokens


def test_equations_2_to_4_against_loops():
    d_count, h, w = 2, 4, 5
    n_count, half = 3, w // 2 + 1
    tokens = trained_tokens()
    latents = torch.randn(2, d_count, h, w)
    found = tokens.split(latents)
    assert found.shape == (2, 6, 2 * h * half)
    pooled = torch.cat([latents.mean((2, 3)), latents.std((2, 3))], 1)
    m = tokens.mlp(pooled)  # (B, D N): the coefficients of equation 4
    for b in range(2):
        for d in range(d_count):
            exponentials = [cmath.exp(m[b, d * n_count + i].item()).real for i in range(n_count)]
            for i in range(n_count):
                softmax = exponentials[i] / sum(exponentials)
                for u in range(h):
                    for v in range(half):
                        transform = sum(
                            latents[b, d, y, x].item() * cmath.exp(-2j * cmath.pi * (u * y / h + v * x / w))
                            for y in range(h)
                            for x in range(w)
                        )
                        k = complex(*tokens.filters[i, u, v].tolist())
                        expected = softmax * k * transform / (h * w) ** 0.5
                        at = 2 * (u * half + v)
                        got = complex(*found[b, d * n_count + i, at : at + 2].tolist())
                        assert abs(got - expected) < 1e-4


def test_equation_5_join_sums_the_filters():
    """Summed over the filters, the tokens are one spectrum filtered by K = sum_i K_i; join transforms it back."""
    tokens = trained_tokens()
    latents = torch.randn(3, 2, 4, 5)
    weights = tokens.coefficients(latents)  # (B, D, N)
    combined = torch.einsum("bdn,nhw->bdhw", weights.to(torch.cfloat), torch.view_as_complex(tokens.filters))
    expected = torch.fft.irfft2(combined * torch.fft.rfft2(latents, norm="ortho"), s=(4, 5), norm="ortho")
    torch.testing.assert_close(tokens.join(tokens.split(latents)), expected, rtol=1e-4, atol=1e-5)


def test_a_partition_starts_as_the_identity():
    """N disjoint filters of height N and weights 1/N: the tokens differ and add up to the latent."""
    torch.manual_seed(0)
    tokens = DynamicFilterTokens((2, 8, 8), 8)
    latents = torch.randn(64, 2, 8, 8).cumsum(-1).cumsum(-2)
    tokens.initialize_([latents])
    torch.testing.assert_close(tokens.join(tokens.split(latents)), latents, rtol=1e-3, atol=1e-3)
    support = tokens.filters[..., 0] != 0
    assert torch.equal(support.sum(0), torch.ones(8, 5, dtype=torch.int64)) and support.flatten(1).any(1).all()


def test_filters_that_start_alike_stay_as_they_are():
    torch.manual_seed(0)
    tokens = DynamicFilterTokens((1, 4, 4), 4, "alike")
    before = tokens.filters.clone()
    tokens.initialize_([torch.randn(8, 1, 4, 4)])
    assert torch.equal(tokens.filters, before)
    assert (tokens.filters[..., 0] - 1).abs().max() < 0.2


def test_tokens_that_do_not_fit_the_channels():
    with pytest.raises(ValueError, match="num_tokens 7 must be a multiple of latent_channels 2"):
        DynamicFilterTokens((2, 4, 4), 7)
    with pytest.raises(ValueError, match="filter_start must be partition or alike, not zero"):
        DynamicFilterTokens((2, 4, 4), 8, "zero")


def test_the_inverse_transform_gets_the_spectrum_of_a_real_image(monkeypatch):
    """Libraries read a half spectrum whose edge columns are not Hermitian differently; quantized tokens are such."""
    tokens = DynamicFilterTokens((2, 8, 8), 6)
    seen, transform = [], torch.fft.irfft2

    def watched(spectrum, **options):
        seen.append(spectrum)
        return transform(spectrum, **options)

    monkeypatch.setattr(torch.fft, "irfft2", watched)
    tokens.join(torch.randn(3, 6, tokens.token_dim))
    (spectrum,) = seen
    for column in (0, 4):
        rows = spectrum[..., column]
        assert torch.equal(rows, rows.flip(-1).roll(1, -1).conj())
