"""Make a folder that loads without this package: python -m fq_ldm.export runs/x/pipeline out/ [--check]

Writes the pipeline, or the FQ-VAE, with its code in one file, the UNet in float32 and float16, and the card. With
--check a fresh Python that cannot import this package loads the folder and must make the same image.
"""

import argparse
import copy
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from .cards import save_grid
from .options import DataError, UserError, run_script
from .pipelines import FQLDMPipeline, load_any
from .pipelines.loading import forget_paths, write_card

STEPS = 2  # of the image that is compared
ROUNDING = 1e-4  # of its values: where weights lie in memory changes how a processor adds them up
# Run where the package cannot be imported, which is how diffusers finds the folder on another machine.
FRESH = """
import sys
sys.modules["fq_ldm"] = None
import numpy, torch
from diffusers import AutoModel, DiffusionPipeline
folder, is_pipeline, file = sys.argv[1], sys.argv[2] == "True", sys.argv[3]
if is_pipeline:
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(1, {steps}, torch.Generator().manual_seed(0), output_type="pt").images
else:
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        image = model.detokenize(torch.zeros(1, model.config.num_tokens, dtype=torch.int64))
numpy.save(file, image.numpy())
"""


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder or Hub repository of a pipeline or an FQ-VAE")
    parser.add_argument("target", type=Path, help="folder to write, which must be empty or not there")
    parser.add_argument("--name", help="of the repository that it is for, in the lines of the card")
    parser.add_argument("--check", action="store_true", help="load it in a fresh Python without this package")
    parser.add_argument("--debug", action="store_true", help="show where in the code an error was found")
    options = parser.parse_args(argv)
    if options.target.exists() and (not options.target.is_dir() or any(options.target.iterdir())):
        raise UserError(f"target: {options.target} is not empty; choose another folder")
    model = export(options.source, options.target, options.name or options.target.name)
    print(f"{options.target}: {sum(file.stat().st_size for file in options.target.rglob('*')) / 1e6:.1f} MB")
    if options.check:
        check_folder(options.target, model)
        print("loaded by diffusers alone: the same image")


def export(source: str, target: Path, name: str):
    """Write a self-contained folder; returns the pipeline or the FQ-VAE in it.

    Args:
        source: folder or repository.
        target: folder.
        name: what the card's lines load.

    Raises:
        DataError: if there is neither pipeline nor FQ-VAE.
    """
    try:
        model = load_any(source)
    except (OSError, ValueError) as error:
        raise DataError(f"source: {' '.join(str(error).split())}") from error
    model.save_pretrained(target)
    folder = Path(model.config.get("_name_or_path") or source)
    if isinstance(model, FQLDMPipeline):
        copy.deepcopy(model.unet).half().save_pretrained(target / "unet", variant="fp16")
        forget_paths(target)
        write_card(folder, target, name)
        if not (target / "samples.png").is_file():
            model.set_progress_bar_config(disable=True)
            images = model(4, STEPS, torch.Generator().manual_seed(0), output_type="pt").images
            save_grid(images, target / "samples.png", 4)
    elif (folder / "README.md").is_file():
        write_card(folder, target, name)
    return model


@torch.no_grad()
def check_folder(folder: Path, model) -> None:
    """Load a folder where this package is not, and compare an image.

    Raises:
        DataError: if that fails, or the image is another.
    """
    is_pipeline = isinstance(model, FQLDMPipeline)
    if is_pipeline:
        model.set_progress_bar_config(disable=True)
        image = model(1, STEPS, torch.Generator().manual_seed(0), output_type="pt").images
    else:
        image = model.detokenize(torch.zeros(1, model.config.num_tokens, dtype=torch.int64))
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "image.npy")
        command = [sys.executable, "-I", "-c", FRESH.format(steps=STEPS), folder.resolve(), str(is_pipeline), file]
        environment = {**os.environ, "HF_MODULES_CACHE": scratch, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if result.returncode:
            raise DataError(f"check: {folder} does not load ({result.stderr.strip().splitlines()[-1]})")
        found = np.load(file)
    if found.shape != image.shape or not np.abs(found - image.numpy()).max() < ROUNDING:
        raise DataError(f"check: {folder} loads without this package, but makes another image")


if __name__ == "__main__":
    run_script(main)
