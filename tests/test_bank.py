import pytest
import torch
from conftest import TINY, smooth_images

from fq_ldm import FQModel
from fq_ldm.quantization import BankTokens, InterleavedTokens, bank
from fq_ldm.quantization.moments import gather, mean_and_variance, shrunk_covariance, strongest_directions
from fq_ldm.spectrum import pack_spectrum, spectral_resize, unpack_spectrum

SHAPE = (2, 4, 5)


def mixed_latents(n=4000, seed=0):
    """Latents whose packed coefficients are mixtures of a few strong sources and many weak ones, about a mean."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.linalg.qr(torch.randn(40, 40, generator=generator)).Q
    sources = torch.randn(n, 40, generator=torch.Generator().manual_seed(seed)) * torch.linspace(5, 0.1, 40)
    return unpack_spectrum((sources @ mixing.T + torch.linspace(-1, 1, 40)).view(n, *SHAPE)), mixing


def initialised(num_tokens=6, token_dim=4, crop=SHAPE[1:], latents=None):
    tokens = BankTokens(SHAPE, num_tokens, token_dim, crop)
    tokens.initialize_((mixed_latents()[0] if latents is None else latents).split(500))
    return tokens


def rows(batch):
    return batch


def test_filters_are_the_sources_of_the_data():
    latents, mixing = mixed_latents()
    tokens = initialised()
    filters = torch.zeros(40, 24).index_copy(0, tokens.index, tokens.bank)
    strong = mixing[:, :24]  # the span of the strongest sources
    assert (strong.T @ filters).square().sum() > 0.97 * 24


@pytest.mark.parametrize("mixed", [2048, 30, 10, 3])
def test_filters_are_orthonormal_and_join_inverts_split(mixed, monkeypatch):
    monkeypatch.setattr(bank, "MIXED_COEFFICIENTS", mixed)
    tokens = initialised()
    assert tokens.bank.shape == (min(mixed, 40), min(mixed, 24))
    torch.testing.assert_close(tokens.bank.T @ tokens.bank, torch.eye(tokens.bank.shape[1]), rtol=0, atol=1e-5)
    assert sorted(tokens.order.flatten().tolist()) == list(range(24))
    latents = mixed_latents()[0]
    split = tokens.split(latents)
    torch.testing.assert_close(tokens.split(tokens.join(split)), split, rtol=1e-4, atol=1e-4)
    deviation = split.std(0)  # alike in each tier
    torch.testing.assert_close(deviation, deviation.mean(0).expand_as(deviation), rtol=0.03, atol=0)
    torch.testing.assert_close(split.mean(0), torch.zeros(6, 4), rtol=0, atol=1e-3)


def test_all_numbers_of_all_coefficients_are_the_latents():
    latents = mixed_latents(50, seed=1)[0]
    tokens = initialised(num_tokens=10)
    torch.testing.assert_close(tokens.join(tokens.split(latents)), latents, rtol=1e-4, atol=1e-4)


def test_the_error_of_latents_is_less_than_with_single_coefficients():
    latents = mixed_latents(500, seed=1)[0]
    combs = InterleavedTokens(SHAPE, 6, 4, SHAPE[1:])
    combs.initialize_(mixed_latents()[0].split(500))
    errors = [(t.join(t.split(latents)) - latents).square().mean() for t in (initialised(), combs)]
    assert errors[0] < 0.7 * errors[1]


def test_error_weights_turn_token_errors_into_latent_errors():
    tokens, latents = initialised(), mixed_latents(8, seed=1)[0]
    split = tokens.split(latents)
    error = torch.randn(split.shape, generator=torch.Generator().manual_seed(1))
    difference = tokens.join(split + error) - tokens.join(split)
    expected = (tokens.error_weights() * error.square()).sum()
    torch.testing.assert_close(difference.square().sum(), expected, rtol=1e-4, atol=0)


def test_latents_stay_inside_the_crop():
    tokens = initialised(num_tokens=3, crop=(4, 3))
    joined = tokens.join(tokens.split(mixed_latents(20)[0]))
    again = spectral_resize(spectral_resize(joined, (4, 3)), SHAPE[1:])
    torch.testing.assert_close(again, joined, rtol=1e-4, atol=1e-4)


def test_moments_against_numpy_whatever_the_batches():
    x = torch.randn(1000, 5, generator=torch.Generator().manual_seed(0)) + 3
    mean, variance = mean_and_variance(x.split(77), rows)
    torch.testing.assert_close(mean, x.mean(0))
    torch.testing.assert_close(variance, x.var(0))


def test_shrinkage_against_loops():
    """Schäfer and Strimmer's sum over all pairs, with known means."""
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)) @ torch.tensor(
        [[2.0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0.5], [0, 0, 0, 1]]
    )
    covariance, intensity = shrunk_covariance(x.split(7), rows)
    variances = squares = 0.0
    for i in range(4):
        for j in range(4):
            if i != j:
                products = x[:, i] * x[:, j]
                variances += products.var(correction=0).item() / 40
                squares += products.mean().item() ** 2
    assert intensity == pytest.approx(variances / squares, rel=1e-4)
    expected = x.T @ x / 40
    expected = torch.where(torch.eye(4, dtype=torch.bool), expected, expected * (1 - intensity))
    torch.testing.assert_close(covariance, expected)


def test_unproven_correlations_are_shrunk_away():
    """Of independent numbers, all of it; of correlated ones, less with every image."""
    generator = torch.Generator().manual_seed(0)
    assert shrunk_covariance([torch.randn(30, 200, generator=generator)], rows)[1] > 0.9
    correlated = torch.randn(3000, 20, generator=generator) @ torch.randn(20, 20, generator=generator)
    few, many = (shrunk_covariance([correlated[:n]], rows)[1] for n in (30, 3000))
    assert many < 0.01 < few


def test_directions_have_one_sign():
    covariance = torch.tensor([[2.0, -1.9], [-1.9, 2.0]])
    direction = strongest_directions(covariance, 1)
    torch.testing.assert_close(direction.abs(), torch.full((2, 1), 0.5**0.5))
    assert direction[direction.abs().argmax()] > 0


def test_gathering_stops_at_the_limit():
    batches = [torch.full((4, 3), float(i)) for i in range(9)]
    assert len(gather(batches, rows, 3 * 10)) == 10
    assert len(gather(batches, rows, 1)) == 1
    assert len(gather(batches, rows, 10**6)) == 36


def test_batches_and_a_tensor_start_the_same_model():
    images = smooth_images(600, 3, 8, 12)
    states = []
    for given in (images, images.split(256), torch.utils.data.DataLoader(images, batch_size=256)):
        torch.manual_seed(0)
        model = FQModel(**TINY)
        model.initialize_(given)
        states.append(model.state_dict())
    for state in states[1:]:
        assert all(torch.equal(state[name], states[0][name]) for name in state)


def test_a_saved_bank_is_the_same_bit_for_bit(model, images, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = FQModel.from_pretrained(tmp_path).eval()
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    assert torch.equal(loaded(images).sample, model(images).sample)


@pytest.mark.parametrize("size, channels", [((9, 7), 1), ((5, 12), 3), ((8, 8), 2)])
def test_odd_sizes_and_one_channel(size, channels):
    model = FQModel(
        in_channels=channels, sample_size=size, block_out_channels=(4,), norm_num_groups=2, num_tokens=4,
        latent_channels=channels, num_vq_embeddings=16, vq_embed_dim=3,
    )  # fmt: skip
    images = smooth_images(64, channels, *size)
    model.initialize_(images)
    model.eval()
    assert (model(images).sample - images).square().mean() < images.var()


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.zeros(64, 3, 8, 12), "alike"),
        (torch.full((64, 3, 8, 12), torch.nan), "finite"),
        (smooth_images(1, 3, 8, 12), "at least 2"),
        (smooth_images(2, 3, 8, 12)[:, :, :, :].clone().index_fill_(0, torch.tensor([1]), torch.inf), "finite"),
    ],
)
@pytest.mark.parametrize("tokens", ["bank", "interleaved"])
def test_images_that_nothing_can_start_from(images, message, tokens):
    with pytest.raises(ValueError, match=message):
        FQModel(**TINY, tokens=tokens).initialize_(images)


def test_a_latent_that_is_not_finite_leaves_the_codebook_alone(model, images):
    before = model.quantize.codebook.entries.clone()
    model.train()
    images[0, 0, 0, 0] = torch.nan
    model(images)
    assert torch.equal(model.quantize.codebook.entries, before)


def test_the_spectrum_that_no_filter_reaches_is_the_mean():
    tokens = initialised()
    latents = mixed_latents(10, seed=2)[0]
    joined = pack_spectrum(tokens.join(tokens.split(latents))).flatten(1)
    mean = torch.zeros(40).index_copy(0, tokens.index, tokens.mean)
    filters = torch.zeros(40, 24).index_copy(0, tokens.index, tokens.bank)
    outside = joined - mean - (joined - mean) @ filters @ filters.T
    torch.testing.assert_close(outside, torch.zeros_like(outside), rtol=0, atol=1e-4)
