"""Input that someone could hand to the scripts: each ends in one line and an exit status, and runs nothing."""

import io
import json
import pickle
import struct
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from conftest import smooth_images, untrained_pipeline
from PIL import Image
from test_interruption import Bomb
from test_scripts import LDM_OPTIONS, VAE_OPTIONS, call  # noqa: F401  (a fixture)

import evaluate
import train_ldm
import train_vae
from fq_ldm import FQLDMPipeline, FQModel
from fq_ldm.data import load_images
from fq_ldm.options import DataConfig, DataError, UserError

COLOR = {**VAE_OPTIONS, "channels": 3, "latent_channels": 3, "output_dir": "out", "report_to": "none"}


def good_image(seed, mode="RGB"):
    pixels = (smooth_images(1, 3, 20, 24, seed)[0].permute(1, 2, 0).numpy() + 1) * 127.5
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def as_bytes(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_of_size(width, height):
    """A PNG whose header promises so many pixels, and which holds none."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def sixteen_bit():
    values = np.linspace(0, 65535, 400).reshape(20, 20).astype(np.uint16)
    return Image.fromarray(values)


def animation():
    frames = [good_image(i, "P") for i in range(3)]
    return as_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])


# name of the file -> content, and what the message says of it
BAD = {
    "cut.png": (as_bytes(good_image(0))[:300], "is not a readable image"),
    "cut.jpg": (as_bytes(good_image(0), "JPEG")[:300], "is not a readable image"),
    "empty.png": (b"", "is not a readable image"),
    "text.png": (b"this is no image", "is not a readable image"),
    "bomb.png": (png_of_size(60_000, 60_000), "is not a readable image"),
    "large.png": (png_of_size(10_000, 10_000), "is not a readable image"),
    "sixteen.png": (as_bytes(sixteen_bit()), "is I;16 (1 channels), but channels is 3 (RGB)"),
    "grey.png": (as_bytes(good_image(0, "L")), "is L (1 channels), but channels is 3"),
    "palette.png": (as_bytes(good_image(0, "P")), "is P (1 channels), but channels is 3"),
    "cmyk.jpg": (as_bytes(good_image(0, "CMYK"), "JPEG"), "is CMYK (4 channels), but channels is 3"),
    "alpha.png": (as_bytes(good_image(0, "RGBA")), "is RGBA (4 channels), but channels is 3"),
    "animated.gif": (animation(), "is an animation of 3 frames, but channels is 3"),
    "point.png": (as_bytes(Image.new("RGB", (1, 1))), "is 1x1 pixels, smaller than the 16x16"),
}
CONVERTIBLE = {"sixteen.png", "grey.png", "palette.png", "cmyk.jpg", "alpha.png", "animated.gif", "point.png"}


@pytest.fixture
def folder(tmp_path):
    """Twenty images of which nothing is wrong."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(20):
        good_image(i).save(folder / f"good_{i:02d}.png")
    return folder


def config(folder, **changes):
    return DataConfig(**{"dataset": str(folder), "resolution": [16], "validation_size": 2, **changes})


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_named(folder, name):
    content, message = BAD[name]
    (folder / name).write_bytes(content)
    parts = load_images(config(folder))
    with pytest.raises(DataError) as error:
        for part in parts:
            for i in range(len(part)):
                part[i]
    text = str(error.value)
    assert name in text and message in text and "\n" not in text


@pytest.mark.parametrize("name", sorted(CONVERTIBLE))
def test_what_can_be_converted_is_when_asked(folder, name):
    (folder / name).write_bytes(BAD[name][0])
    parts = load_images(config(folder, convert_images=True))
    images = torch.stack([image for part in parts for image in part])
    assert images.shape == (21, 3, 16, 16) and images.isfinite().all() and images.abs().max() <= 1


def test_sixteen_bits_keep_their_brightness(folder):
    for path in folder.iterdir():
        sixteen_bit().save(path)
    image = load_images(config(folder, channels=1, convert_images=True, resolution=[20]))[0][0]
    torch.testing.assert_close(image[0], torch.linspace(-1, 1, 400).view(20, 20), atol=1 / 127, rtol=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_training_stops_at_a_bad_image_with_one_line(folder, call, workers):  # noqa: F811
    (folder / "good_03.png").write_bytes(BAD["cut.png"][0])
    (folder / "good_04.png").write_bytes(BAD["cut.png"][0])
    (folder / "good_05.png").write_bytes(BAD["cut.png"][0])
    options = {**COLOR, "dataset": folder, "validation_size": 1, "dataloader_num_workers": workers, "init_images": 2}
    status, _, errors = call(train_vae.main, **options, max_train_steps=9)
    assert status == 1
    assert "is not a readable image" in errors.strip().splitlines()[-1] and "Traceback" not in errors


def test_bad_images_are_counted_named_and_skipped_when_asked(folder, tmp_path, call):  # noqa: F811
    for name in ("cut.png", "grey.png", "point.png"):
        (folder / name).write_bytes(BAD[name][0])
    options = {**COLOR, "dataset": folder, "validation_size": 4, "max_train_steps": 2}
    status, output, errors = call(train_vae.main, **options, skip_bad_images=True)
    assert status == 0, errors
    assert "left out 3 bad images of 23; out/bad_images.txt names them" in output
    log = (tmp_path / "out" / "bad_images.txt").read_text().splitlines()
    assert len(log) == 3 and all(any(name in line for line in log) for name in ("cut.png", "grey.png", "point.png"))


def test_a_folder_of_nothing_but_bad_images(tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.raises(DataError, match="none of 6 images can be used; e.g. .*is not a readable image"):
        load_images(config(tmp_path, skip_bad_images=True))


@pytest.mark.parametrize("files", [[], ["notes.txt"]])
def test_a_folder_without_images(tmp_path, call, files):  # noqa: F811
    (tmp_path / "images").mkdir()
    for name in files:
        (tmp_path / "images" / name).write_text("no image")
    status, _, errors = call(train_vae.main, **COLOR, dataset=tmp_path / "images", max_train_steps=1)
    assert status == 1 and str(tmp_path / "images") in errors.strip().splitlines()[-1]


def test_files_with_other_names_are_counted(folder, capsys):
    (folder / "picture.txt").write_bytes(as_bytes(good_image(0)))
    (folder / "notes.md").write_text("these are images")
    train, held_out = load_images(config(folder))
    assert len(train) + len(held_out) == 20
    assert "2 files are not named like images and left out, e.g. notes.md" in capsys.readouterr().err


def test_a_folder_named_like_a_split_does_not_hide_the_others(folder):
    """`datasets` takes `train` for a split and the whole dataset, and passes over the other classes."""
    for name in ("car", "train"):
        (folder / name).mkdir()
        for i in range(3):
            (folder / name / f"{i}.png").write_bytes(as_bytes(good_image(i)))
    with pytest.raises(DataError, match="of 26 images 3 are in splits, since names such as 'train'"):
        load_images(config(folder, validation_size=1))


def test_subfolders_beside_images_are_no_classes(folder):
    for name in ("car", "bus"):
        (folder / name).mkdir()
        (folder / name / "0.png").write_bytes(as_bytes(good_image(0)))
    with pytest.raises(UserError, match="label_column: images of .* lie 0 and 1 folders deep"):
        load_images(config(folder, label_column="label"))


def test_cells_without_an_image_and_columns_of_something_else(tmp_path):
    images = [{"bytes": as_bytes(good_image(i)), "path": None} for i in range(12)]
    images[7] = None
    table = datasets.Dataset.from_dict({"image": images, "kind": list(range(12))})
    table.to_parquet(tmp_path / "train.parquet")
    train, held_out = load_images(config(tmp_path, validation_size=4))
    faults = []
    for part in (train, held_out):
        for i in range(len(part)):
            try:
                part[i]
            except DataError as error:
                faults.append(str(error))
    # By its row, wherever the split has put it.
    assert faults == [f"image 7 of split train of {tmp_path}: is empty; remove it from the dataset"]
    train, held_out = load_images(config(tmp_path, validation_size=4, skip_bad_images=True, max_train_images=6))
    rows = [*train.rows.tolist(), *held_out.rows.tolist()]
    assert 7 not in rows and len(set(rows)) == len(rows)
    for part in (train, held_out):
        assert [part.table[i]["kind"] for i in range(len(part))] == part.rows.tolist()
    with pytest.raises(UserError, match="image_column: 'kind' of .* holds no images"):
        load_images(config(tmp_path, validation_size=4, image_column="kind"))


def test_what_is_transparent_becomes_white(folder):
    image = good_image(0).convert("RGBA")
    image.putalpha(0)
    (folder / "clear.png").write_bytes(as_bytes(image))
    train, held_out = load_images(config(folder, convert_images=True))
    assert sum((image == 1).all().item() for part in (train, held_out) for image in part) == 1


def test_floating_point_numbers_have_no_range(folder):
    Image.fromarray(np.ones((20, 24), np.float32)).save(folder / "numbers.tiff")
    with pytest.raises(DataError, match="numbers.tiff: holds floating-point numbers"):
        [image for part in load_images(config(folder, convert_images=True)) for image in part]


def test_a_few_images_of_a_named_split_are_any_of_them(tmp_path):
    """Files lie in the order of their classes: the first ones would be of one class."""
    table = datasets.Dataset.from_dict({"image": [{"bytes": as_bytes(good_image(i)), "path": None} for i in range(20)],
                                        "kind": [0] * 10 + [1] * 10})  # fmt: skip
    table.to_parquet(tmp_path / "train.parquet")
    few = load_images(config(tmp_path, validation_split="train", max_train_images=8, label_column="kind"))[0]
    assert len(few) == 8 and few.class_names == ("0", "1")


def test_a_missing_column_is_named(folder, call):  # noqa: F811
    status, _, errors = call(train_vae.main, **COLOR, dataset=folder, image_column="picture", max_train_steps=1)
    assert status == 2 and "image_column: " in errors and "has no column 'picture', only image" in errors


@pytest.mark.parametrize(
    "text, message",
    [
        ("train_batch_size: many", "invalid int value: 'many'"),
        ("train_batch_sise: 8", "unknown key 'train_batch_sise'; did you mean 'train_batch_size'?"),
        ("train_batch_size: -8", "train_batch_size: must be positive, not -8"),
        ("num_tokens: -8", "num_tokens"),
        ("resolution: [16, 0]", "resolution: must be one or two positive numbers"),
        ("num_tokens: {a: 1}", "'num_tokens' must be a value, not a mapping"),
        ("a: b: c", "is not valid YAML"),
        ("- 1\n- 2", "must hold 'key: value' lines"),
        ("\x00", "is not valid YAML"),
        ("!!python/object/apply:os.system ['touch exploded']", "is not valid YAML"),
    ],
)
def test_a_bad_configuration_is_named(folder, tmp_path, call, text, message):  # noqa: F811
    (tmp_path / "bad.yaml").write_text(text)
    options = {k: v for k, v in COLOR.items() if k not in text}
    status, _, errors = call(train_vae.main, config="bad.yaml", dataset=folder, **options)
    lines = errors.strip().splitlines()
    assert status == 2 and message in lines[-1] and "Traceback" not in errors
    assert not (tmp_path / "exploded").exists() and not (tmp_path / "out").exists()


def test_an_output_folder_of_another_model(folder, tmp_path, call):  # noqa: F811
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")
    status, _, errors = call(train_vae.main, **COLOR, dataset=folder, max_train_steps=1)
    assert status == 2 and "output_dir: out holds a model that was not trained there; choose another one" in errors


def test_debug_shows_where(folder, call):  # noqa: F811
    with pytest.raises(Exception, match="num_tokens"):
        call(train_vae.main, **{**COLOR, "num_tokens": 100_000}, dataset=folder, debug=[])


@pytest.fixture
def saved_pipeline(tmp_path):
    torch.manual_seed(0)
    model = FQModel(
        in_channels=3, sample_size=16, block_out_channels=(8,), norm_num_groups=4, num_tokens=8, num_vq_embeddings=16,
        vq_embed_dim=4, spectral_crop=8,
    )  # fmt: skip
    untrained_pipeline(model, 4).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


WEIGHTS = "diffusion_pytorch_model.safetensors"


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


HARM = {
    "no index": (lambda p: (p / "model_index.json").unlink(), "holds neither"),
    "empty index": (lambda p: (p / "model_index.json").write_text(""), "is not the index of an FQLDMPipeline"),
    "list as index": (lambda p: (p / "model_index.json").write_text("[]"), "is not the index of an FQLDMPipeline"),
    "another pipeline": (
        lambda p: (p / "model_index.json").write_text(
            (p / "model_index.json").read_text().replace("FQLDMPipeline", "DDPMPipeline")
        ),
        "holds a pipeline of class ['pipeline_fq_ldm', 'DDPMPipeline'], not FQLDMPipeline",
    ),
    "another library": (
        lambda p: (p / "model_index.json").write_text(
            (p / "model_index.json").read_text().replace('"fq_model"', '"os"')
        ),
        "vqvae is ['os', 'FQModel'], not a class of fq_ldm or diffusers",
    ),
    "no unet": (lambda p: [f.unlink() for f in (p / "unet").iterdir()], "cannot be loaded"),
    "no weights": (lambda p: (p / "unet" / WEIGHTS).unlink(), "cannot be loaded"),
    "cut weights": (lambda p: cut(p / "vqvae" / WEIGHTS), "cannot be loaded"),
    "cut unet": (lambda p: cut(p / "unet" / WEIGHTS), "cannot be loaded"),
    "foreign weights": (
        lambda p: (p / "unet" / WEIGHTS).write_bytes((p / "vqvae" / WEIGHTS).read_bytes()),
        "cannot be loaded",
    ),
    "cut configuration": (lambda p: cut(p / "unet" / "config.json"), "cannot be loaded"),
    "no scheduler": (lambda p: (p / "scheduler" / "scheduler_config.json").unlink(), "cannot be loaded"),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_pipeline_ends_in_one_line(saved_pipeline, folder, call, harm):  # noqa: F811
    change, message = HARM[harm]
    change(saved_pipeline)
    status, _, errors = call(
        evaluate.main, model=saved_pipeline, dataset=folder, resolution=16, validation_size=4, output_dir="measured",
        metrics="spectrum", num_samples=2, num_inference_steps=2,
    )  # fmt: skip
    lines = [line for line in errors.splitlines() if "error: " in line]
    assert status == 1 and len(lines) == 1 and message in lines[0] and "Traceback" not in errors, errors


@pytest.mark.parametrize("part", ["unet", "vqvae"])
def test_a_pickle_in_a_pipeline_is_not_run(saved_pipeline, tmp_path, monkeypatch, part):
    """Weights as a pickle that runs code, under every name that diffusers knows for it."""
    monkeypatch.chdir(tmp_path)
    (saved_pipeline / part / WEIGHTS).unlink()
    for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "diffusion_pytorch_model.safetensors"):
        (saved_pipeline / part / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(Exception):  # noqa: B017  (the safetensors reader's own)
        FQLDMPipeline.from_pretrained(saved_pipeline)
    (saved_pipeline / part / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(OSError):
        FQLDMPipeline.from_pretrained(saved_pipeline)
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    "weights, message",
    [(b"", "no FQ-VAE can be loaded"), (b"\x00" * 64, "no FQ-VAE can be loaded")],
)
def test_a_damaged_vae_ends_in_one_line(saved_pipeline, folder, call, weights, message):  # noqa: F811
    (saved_pipeline / "vqvae" / WEIGHTS).write_bytes(weights)
    options = {**LDM_OPTIONS, "channels": 3, "dataset": folder, "output_dir": "out", "validation_size": 4}
    status, _, errors = call(train_ldm.main, vae=saved_pipeline / "vqvae", **options, max_train_steps=1)
    lines = [line for line in errors.splitlines() if "error: " in line]
    assert status == 1 and len(lines) == 1 and message in lines[0]


def test_inception_weights_are_not_unpickled(tmp_path):
    from fq_ldm.metrics.fidelity import FeatureExtractor

    path = tmp_path / "inception.pth"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="does not hold these weights"):
        FeatureExtractor(["fid"], weights=str(path))
    assert not Path("exploded").exists()


def test_a_card_escapes_what_came_from_outside(tmp_path):
    from fq_ldm.cards import save_card

    name = "cats\n---\ntags: [evil]\n# <script>alert(1)</script> | `x` ![](http://example.org/x.png)"
    options = {"dataset": name, "train_split": "train", "validation_split": None, "resolution": [8], "card_notes": name}
    options["card_license"] = "mit"
    save_card(
        tmp_path, f"FQ-VAE on {name}", "Summary.", "a.png", {"So:": "pass"}, {"mse": 0.5}, options, "train_vae",
        "None.", ("image-to-image", "image reconstruction"), class_names=[name],
    )  # fmt: skip
    card = (tmp_path / "README.md").read_text()
    front, body = card.split("---\n", 2)[1:]
    assert "evil" not in front
    before_options = body.split("```yaml\n")[0]
    assert "<script>" not in before_options and "](http" not in before_options
    assert body.count("\n# ") == 1
    configuration = body.split("```yaml\n")[1].split("\n```")[0]
    assert yaml.safe_load(configuration) == options


def test_a_run_writes_into_its_folder_alone_and_no_tokens(folder, tmp_path, call, monkeypatch):  # noqa: F811
    secret = "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"
    monkeypatch.setenv("HF_TOKEN", secret)
    monkeypatch.setenv("WANDB_API_KEY", secret)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    options = {**COLOR, "report_to": "tensorboard", "hub_model_id": "../escaped", "card_notes": "../notes"}
    status, output, errors = call(train_vae.main, **options, dataset=folder, max_train_steps=1)
    assert status == 0, errors
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert written and all((tmp_path / "out") in path.parents for path in written)  # nothing beside the folder
    assert secret not in output + errors
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert secret.encode() not in path.read_bytes(), path


def test_json_of_metrics_is_strict(tmp_path):
    """An infinite PSNR (of equal images) must not make a file that JSON readers refuse."""
    from fq_ldm.cards import save_metrics

    save_metrics(tmp_path, {"psnr": float("inf")})
    json.loads((tmp_path / "metrics.json").read_text(), parse_constant=lambda name: pytest.fail(name))
