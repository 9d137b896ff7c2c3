"""Train an FQ-VAE: accelerate launch train_vae.py --config configs/mnist/vae.yaml [--key value ...]"""

from fq_ldm.options import run_script
from fq_ldm.train_vae import main

if __name__ == "__main__":
    run_script(main)
