import torch

from fq_ldm.quantization.tokens import FrequencyTokens, interleave


def test_snake_order_by_hand():
    energy = torch.tensor([5.0, 9.0, 1.0, 7.0, 3.0, 8.0, 2.0, 6.0])
    # Ranked: 1 (9), 5 (8), 3 (7), 7 (6), 0 (5), 4 (3), 6 (2), 2 (1). Tiers of two, every second one reversed.
    expected = torch.tensor([[1, 7, 0], [5, 3, 4]])
    assert torch.equal(interleave(energy, num_tokens=2, token_dim=3), expected)


def spread_spectra(n=4000, length=40):
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(5, 0.1, length)[torch.randperm(length, generator=generator)]
    return torch.randn(n, length, generator=generator) * scale + torch.linspace(-1, 1, length)


def initialised_tokens(spectra, candidates=None):
    tokens = FrequencyTokens(spectra.shape[1], num_tokens=6, token_dim=4)
    tokens.initialize_(spectra, torch.arange(spectra.shape[1]) if candidates is None else candidates)
    return tokens


def test_join_inverts_split_on_the_chosen_coefficients():
    spectra = spread_spectra()
    tokens = initialised_tokens(spectra)
    joined = tokens.join(tokens.split(spectra))
    chosen = tokens.index.flatten()
    torch.testing.assert_close(joined[:, chosen], spectra[:, chosen])
    rest = torch.ones(spectra.shape[1], dtype=torch.bool)
    rest[chosen] = False
    assert not joined[:, rest].any()


def test_all_tokens_start_with_equal_statistics_in_each_tier():
    spectra = spread_spectra()
    split = initialised_tokens(spectra).split(spectra)  # (n, U, m)
    torch.testing.assert_close(split.mean(0), torch.zeros(6, 4), atol=1e-4, rtol=0)
    deviation = split.std(0)
    torch.testing.assert_close(deviation, deviation[:1].expand_as(deviation))


def test_only_candidates_are_chosen():
    candidates = torch.arange(3, 33)
    tokens = initialised_tokens(spread_spectra(), candidates)
    assert set(tokens.index.flatten().tolist()) <= set(candidates.tolist())
    assert tokens.index.unique().numel() == 24


def test_error_weights_turn_token_errors_into_spectrum_errors():
    spectra = spread_spectra()[:8]
    tokens = initialised_tokens(spread_spectra())
    split = tokens.split(spectra)
    error = torch.randn(split.shape, generator=torch.Generator().manual_seed(1))
    difference = tokens.join(split + error) - tokens.join(split)
    expected = (tokens.error_weights() * error.square()).sum()
    torch.testing.assert_close(difference.square().sum(), expected, rtol=1e-4, atol=0)
