"""What would perfect samples get? python benchmarks/floor.py DATASET --validation_split validation --resolution 64

Measures training images in the place of samples, against held-out images, by the last network of MTCNN
(benchmarks/mtcnn_features.py). What `evaluate.py` measures of a pipeline is better than that by chance alone. Prints a
line of JSON.
"""

import argparse
import json

import torch
from mtcnn_features import FaceFeatures

from fq_ldm.data import ImageDataset, load_images, sample_batches
from fq_ldm.metrics import to_uint8
from fq_ldm.metrics.fidelity import frechet_distance, kernel_distance, precision_recall
from fq_ldm.metrics.samples import PowerSpectrum, spectral_distance, spectral_gain
from fq_ldm.options import DataConfig


@torch.no_grad()
def look_at(images: ImageDataset, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n, F) and radial spectrum of `count` images, or of all if there are fewer."""
    network, spectrum, features = FaceFeatures("mtcnn-onet", ["256"]), PowerSpectrum(), []
    for batch in sample_batches(images, count, seed=0, num_workers=0):
        pixels = to_uint8(batch)
        spectrum(pixels / 255)
        features.append(network(pixels)[0])
    return torch.cat(features), spectrum.radial()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="folder or Hub name")
    parser.add_argument("--validation_split")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--samples", type=int, default=5000, help="training images in the place of samples")
    options = parser.parse_args()
    data = DataConfig(
        dataset=options.dataset, validation_split=options.validation_split, resolution=[options.resolution]
    )
    train_images, held_out = load_images(data)
    samples, sample_spectrum = look_at(train_images, options.samples)
    images, image_spectrum = look_at(held_out, len(held_out))
    report = {
        "images": len(images),
        "samples": len(samples),
        "fid": frechet_distance(samples, images),
        **kernel_distance(samples, images),
        **precision_recall(samples, images),
        "spectral_distance_db": spectral_distance(spectral_gain(sample_spectrum, image_spectrum)),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
