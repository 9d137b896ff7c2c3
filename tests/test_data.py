import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from fq_ldm.data import load_images, random_flip, sample_images, to_tensor
from fq_ldm.options import DataConfig, DataError, UserError


def options(folder, **changes):
    return DataConfig(**{"dataset": str(folder), "channels": 1, "resolution": [16], "validation_size": 8, **changes})


def test_folder_of_images(image_folder):
    train, validation = load_images(options(image_folder))
    assert len(train) == 32 and len(validation) == 8
    assert train[0].shape == (1, 16, 16) and train[0].dtype == torch.float32
    assert -1 <= train[0].min() and train[0].max() <= 1
    again, _ = load_images(options(image_folder))
    assert all(torch.equal(a, b) for a, b in zip(train, again, strict=True))


def test_values_span_minus_one_to_one():
    image = Image.fromarray(np.array([[0, 255], [51, 204]], dtype=np.uint8))
    torch.testing.assert_close(to_tensor(image), torch.tensor([[[-1.0, 1.0], [-0.6, 0.6]]]))


def test_crop_and_resize(tmp_path):
    """A 20 x 40 image with a bright centred square of 10: the crop keeps the square alone."""
    pixels = np.zeros((20, 40), dtype=np.uint8)
    pixels[5:15, 15:25] = 255
    for i in range(3):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    train, _ = load_images(options(tmp_path, center_crop=10, resolution=[4, 6], validation_size=1))
    assert train[0].shape == (1, 4, 6) and train[0].min() == 1


def test_parquet_file_and_named_splits(image_folder, tmp_path):
    table = datasets.load_dataset("imagefolder", data_dir=str(image_folder))["train"]
    table.to_parquet(tmp_path / "train.parquet")
    table.select(range(5)).to_parquet(tmp_path / "validation.parquet")
    train, validation = load_images(options(tmp_path, validation_split="validation"))
    assert (len(train), len(validation)) == (40, 5)
    train, validation = load_images(options(tmp_path / "train.parquet"))
    assert (len(train), len(validation)) == (32, 8)
    with pytest.raises(UserError, match="has no split 'test', only train, validation"):
        load_images(options(tmp_path, validation_split="test"))
    with pytest.raises(UserError, match="has no column 'img', only image"):
        load_images(options(tmp_path, image_column="img"))


def test_embedded_digits():
    train, validation = load_images(DataConfig(dataset="digits", channels=1, resolution=[28], validation_size=500))
    assert len(train) == 4500 and len(validation) == 500
    digit = train[0]
    assert digit.shape == (1, 28, 28) and digit.min() == -1 and digit.max() > 0.5


def test_an_unreadable_image_is_named(tmp_path):
    for i in range(6):
        Image.new("L", (16, 16)).save(tmp_path / f"{i}.png")
    data = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"3\.png: is not a readable image"):
        train, validation = load_images(options(tmp_path, validation_size=1))
        list(train), list(validation)


def test_wrong_channels_are_named_or_converted(tmp_path):
    for i in range(4):
        Image.new("RGB", (8, 8), (255, 0, 0)).save(tmp_path / f"{i}.png")
    train, _ = load_images(options(tmp_path, validation_size=1))
    with pytest.raises(DataError, match=r"\.png: is RGB \(3 channels\), but channels is 1 \(L\): .*convert_images"):
        train[0]
    train, _ = load_images(options(tmp_path, validation_size=1, convert_images=True))
    assert train[0].shape == (1, 16, 16)


def test_too_few_images_to_hold_out(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "0.png")
    with pytest.raises(DataError, match="has 1 images, too few to hold out validation_size 8"):
        load_images(options(tmp_path))


def test_no_such_dataset(tmp_path):
    with pytest.raises(DataError, match="nowhere: cannot be loaded"):
        load_images(options(tmp_path / "nowhere"))


def test_sample_depends_on_the_seed_alone(image_folder):
    train, _ = load_images(options(image_folder))
    assert torch.equal(sample_images(train, 5, seed=1), sample_images(train, 5, seed=1))
    assert not torch.equal(sample_images(train, 5, seed=1), sample_images(train, 5, seed=2))
    assert len(sample_images(train, 100, seed=0)) == 32


def test_half_of_the_images_are_flipped():
    images = torch.arange(4.0).expand(200, 1, 1, 4)
    flipped = random_flip(images, torch.Generator().manual_seed(0))
    mirrored = flipped[:, 0, 0, 0] == 3
    assert 70 < mirrored.sum() < 130
    assert torch.equal(flipped[mirrored], images[mirrored].flip(-1))
    assert torch.equal(flipped[~mirrored], images[~mirrored])
