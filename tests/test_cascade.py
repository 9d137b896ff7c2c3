"""benchmarks/cascade.py: the same low frequencies for two ways to make details."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import smooth_images
from PIL import Image
from test_evaluate import EXTRACTOR

from benchmarks import cascade
from fq_ldm import FQModel

OPTIONS = dict(sample_size=16, norm_num_groups=4, num_tokens=8, num_vq_embeddings=16, vq_embed_dim=6)


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    """Those of a run with models that are not trained, of crops 8 and 4."""
    images = smooth_images(40, 3, 16, 16)
    for i, image in enumerate(images):
        path = tmp_path / "images" / ("train" if i < 30 else "test") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(((image + 1) * 127.5).byte().permute(1, 2, 0).numpy()).save(path)
    torch.manual_seed(0)
    for name, options in (
        ("codec", dict(spectral_crop=8, block_out_channels=(8,))),
        ("painter", dict(spectral_crop=4, block_out_channels=(8,), painter_block_out_channels=(4, 8, 8))),
    ):
        model = FQModel(**OPTIONS, **options)
        model.initialize_(images)
        model.save_pretrained(tmp_path / name)
    (tmp_path / "thumbnail.py").write_text(EXTRACTOR)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)

    def make(codec, painter):
        argv = f"cascade.py {codec} --painter {painter} --dataset images --validation_split test --resolution 16"
        argv += " --seconds 0.01 --train_images 20 --images 6 --num_inference_steps 2 --output grid.png"
        argv += " --feature_extractor_module thumbnail --feature_extractor thumbnail"
        monkeypatch.setattr(sys, "argv", argv.split())

    return make


def test_latents_are_their_low_frequencies_and_their_details():
    model = cascade.Details((3, 8, 8), (4, 4))
    latents = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    low, details = model.split(latents)
    torch.testing.assert_close(low + details, latents)
    nothing = torch.zeros_like(latents)
    for part, split in ((low, (low, nothing)), (details, (nothing, details))):
        torch.testing.assert_close(model.split(part), split, atol=1e-5, rtol=0)


def test_figures_and_a_row_for_each_way(arguments, tmp_path, capsys):
    arguments("codec", "painter")
    cascade.main()
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said[0]["steps"] >= 1
    assert [line["made_by"] for line in said[1:]] == ["codec", "cascade", "painter"]
    assert all(line["fid"] > 0 and line["psnr"] > 0 and line["seconds_per_image"] > 0 for line in said[1:])
    assert said[1]["psnr"] > said[3]["psnr"]  # of more frequencies
    assert np.asarray(Image.open(tmp_path / "grid.png")).std() > 0


def test_a_codec_needs_more_frequencies_than_the_painter(arguments, capsys):
    arguments("painter", "painter")
    with pytest.raises(SystemExit):
        cascade.main()
    assert "spectral crop (4, 4) must be larger than the painter's (4, 4)" in capsys.readouterr().err
