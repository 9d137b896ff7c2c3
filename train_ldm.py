"""Train latent diffusion on an FQ-VAE: accelerate launch train_ldm.py --config configs/mnist/ldm.yaml --vae DIR"""

from fq_ldm.options import run_script
from fq_ldm.train_ldm import main

if __name__ == "__main__":
    run_script(main)
