import torch

from fq_ldm.quantization.tokens import InterleavedTokens, interleave
from fq_ldm.spectrum import pack_spectrum, spectral_crop_index, unpack_spectrum


def test_snake_order_by_hand():
    energy = torch.tensor([5.0, 9.0, 1.0, 7.0, 3.0, 8.0, 2.0, 6.0])
    # Ranked: 1 (9), 5 (8), 3 (7), 7 (6), 0 (5), 4 (3), 6 (2), 2 (1). Tiers of two, every second one reversed.
    expected = torch.tensor([[1, 7, 0], [5, 3, 4]])
    assert torch.equal(interleave(energy, num_tokens=2, token_dim=3), expected)


SHAPE = (2, 4, 5)


def spread_latents(n=4000):
    """Latents whose packed Fourier coefficients have energies and means all over the place."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(5, 0.1, 40)[torch.randperm(40, generator=generator)]
    spectra = torch.randn(n, 40, generator=generator) * scale + torch.linspace(-1, 1, 40)
    return unpack_spectrum(spectra.view(n, *SHAPE))


def initialised_tokens(crop=SHAPE[1:]):
    tokens = InterleavedTokens(SHAPE, num_tokens=6, token_dim=4, spectral_crop=crop)
    tokens.initialize_(spread_latents().split(500))
    return tokens


def test_join_inverts_split_on_the_chosen_coefficients():
    latents, tokens = spread_latents(), initialised_tokens()
    spectra = pack_spectrum(latents).flatten(1)
    joined = pack_spectrum(tokens.join(tokens.split(latents))).flatten(1)
    chosen = tokens.index.flatten()
    torch.testing.assert_close(joined[:, chosen], spectra[:, chosen], rtol=1e-4, atol=1e-4)
    rest = torch.ones(40, dtype=torch.bool)
    rest[chosen] = False
    torch.testing.assert_close(joined[:, rest], torch.zeros(len(latents), 16), rtol=0, atol=1e-4)


def test_all_tokens_start_with_equal_statistics_in_each_tier():
    split = initialised_tokens().split(spread_latents())  # (n, U, m)
    torch.testing.assert_close(split.mean(0), torch.zeros(6, 4), atol=1e-4, rtol=0)
    deviation = split.std(0)
    torch.testing.assert_close(deviation, deviation[:1].expand_as(deviation))


def test_only_coefficients_inside_the_crop_are_chosen():
    tokens = initialised_tokens(crop=(4, 3))
    inside = spectral_crop_index(SHAPE[1:], (4, 3)).flatten()
    assert set(tokens.index.flatten().tolist()) <= {*inside.tolist(), *(20 + inside).tolist()}
    assert tokens.index.unique().numel() == 24


def test_error_weights_turn_token_errors_into_latent_errors():
    latents, tokens = spread_latents()[:8], initialised_tokens()
    split = tokens.split(latents)
    error = torch.randn(split.shape, generator=torch.Generator().manual_seed(1))
    difference = tokens.join(split + error) - tokens.join(split)
    expected = (tokens.error_weights() * error.square()).sum()
    torch.testing.assert_close(difference.square().sum(), expected, rtol=1e-4, atol=0)
