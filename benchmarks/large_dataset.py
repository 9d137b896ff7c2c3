"""Memory, speed and workers on datasets of many images (Linux):

    python benchmarks/large_dataset.py /tmp/large --images 50000 1000000

For each size, writes parquet shards of random 64x64 JPEGs into the folder (2.1 KB an image, and as much again for the
Arrow files that `datasets` makes of them; what is already there is used), and prints lines of JSON:

    convert     the first load, which makes the Arrow files: seconds, and the most memory it took
    train       some steps of train_vae.py's own code: seconds to the first step, images/s, memory at some steps
    load        the loader alone with several numbers of workers: images/s, memory early and late, and the time on a CPU
                that an image takes, in the process that trains and in its workers
    evicted     the same without workers, where no page of the files is in memory when a batch starts, as if they were
                far larger than it: images/s, and KB read from the disk for an image, with the system's reading ahead
                (/sys/block/DEVICE/queue/read_ahead_kb) and with pages read alone

Memory is anonymous memory in MB, of the process with its workers, pages that they share counted once. Mapped pages of
the files are not in it: the system takes them back when it needs to.
"""

import argparse
import ctypes
import json
import mmap
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fq_ldm import train_vae
from fq_ldm.data import load_images
from fq_ldm.options import DataConfig, TrainingConfig
from fq_ldm.training.setup import make_loader

SHARD, ROW_GROUP = 10_000, 1_000  # images
SIDE, DETAIL = 64, 16  # pixels of an image, and of the noise that is enlarged to it
BATCH, HELD_OUT = 64, 64
LIBC = ctypes.CDLL(None)
FEATURES = datasets.Features(image=datasets.Image())


def write_shard(path: Path, number: int) -> None:
    """One parquet file of SHARD images; the number is its seed."""
    random = np.random.default_rng(number)
    with pq.ParquetWriter(path, FEATURES.arrow_schema) as writer:
        for _ in range(SHARD // ROW_GROUP):
            cells = []
            for noise in random.integers(0, 256, (ROW_GROUP, DETAIL, DETAIL, 3), np.uint8):
                file = BytesIO()
                Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
                cells.append({"bytes": file.getvalue(), "path": None})
            writer.write_table(pa.table({"image": cells}, FEATURES.arrow_schema))


def write_shards(folder: Path, count: int) -> None:
    """All shards, by all cores; the folder has its name when it is complete."""
    if folder.exists():
        return
    part = folder.with_suffix(".part")
    part.mkdir(parents=True, exist_ok=True)
    numbers = range(count // SHARD)
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(write_shard, [part / f"train-{number:05d}.parquet" for number in numbers], numbers))
    part.rename(folder)


def family() -> list[int]:
    """This process and its workers."""
    return [os.getpid(), *(child.pid for child in multiprocessing.active_children())]


def memory() -> int:
    """Anonymous memory of this process and its workers, in MB."""
    total = 0
    for pid in family():
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        total += int(dict(line.split(":") for line in lines)["Pss_Anon"].split()[0])
    return total // 1024


def cpu_seconds() -> tuple[float, float]:
    """Seconds on CPUs: of this process, and of its workers together."""
    ticks = []
    for pid in family():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks.append(int(fields[11]) + int(fields[12]))  # user and system
    return ticks[0] / os.sysconf("SC_CLK_TCK"), sum(ticks[1:]) / os.sysconf("SC_CLK_TCK")


def data_options(folder: Path) -> dict:
    return {"dataset": str(folder), "channels": 3, "resolution": [SIDE]}


def convert(folder: Path) -> dict:
    """Load the images for the first time."""
    found = [memory()]

    def watch():
        while True:
            time.sleep(0.1)
            found.append(memory())

    threading.Thread(target=watch, daemon=True).start()
    start = time.perf_counter()
    load_images(DataConfig(**data_options(folder)))
    return {"seconds": round(time.perf_counter() - start), "memory_before": found[0], "memory_peak": max(found)}


def train(folder: Path, steps: int) -> dict:
    """Train a small FQ-VAE."""
    options = {
        **data_options(folder), "output_dir": folder.with_suffix(".run"), "resolution": SIDE,
        "block_out_channels": "8 8 8", "num_tokens": 48, "num_vq_embeddings": 64, "init_images": 64,
        "validation_size": HELD_OUT, "train_batch_size": BATCH,
        "max_train_steps": steps, "checkpointing_steps": steps, "preview_steps": steps, "report_to": "none",
    }  # fmt: skip
    times, memories = [], []
    loop = train_vae.train

    def watched(accelerator, config, model, loader, compute_loss, *rest):
        def noted(*batch):
            times.append(time.perf_counter() - start)
            memories.append(memory())
            return compute_loss(*batch)

        return loop(accelerator, config, model, loader, noted, *rest)

    train_vae.train = watched
    start = time.perf_counter()
    train_vae.main([word for name, value in options.items() for word in (f"--{name}", *str(value).split())])
    tenth = steps // 10
    return {
        "seconds_to_first_step": round(times[0], 1),
        "images_per_second": round(BATCH * (steps - 1 - tenth) / (times[-1] - times[tenth])),
        "memory_of_steps": {1 + step: memories[step] for step in (0, tenth, steps // 2, steps - 1)},
    }


def load(folder: Path, workers: int, seconds: float) -> dict:
    """Load batches and do nothing with them."""
    images = load_images(DataConfig(**data_options(folder)))[0]
    batches = iter(make_loader(images, TrainingConfig(train_batch_size=BATCH), workers))
    next(batches)
    before, early, start, count = cpu_seconds(), memory(), time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds:
        count += len(next(batches))
    cpu = [round(1e6 * (late - early) / count) for late, early in zip(cpu_seconds(), before, strict=True)]
    return {
        "workers": workers, "images_per_second": round(count / passed), "cpu_microseconds_per_image": cpu,
        "memory_early": early, "memory_late": memory(),
    }  # fmt: skip


def mapped(files: list[str]) -> list[tuple[ctypes.c_void_p, ctypes.c_size_t]]:
    """Where files lie in the memory of this process: addresses and sizes."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, name = line.split(maxsplit=5)
        if name in files:
            start, end = (int(word, 16) for word in addresses.split("-"))
            found.append((ctypes.c_void_p(start), ctypes.c_size_t(end - start)))
    return found


def evict(files: list[str]) -> None:
    """Drop files from memory: from that of this process, and from the system's page cache."""
    for place in mapped(files):
        LIBC.madvise(*place, mmap.MADV_DONTNEED)
    for name in files:
        file = os.open(name, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def kilobytes_read() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(":") for line in lines)["read_bytes"]) // 1024


def load_evicted(folder: Path, seconds: float) -> dict:
    """Load batches whose images are on the disk alone; the time that evicting takes is not counted."""
    images = load_images(DataConfig(**data_options(folder)))[0]
    files = [entry["filename"] for entry in images.table.cache_files]
    os.sync()  # pages that are not yet written cannot be dropped
    found = {}
    for name, advice in {"read_ahead": mmap.MADV_NORMAL, "pages_alone": mmap.MADV_RANDOM}.items():
        for place in mapped(files):
            LIBC.madvise(*place, advice)
        batches = iter(make_loader(images, TrainingConfig(train_batch_size=BATCH)))
        before, passed, count = kilobytes_read(), 0.0, 0
        while passed < seconds:
            evict(files)
            start = time.perf_counter()
            count += len(next(batches))
            passed += time.perf_counter() - start
        kilobytes = round((kilobytes_read() - before) / count)
        found[name] = {"images_per_second": round(count / passed), "kilobytes_per_image": kilobytes}
    return found


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Print what one size gives; a process for each line, so that none has what another left in memory."""

    def line(task: str, *arguments: str) -> None:
        command = [sys.executable, __file__, str(folder), "--task", task, *arguments]
        environment = os.environ | {"HF_DATASETS_CACHE": str(folder.with_suffix(".cache"))}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        found = json.loads(done.stdout.splitlines()[-1])
        print(json.dumps({"images": int(folder.name), "task": task} | found), flush=True)

    if not folder.with_suffix(".cache").exists():
        line("convert")
    line("train", "--steps", str(options.steps))
    for workers in options.workers:
        line("load", "--workers", str(workers), "--seconds", str(options.seconds))
    line("evicted", "--seconds", str(options.seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where shards, Arrow files and the trained model are written")
    parser.add_argument("--images", type=int, nargs="+", default=[50_000, 1_000_000], help="sizes, multiples of 10,000")
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="of the loader alone")
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement of the loader alone")
    parser.add_argument(
        "--task", choices=["convert", "train", "load", "evicted"], help=argparse.SUPPRESS
    )  # of one process
    options = parser.parse_args()
    if options.task is None:
        for count in options.images:
            folder = options.folder / str(count)
            write_shards(folder, count)
            measure(folder, options)
    elif options.task == "convert":
        print(json.dumps(convert(options.folder)))
    elif options.task == "train":
        print(json.dumps(train(options.folder, options.steps)))
    elif options.task == "load":
        print(json.dumps(load(options.folder, options.workers[0], options.seconds)))
    else:
        print(json.dumps(load_evicted(options.folder, options.seconds)))


if __name__ == "__main__":
    main()
