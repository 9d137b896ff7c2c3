"""A pipeline whose samples differ from one another as much as images do, at every frequency.

python examples/equalize.py PIPELINE --images DATASET --output FOLDER

The equalizer of its FQ-VAE was measured by reconstructions; here it is by samples, made as the pipeline was saved to
make them, beside as many training images. All else stays as it is. Reconstructions become a little too sharp.
"""

import argparse

import torch

from fq_ldm import FQLDMPipeline
from fq_ldm.data import load_images, sample_images
from fq_ldm.models import equalize_samples_
from fq_ldm.models.equalizer import MEASURED_IMAGES
from fq_ldm.options import DataConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder or Hub repository")
    parser.add_argument("--images", required=True, help="dataset")
    parser.add_argument("--train_split", default="train")
    parser.add_argument("--validation_split", help="of the dataset, not measured by")
    parser.add_argument("--center_crop", type=int, help="of the images, as in training")
    parser.add_argument("--samples", type=int, default=2048, help="and images, with seeds from 0 on; at most 2048")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_inference_steps", type=int, help="the pipeline's own number by default")
    parser.add_argument("--output", required=True, help="folder of the new pipeline")
    options = parser.parse_args()
    if not 1 <= options.samples <= MEASURED_IMAGES:
        parser.error(f"--samples {options.samples}: give 1 to {MEASURED_IMAGES}, by which gains are known to 1 %")
    pipeline = FQLDMPipeline.from_pretrained(options.pipeline)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    data = DataConfig(
        dataset=options.images,
        train_split=options.train_split,
        validation_split=options.validation_split,
        resolution=list(pipeline.vqvae.sample_size),
        center_crop=options.center_crop,
        channels=pipeline.vqvae.config.in_channels,
    )
    images = sample_images(load_images(data)[0], options.samples, seed=0)
    if len(images) < options.samples:
        parser.error(f"--samples {options.samples}: {options.images} has {len(images)} images for training")
    batches = images.split(options.batch_size)

    def latents():
        for seeds in torch.arange(options.samples).split(options.batch_size):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds.tolist()]
            yield pipeline(len(seeds), options.num_inference_steps, generators, output_type="latent").images

    equalize_samples_(pipeline.vqvae, batches, latents(), quantize=pipeline.config.quantize_samples)
    pipeline.save_pretrained(options.output)
    print(options.output)


if __name__ == "__main__":
    main()
