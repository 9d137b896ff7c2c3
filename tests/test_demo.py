"""What the page shows, and the notebook, judged by the pictures and the files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import untrained_pipeline
from PIL import Image

from demo.looks import Looks, enlarge, to_pictures
from fq_ldm import FQLDMPipeline

NOTEBOOK = Path(__file__).parent.parent / "examples" / "fq_ldm.ipynb"
SHORT = {  # what the notebook does in minutes, in seconds
    '"quickstart/vae"': '"quickstart/vae", "--max_train_steps", "2", "--init_images", "256", "--report_to", "none"',
    '"quickstart/ldm"': '"quickstart/ldm", "--max_train_steps", "2", "--max_train_images", "128", "--report_to", '
    '"none", "--preview_images", "2", "--preview_inference_steps", "2"',
    "columns = 10": "columns = 1",
    ".manual_seed(0))": ".manual_seed(0), num_inference_steps=2)",
}


@pytest.fixture
def looks(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    return Looks(str(tmp_path))


@pytest.fixture
def picture(images):
    return to_pictures(images[:1])[0]


def pixels(picture):
    return np.asarray(picture, np.float32)


def test_samples_appear_while_they_are_denoised(looks):
    shares, pictures = zip(*looks.generate(3, 2, 10, None, 1.0, False), strict=True)
    assert list(shares) == sorted(shares) and shares[-1] == 1 and len(shares) == 5
    assert all(len(row) == 2 for row in pictures)
    seeds = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    alone = looks.pipeline(2, 10, seeds).images
    scale = pictures[-1][0].width // alone[0].width
    assert all(np.array_equal(pixels(a)[::scale, ::scale], pixels(b)) for a, b in zip(pictures[-1], alone, strict=True))
    assert not np.array_equal(pixels(pictures[0][0]), pixels(pictures[-1][0]))


def test_guidance_of_all(looks):
    assert looks.has_attention
    plain, guided = (list(looks.generate(3, 1, 5, None, 1.0, every))[-1][1] for every in (False, True))
    assert not np.array_equal(pixels(plain[0]), pixels(guided[0]))


def test_examples_to_click_on_are_samples(looks):
    files = looks.examples(2, 3)
    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    for file, image in zip(files, looks.pipeline(2, 3, seeds).images, strict=True):
        assert np.array_equal(pixels(Image.open(file)), pixels(image))


def test_what_fails_while_sampling_is_raised(looks):
    with pytest.raises(ValueError, match="num_images must be at least 1"):
        list(looks.generate(0, 0, 5, None, 1.0, False))


def test_reconstructions_in_bits(looks, picture):
    cut, decoded, tokens, words = looks.reconstruct(picture)
    assert words.startswith("80 bits in place of 2304: 29 times fewer. PSNR ")
    psnr = -10 * np.log10(np.square((pixels(cut) - pixels(decoded)) / 255).mean())
    assert psnr == pytest.approx(float(words.split()[-2]), abs=0.15)
    assert tokens.width == tokens.height and len(set(map(tuple, np.asarray(tokens).reshape(-1, 3)))) <= 16
    other = picture.resize((31, 50)).convert("RGBA")
    assert looks.reconstruct(other)[0].size == cut.size


def test_a_token_taken_out_and_bands_swapped(looks, picture, images):
    before, after, _, words = looks.without_token(picture, 3)
    assert words.startswith("Without token 3, ") and not np.array_equal(pixels(before), pixels(after))
    other = to_pictures(images[1:2])[0]
    pictures = [pixels(each) for each, _ in looks.swap_bands(picture, other)]
    assert len(pictures) == 5  # tokens of four numbers
    ends = [pixels(looks.without_token(each, 0)[0]) for each in (picture, other)]
    assert np.array_equal(pictures[0], ends[0]) and np.array_equal(pictures[-1], ends[1])
    distances = [np.abs(each - ends[1]).mean() for each in pictures]
    assert distances[1] < distances[0]  # the strongest numbers do the most


def test_interpolations_end_at_the_seeds(looks):
    row = looks.interpolate(0, 1, 4, 3, None)
    assert len(row) == 4 and np.array_equal(pixels(row[0]), pixels(looks.interpolate(0, 2, 2, 3, None)[0]))
    assert not np.array_equal(pixels(row[0]), pixels(row[-1]))


def test_interpolations_stay_in_a_class(model, tmp_path):
    untrained_pipeline(model, 100, ["day", "night"]).save_pretrained(tmp_path)
    looks = Looks(str(tmp_path))
    rows = {label: [pixels(image) for image in looks.interpolate(0, 1, 3, 3, label)] for label in ("day", "night")}
    again = [pixels(image) for image in looks.interpolate(0, 1, 3, 3, "day")]
    assert np.array_equal(again, rows["day"])
    assert not np.array_equal(rows["day"][1], rows["night"][1])


def test_previews_of_samples_that_are_not_snapped_are_not(pipeline, tmp_path):
    pipeline.register_to_config(quantize_samples=False)
    pipeline.save_pretrained(tmp_path)
    looks = Looks(str(tmp_path))
    latents = torch.randn(1, *looks.vae.diffusion_latent_shape)
    with torch.no_grad():
        plain = looks.vae.decode(looks.vae.from_diffusion_latents(latents), force_not_quantize=True).sample
    (shown,) = looks._decode(latents)
    assert np.array_equal(pixels(shown), pixels(enlarge(to_pictures(plain.clamp(-1, 1))[0])))


def test_the_notebook_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            code = "".join(cell["source"])
            for said, short in SHORT.items():
                code = code.replace(said, short)
            exec(compile(code, "notebook", "exec"), names)
    assert isinstance(names["pipeline"], FQLDMPipeline) and names["sheet"].size == (28, 280)
    assert names["decoded"].shape == (4, 1, 28, 28)
    assert isinstance(names["picture"](names["decoded"]), Image.Image)
