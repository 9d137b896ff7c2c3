"""Encoded images: what is written, what is kept, what is read."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file

from fq_ldm import FQModel
from fq_ldm.data import load_images
from fq_ldm.diffusion import encode_images, latent_cache, latents_of_tokens
from fq_ldm.diffusion.latent_cache import cache_latents, token_type
from fq_ldm.options import DataConfig, DataError


@pytest.fixture
def images(image_folder):
    return load_images(DataConfig(dataset=str(image_folder), channels=1, resolution=[16], validation_size=8))[0]


@pytest.fixture
def vae(images):
    torch.manual_seed(0)
    vae = FQModel(**{**TINY, "in_channels": 1, "sample_size": 16, "latent_channels": 1})
    vae.initialize_(torch.stack(list(images)))
    return vae.eval().requires_grad_(False)


@pytest.fixture
def cache(tmp_path, vae, images, monkeypatch):
    """`cache(target, flip)` on 32 images in shards of ten, and which images were encoded for it."""
    monkeypatch.setattr(latent_cache, "SHARD_IMAGES", 10)
    encoded = []
    encode = latent_cache._encode

    def watched(vae, part, *options):
        encoded.extend(part.indices)
        return encode(vae, part, *options)

    monkeypatch.setattr(latent_cache, "_encode", watched)

    def cache(target="quantized", flip=True, vae=vae):
        encoded.clear()
        return cache_latents(tmp_path, vae, images, target, flip, wait=lambda: None), encoded

    return cache


@pytest.mark.parametrize("flip", [False, True])
def test_tokens_give_the_latents_of_their_images(cache, vae, images, flip):
    cached, _ = cache(flip=flip)
    assert len(cached) == 32
    batch = torch.stack(list(images))
    views = [batch, batch.flip(-1)][: 1 + flip]
    tokens = torch.stack([cached[i] for i in range(32)])
    assert tokens.shape == (32, 1 + flip, 16) and tokens.dtype == torch.int32
    for number, view in enumerate(views):
        torch.testing.assert_close(latents_of_tokens(vae, tokens[:, number]), encode_images(vae, view))


def test_unquantized_latents_are_kept_as_they_are(cache, vae, images):
    cached, _ = cache(target="unquantized", flip=False)
    latents = torch.stack([cached[i] for i in range(32)])[:, 0]
    torch.testing.assert_close(latents, encode_images(vae, torch.stack(list(images)), "unquantized"))


def test_shards_that_are_there_are_kept(cache, tmp_path):
    assert cache()[1] == list(range(32))
    assert cache()[1] == []
    paths = sorted((tmp_path / "latents").iterdir())
    assert [len(load_file(path)["items"]) for path in paths] == [10, 10, 10, 2]
    paths[1].unlink()  # as if the run had been killed before
    assert cache()[1] == list(range(10, 20))


def test_another_model_target_or_mirroring_is_encoded_anew(cache, vae):
    cache()
    assert len(cache(flip=False)[1]) == 32 and len(cache(target="unquantized")[1]) == 32
    other = FQModel.from_config(vae.config).eval()
    assert len(cache(vae=other)[1]) == 32


def test_what_changes_no_token_is_not_encoded_anew(cache, vae, images, monkeypatch):
    cache()
    cache("unquantized", flip=False)
    cache()
    monkeypatch.setattr(images, "config", replace(images.config, dataloader_num_workers=3))
    vae.diffusion_view.std *= 2
    assert cache()[1] == []
    assert len(cache("unquantized")[1]) == 32  # whose numbers are those of the view


@pytest.mark.parametrize("target", ["quantized", "unquantized"])
def test_another_decoder_has_the_same_tokens(cache, vae, target):
    cache(target)
    vae.decoder.conv_out.weight.add_(1)
    assert cache(target)[1] == []
    vae.encoder.conv_out.weight.add_(1)
    assert len(cache(target)[1]) == 32


def test_a_model_that_was_saved_elsewhere_has_the_same_tokens(cache, vae, tmp_path):
    """And one that was saved before there were all the options of today."""
    cache()
    for number in range(2):
        folder = tmp_path / f"vae{number}"
        vae.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        old = {key: value for key, value in config.items() if key not in ("painter_outputs", "painter_equalizer")}
        (folder / "config.json").write_text(json.dumps(old if number else config))
        assert cache(vae=FQModel.from_pretrained(folder).eval())[1] == []


def test_a_damaged_shard_is_named(cache, tmp_path):
    cache()
    path = tmp_path / "latents" / "00002.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match="00002.safetensors: is damaged .*delete it, and it is made again"):
        cache()


def test_each_process_encodes_its_share(cache, monkeypatch):
    """Shards are dealt out. Nobody waits here, so the first process misses those of the second."""
    monkeypatch.setattr(latent_cache, "my_share", lambda items: items[::2])
    with pytest.raises(DataError, match="00001.safetensors"):
        cache()
    monkeypatch.setattr(latent_cache, "my_share", lambda items: items[1::2])
    cached, encoded = cache()
    assert encoded == [*range(10, 20), 30, 31] and len(cached) == 32


@pytest.mark.parametrize(
    "codes, expected", [(2, torch.uint8), (256, torch.uint8), (257, torch.uint16), (65537, torch.int32)]
)
def test_tokens_take_the_smallest_type(codes, expected):
    assert token_type(codes) == expected
