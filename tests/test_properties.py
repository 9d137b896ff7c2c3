"""Identities that hold for all sizes, by hypothesis; the slow suite draws many more cases."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import smooth_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fq_ldm import FQModel
from fq_ldm.options import DataConfig, LDMConfig, TrainingConfig, UserError, VAEConfig, parse_config
from fq_ldm.pipelines.loading import read_index
from fq_ldm.quantization import BankTokens, InterleavedTokens
from fq_ldm.spectrum import pack_spectrum, spectral_resize, unpack_spectrum

CONFIGS = (DataConfig, VAEConfig, LDMConfig, TrainingConfig)
sides = st.integers(1, 17)


settings.register_profile("few", deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
settings.load_profile("few")


def cases(few: int, many: int):
    """Decorator: so many cases in the fast suite, and so many with FQ_LDM_MANY_CASES, which the slow suite sets."""
    return settings(max_examples=many if "FQ_LDM_MANY_CASES" in os.environ else few)


def random(*shape, seed, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@cases(30, 500)
@given(sides, sides, st.integers(0, 9), st.sampled_from([torch.float32, torch.float64]))
def test_the_packed_spectrum_is_orthogonal(height, width, seed, dtype):
    z = random(2, height, width, seed=seed, dtype=dtype)
    packed = pack_spectrum(z)
    assert packed.shape == z.shape and packed.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(unpack_spectrum(packed), z, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(packed.norm(), z.norm(), atol=tolerance, rtol=tolerance)


@cases(30, 500)
@given(sides, sides, st.data())
def test_shrinking_undoes_enlarging(height, width, data):
    larger = (height + data.draw(st.integers(0, 9)), width + data.draw(st.integers(0, 9)))
    z = random(2, height, width, seed=0)
    enlarged = spectral_resize(z, larger)
    torch.testing.assert_close(enlarged.norm(), z.norm(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(spectral_resize(enlarged, (height, width)), z, atol=1e-4, rtol=1e-4)


@cases(30, 300)
@given(st.integers(1, 4), st.integers(2, 12), st.integers(2, 12), st.data())
def test_tokens_join_to_what_they_were_split_from(channels, height, width, data):
    coefficients = channels * height * width
    m = data.draw(st.integers(2, min(12, coefficients)))
    u = data.draw(st.integers(1, coefficients // m))
    layout = data.draw(st.sampled_from([BankTokens, InterleavedTokens]))
    tokens = layout((channels, height, width), u, m, (height, width))
    latents = random(40, channels, height, width, seed=data.draw(st.integers(0, 9)))
    tokens.initialize_(latents.split(15))
    split = tokens.split(latents)
    assert split.shape == (40, u, m)
    joined = tokens.join(split)
    torch.testing.assert_close(tokens.split(joined), split, atol=1e-3, rtol=1e-3)
    if layout is InterleavedTokens:
        assert joined.norm() <= latents.norm() * 1.001  # a projection
    else:
        mean = latents.mean(0)  # a projection about the mean
        assert (joined - mean).norm() <= (latents - mean).norm() * 1.001
        torch.testing.assert_close(tokens.bank.T @ tokens.bank, torch.eye(tokens.bank.shape[1]), rtol=0, atol=1e-5)


@cases(8, 60)
@given(
    st.sampled_from([1, 3]),
    st.integers(5, 14),
    st.integers(5, 14),
    st.integers(1, 4),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.data(),
)
@torch.no_grad()
def test_models_of_any_size_code_and_decode(colors, height, width, channels, dtype, data):
    m = data.draw(st.integers(2, 8))
    u = data.draw(st.integers(1, channels * height * width // m))
    entries = data.draw(st.integers(2, 24 * u))
    torch.manual_seed(0)
    model = FQModel(
        in_channels=colors, sample_size=(height, width), block_out_channels=(4,), norm_num_groups=2,
        latent_channels=channels, num_tokens=u, num_vq_embeddings=entries, vq_embed_dim=m,
    )  # fmt: skip
    images = smooth_images(24, colors, height, width)
    model.initialize_(images)
    model = model.eval().to(dtype)
    model.quantize.float()  # as loading in half precision leaves it
    model.diffusion_view.float()
    images = images.to(dtype)
    output = model(images)
    assert output.sample.shape == images.shape and output.sample.dtype == dtype and output.sample.isfinite().all()
    tokens = model.tokenize(images)
    assert tokens.shape == (24, u) and 0 <= tokens.min() and tokens.max() < entries
    assert torch.equal(model.detokenize(tokens), output.sample)
    latents = model.quantize_latents(model.encode(images).latents.float()).latents
    again = model.from_diffusion_latents(model.to_diffusion_latents(latents))
    torch.testing.assert_close(again, latents, atol=1e-3, rtol=1e-3)


scalars = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=20)
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3))
names = st.sampled_from([name for cls in CONFIGS for name in cls.__dataclass_fields__]) | st.text(max_size=10)
files = st.dictionaries(names, values, max_size=4).map(yaml.safe_dump) | st.text(max_size=60)


@cases(60, 1200)
@given(files)
def test_any_yaml_is_read_or_refused_in_one_line(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        parse_config(["--config", str(path)], *CONFIGS)
    except UserError as error:
        assert str(error)


INDEX = {
    "_class_name": "FQLDMPipeline",
    "vqvae": ["fq_ldm", "FQModel"],
    "unet": ["diffusers", "UNet2DModel"],
    "scheduler": ["diffusers", "DDPMScheduler"],
}
OWN_CODE = {**INDEX, "_class_name": ["pipeline_fq_ldm", "FQLDMPipeline"], "vqvae": ["fq_model", "FQModel"]}
changes = st.dictionaries(st.sampled_from([*INDEX, "more"]), values, max_size=3)
indices = (
    st.tuples(st.sampled_from([INDEX, OWN_CODE]), changes).map(lambda pair: json.dumps({**pair[0], **pair[1]}))
    | values.map(json.dumps)
    | st.text(max_size=60)
)


@cases(60, 1200)
@given(indices)
def test_any_index_is_read_or_refused(tmp_path_factory, text):
    """What passes names three components of this library and diffusers, and nothing else is ever imported."""
    folder = tmp_path_factory.getbasetemp()
    (folder / "model_index.json").write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        assert read_index(folder) == ["vqvae", "unet", "scheduler"]
    except (OSError, ValueError) as error:
        assert str(error)
    else:
        index = json.loads(text)
        assert index["_class_name"] in ("FQLDMPipeline", ["pipeline_fq_ldm", "FQLDMPipeline"])
        assert index["vqvae"] in (["fq_ldm", "FQModel"], ["fq_model", "FQModel"])
        assert index["unet"][0] == "diffusers" == index["scheduler"][0]


@pytest.mark.slow
def test_many_cases_of_all_of_these():
    """The same properties in a process of their own, thousands of times."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", __file__]
    environment = os.environ | {"FQ_LDM_MANY_CASES": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout
