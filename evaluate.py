"""Measure an FQ-VAE or a pipeline: python evaluate.py --model runs/mnist/vae --dataset ... --output_dir ..."""

from fq_ldm.evaluate import main
from fq_ldm.options import run_script

if __name__ == "__main__":
    run_script(main)
