"""Images in shards, of parquet and of WebDataset: they are mapped, not read; shuffled over all shards; and resumed."""

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from test_docs import ROOT, blocks

from fq_ldm.data import load_images
from fq_ldm.options import DataConfig, DataError, TrainingConfig, UserError
from fq_ldm.training.loop import train
from fq_ldm.training.setup import make_accelerator, make_loader

SHARDS, PER_SHARD, HELD_OUT = 3, 80, 24
IMAGES = SHARDS * PER_SHARD


def numbered(number):
    """A PNG of noise whose first pixel is its number."""
    pixels = np.random.default_rng(number).integers(0, 256, (64, 64), np.uint8)
    pixels[0, 0] = number
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def numbers(images):
    """Of a batch (B, 1, 64, 64)."""
    return (images[:, 0, 0, 0] * 127.5 + 127.5).round().int().tolist()


def write_parquet(path, cells):
    table = datasets.Dataset.from_dict({"image": cells}, features=datasets.Features(image=datasets.Image()))
    table.to_parquet(path)


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module", params=["parquet", "tar"])
def options(request, tmp_path_factory):
    """The options of three shards."""
    folder = tmp_path_factory.mktemp(request.param)
    for shard in range(SHARDS):
        part = range(shard * PER_SHARD, (shard + 1) * PER_SHARD)
        if request.param == "parquet":
            cells = [{"bytes": numbered(i), "path": None} for i in part]
            write_parquet(folder / f"train-{shard:05d}.parquet", cells)
        else:
            labels = {f"{i:06d}.json": json.dumps({"label": i}).encode() for i in part}
            images = {f"{i:06d}.png": numbered(i) for i in part}
            write_tar(folder / f"{shard:05d}.tar", dict(sorted((labels | images).items())))
    column = {"parquet": "image", "tar": "png"}[request.param]
    return dict(dataset=str(folder), image_column=column, channels=1, resolution=[64], validation_size=HELD_OUT)


def test_images_stay_on_the_disk(options):
    load_images(DataConfig(**options))  # writes what is mapped
    before = pa.total_allocated_bytes()
    train_images, held_out = load_images(DataConfig(**options))
    shown = sorted(numbers(torch.stack([*train_images, *held_out])))
    assert shown == list(range(IMAGES))
    assert pa.total_allocated_bytes() - before < 0.05 * IMAGES * len(numbered(0))
    for images in (train_images, held_out):
        assert isinstance(images.table.data, datasets.table.MemoryMappedTable)
        assert all(Path(entry["filename"]).is_file() for entry in images.table.cache_files)


def test_a_selection_is_no_list(options):
    """`skip_bad_images` and `max_train_images` keep a few bytes for an image, too."""
    before = pa.total_allocated_bytes()
    images, _ = load_images(DataConfig(**options, skip_bad_images=True, max_train_images=200))
    assert len(images) == 200
    assert pa.total_allocated_bytes() - before < 50 * IMAGES


def test_order_mixes_all_shards(options):
    config = TrainingConfig(train_batch_size=24)
    train_images, held_out = load_images(DataConfig(**options))
    epochs = []
    loader = make_loader(train_images, config, num_workers=2)
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches = [numbers(batch) for batch in loader]
        for batch in batches:
            shares = Counter(number // PER_SHARD for number in batch)
            assert len(shares) == SHARDS and max(shares.values()) < 20  # of 24; 8 each on average
        epochs.append(sum(batches, []))
    assert set(epochs[0]) == set(epochs[1]) == set(range(IMAGES)) - set(numbers(torch.stack(list(held_out))))
    assert epochs[0] != epochs[1]
    for order in epochs:  # neighbours in an epoch are no neighbours in the files
        steps = np.abs(np.diff(order))
        assert 0.8 < steps.mean() / (IMAGES / 3) < 1.2 and (steps == 1).mean() < 0.05
    shares = Counter(number // PER_SHARD for number in numbers(torch.stack(list(held_out))))
    assert len(shares) == SHARDS


def seen(folder, options, steps):
    """Train something up to a step, with everything loaded anew, and give the images of the steps of this start."""
    AcceleratorState._reset_state(reset_partial_state=True)
    config = TrainingConfig(
        output_dir=str(folder), max_train_steps=steps, train_batch_size=24, report_to="none",
        checkpointing_steps=1000, preview_steps=1000,
    )  # fmt: skip
    accelerator = make_accelerator(config)
    loader = make_loader(load_images(DataConfig(**options))[0], config, num_workers=1)
    found = []

    def compute_loss(prepared, batch):
        images = batch.data
        found.append(numbers(images))
        return prepared(images[:, 0, 0, :1]).square().mean(), {}

    train(accelerator, config, torch.nn.Linear(1, 1), loader, compute_loss, lambda step: {})
    accelerator.end_training()
    return found


def test_a_resumed_run_sees_the_images_that_were_next(options, tmp_path):
    whole = seen(tmp_path / "whole", options, 20)  # two epochs of 9 steps, and a part of the third
    parts = [seen(tmp_path / "parts", options, steps) for steps in (4, 9, 13, 20)]
    assert sum(parts, []) == whole and [len(part) for part in parts] == [4, 5, 4, 7]


def tars(folder, **changes):
    return DataConfig(**{"dataset": str(folder), "image_column": "png", "channels": 1, "resolution": [64],
                         "validation_size": 2, **changes})  # fmt: skip


def test_tar_files_have_splits_by_their_names(tmp_path):
    for name, part in {"train-0": range(5), "train-1": range(5, 9), "validation-0": range(9, 12)}.items():
        write_tar(tmp_path / f"{name}.tar", {f"{i}.png": numbered(i) for i in part})
        (tmp_path / f"{name}.json").write_text("{}")
    write_parquet(tmp_path / "train-0.parquet", [])  # as img2dataset leaves beside its shards
    (tmp_path / "test.txt").write_text("nothing")  # no split
    train_images, held_out = load_images(tars(tmp_path, validation_split="validation"))
    assert numbers(torch.stack(list(train_images))) == list(range(9))
    assert numbers(torch.stack(list(held_out))) == [9, 10, 11]
    with pytest.raises(UserError, match="has no split 'test', only train, validation"):
        load_images(tars(tmp_path, validation_split="test"))


def test_a_column_that_tar_files_do_not_have(tmp_path):
    write_tar(tmp_path / "0.tar", {f"{i}.{kind}": numbered(i) for i in range(4) for kind in ("png", "seg.png")})
    with pytest.raises(UserError, match="image_column: .* has no column 'image', only png, seg.png, __key__, __url__"):
        load_images(tars(tmp_path, image_column="image"))


def test_a_broken_image_in_a_tar_file_is_named(tmp_path):
    write_tar(tmp_path / "0.tar", {f"some/{i}.png": numbered(i)[: 200 if i == 2 else None] for i in range(5)})
    with pytest.raises(DataError, match=r"some/2\.png: is not a readable image"):
        [*map(list, load_images(tars(tmp_path)))]
    for workers in (0, 2):
        log = tmp_path / f"{workers}.txt"
        state = torch.get_rng_state()
        parts = load_images(tars(tmp_path, skip_bad_images=True, dataloader_num_workers=workers), log)
        assert sum(map(len, parts)) == 4 and log.read_text().startswith("some/2.png: is not a readable")
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "kept, reason",
    [(0, "empty file"), (20_000, "unexpected end of data"), (100_000, "unexpected end of data")],
    ids=["empty", "cut early", "cut late"],
)
def test_a_tar_file_that_is_broken(tmp_path, kept, reason):
    write_tar(tmp_path / "0.tar", {f"{i}.png": numbered(i) for i in range(40)})
    (tmp_path / "0.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:kept])
    with pytest.raises(DataError, match=rf"^{tmp_path}: cannot be loaded as .* \(.*({reason}).*\)$"):
        load_images(tars(tmp_path))


def test_images_beside_a_tar_file_are_a_folder_of_images(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(numbered(i))
    write_tar(tmp_path / "backup.tar", {f"{i}.png": numbered(i) for i in range(3)})
    assert sum(map(len, load_images(tars(tmp_path, image_column="image")))) == 6


def test_a_stream_becomes_shards(tmp_path, monkeypatch):
    """The Python of the page, on shards in place of the Hub."""
    (code,) = blocks(ROOT / "docs" / "large-datasets.md", "python")
    (tmp_path / "hub").mkdir()
    for shard in range(SHARDS):
        part = range(shard * PER_SHARD, (shard + 1) * PER_SHARD)
        write_parquet(tmp_path / "hub" / f"{shard}.parquet", [{"bytes": numbered(i), "path": None} for i in part])
    monkeypatch.chdir(tmp_path)
    for said, here in {'"owner/name"': '"parquet", data_files="hub/*.parquet"', "10_000": "100"}.items():
        assert said in code
        code = code.replace(said, here)
    exec(compile(code, "page", "exec"), {})
    names = sorted(path.name for path in Path("shards").iterdir())
    assert names == ["train-00000.parquet", "train-00001.parquet", "train-00002.parquet"]
    train_images, held_out = load_images(DataConfig(dataset="shards", resolution=[64], validation_size=HELD_OUT))
    assert train_images[0].shape == (3, 64, 64)
    assert sorted(numbers(torch.stack([*train_images, *held_out]))) == list(range(IMAGES))
