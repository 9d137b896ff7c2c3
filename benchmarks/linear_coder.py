"""The error of an untrained model, a linear coder that starts from data:

    python benchmarks/linear_coder.py --config cifar10/codec --dataset path/to/cifar10 [--init_images 4096 ...]

Takes the options of data and of the FQ-VAE that train_vae.py takes, and prints one line of JSON: the squared error of
the held-out images over the variance of the training pixels; and the same with tokens that are not quantized, which is
what the choice of coefficients or filters leaves out.
"""

import json

import torch
from torch.utils.data import DataLoader

from fq_ldm.data import load_images, sample_batches
from fq_ldm.metrics import pixel_variance
from fq_ldm.options import VAE_CONFIGS, parse_config, run_script
from fq_ldm.training.vae import build_model

BATCH_SIZE = 256


@torch.no_grad()
def main(argv: list[str]) -> None:
    # The options of training are there for configuration files that set them.
    data, vae, _, config = parse_config(argv, *VAE_CONFIGS, required=("dataset",))
    train_images, held_out = load_images(data)
    torch.manual_seed(config.seed)
    model = build_model(data, vae).eval()
    sample = sample_batches(train_images, vae.init_images, config.seed, data.dataloader_num_workers)
    model.initialize_(sample)
    squares, numbers = torch.zeros(2), 0
    for images in DataLoader(held_out, BATCH_SIZE):
        latents = model.encode(images).latents
        quantized = model.quantize_latents(latents).latents
        for i, kept in enumerate((quantized, model.project_latents(latents))):
            squares[i] += (model._linear_decode(kept) - images).square().sum()
        numbers += images.numel()
    error, left_out = (squares / numbers / pixel_variance(sample)).tolist()
    print(json.dumps({"images": len(held_out), "nmse": round(error, 5), "left_out": round(left_out, 5)}))


if __name__ == "__main__":
    run_script(main)
