"""Which samples does a face detector call faces? python benchmarks/faces.py PIPELINE [--samples 200]

Two detectors that come with their weights: the frontal face cascade of OpenCV (pip install 'fq-ldm[faces]'), and MTCNN
where facenet-pytorch is installed (pip install --no-deps facenet-pytorch; its releases ask for an old torch that they
do not need). `--images` counts faces among images of a dataset instead, to know what a detector finds at best:

    python benchmarks/faces.py --images path/to/celeba64 --validation_split validation --resolution 64

Prints one line of JSON, and with `--output` writes the samples with green frames around those found.
"""

import argparse
import json
import math
from pathlib import Path

import cv2
import numpy as np
import torch

from fq_ldm import FQLDMPipeline
from fq_ldm.cards import display_scale, save_grid
from fq_ldm.data import load_images, sample_images
from fq_ldm.diffusion import sampling_scheduler
from fq_ldm.options import DataConfig

ENLARGED = 256  # pixels: both detectors were made for larger faces than those of 64x64 images
BORDER = 32  # pixels around the enlarged image, since faces reach its edges
CASCADE = "haarcascade_frontalface_default.xml"
CASCADE_NEIGHBOURS = 5  # overlapping finds that make a face
MTCNN_PROBABILITY = 0.9
BATCH = 50


def prepare(image: torch.Tensor) -> np.ndarray:
    """Image (3, H, W) in [0, 1] -> enlarged uint8 RGB with a border."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    enlarged = cv2.resize(pixels, (ENLARGED, ENLARGED), interpolation=cv2.INTER_CUBIC)
    return cv2.copyMakeBorder(enlarged, BORDER, BORDER, BORDER, BORDER, cv2.BORDER_REPLICATE)


def cascade_finds(images: list[np.ndarray]) -> list[bool]:
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + CASCADE)
    smallest = (ENLARGED * 3 // 8,) * 2
    grey = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images)
    return [len(cascade.detectMultiScale(image, 1.1, CASCADE_NEIGHBOURS, minSize=smallest)) > 0 for image in grey]


def mtcnn_probabilities(images: list[np.ndarray]) -> list[float] | None:
    """Of the likeliest face in each image, 0 where there is none; None where facenet-pytorch is not installed."""
    try:
        from facenet_pytorch import MTCNN
    except ImportError:
        return None
    detector = MTCNN(keep_all=False, device="cpu", min_face_size=ENLARGED // 4)
    probabilities = (detector.detect(image)[1] for image in images)
    return [float(p[0] or 0) for p in probabilities]


def make_samples(path: str, count: int, steps: int, sampling: dict) -> torch.Tensor:
    """The images of the seeds 0 .. count - 1, none left out: (n, 3, H, W) in [0, 1]."""
    pipeline = FQLDMPipeline.from_pretrained(path)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.scheduler = sampling_scheduler(pipeline.scheduler, steps)
    parts = []
    for seeds in torch.arange(count).split(BATCH):
        generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        images = pipeline(len(seeds), steps, generators, output_type="pt", **sampling).images
        parts.append(images.cpu())
    return torch.cat(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", nargs="?", help="folder or Hub repository")
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--num_inference_steps", type=int, default=50, help="of DPM-Solver++; 1000 for DDPM")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the samples' starting noise")
    parser.add_argument("--learnt_temperature", type=float, help="of learnt channels; the pipeline's own by default")
    parser.add_argument("--pag_scale", type=float, help="of guidance by attention; the pipeline's own by default")
    parser.add_argument("--pag_threshold", type=float, help="whom it guides: inf for all; its own by default")
    parser.add_argument("--images", help="dataset to look at instead")
    parser.add_argument("--validation_split")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--output", type=Path, help="picture of the samples and of what was found")
    options = parser.parse_args()
    if (options.pipeline is None) == (options.images is None):
        parser.error("give a pipeline or --images")
    if options.images:
        data = DataConfig(
            dataset=options.images, validation_split=options.validation_split, resolution=[options.resolution]
        )
        images = (sample_images(load_images(data)[1], options.samples, seed=0) + 1) / 2
    else:
        names = ("temperature", "learnt_temperature", "pag_scale", "pag_threshold")
        sampling = {name: getattr(options, name) for name in names}
        images = make_samples(options.pipeline, options.samples, options.num_inference_steps, sampling)

    prepared = [prepare(image) for image in images]
    found = {"opencv_cascade": cascade_finds(prepared)}
    probabilities = mtcnn_probabilities(prepared)
    if probabilities is not None:
        found["mtcnn"] = [probability > MTCNN_PROBABILITY for probability in probabilities]
    report = {"of": options.pipeline or options.images, "images": len(images)}
    if options.pipeline:
        if sampling["pag_threshold"] == math.inf:
            sampling["pag_threshold"] = "all"  # JSON knows no infinity
        report |= {"num_inference_steps": options.num_inference_steps, **sampling}
    report |= {name: sum(finds) / len(finds) for name, finds in found.items()}
    if probabilities is not None:
        report["mtcnn_confidence"] = sum(probabilities) / len(probabilities)
    print(json.dumps(report))
    if options.output:
        finds = found.get("mtcnn") or found["opencv_cascade"]
        green = torch.tensor([0.0, 0.8, 0.0]).view(3, 1, 1)
        framed = images.clone()
        for image, is_face in zip(framed, finds, strict=True):
            if is_face:
                image[:, :2], image[:, -2:], image[:, :, :2], image[:, :, -2:] = green, green, green, green
        save_grid(framed, options.output, 20, display_scale(images.shape[-2]))


if __name__ == "__main__":
    main()
