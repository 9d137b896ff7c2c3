"""The lines of Python on model cards: with diffusers alone, and with this package."""

PLAIN = "With diffusers alone (`pip install diffusers torch safetensors`), which runs the code in this repository:"
PACKAGED = "With the package fq_ldm, which runs none of it:"

VAE = """tokens = model.tokenize(images)  # images (B, c, H, W) in [-1, 1] -> (B, U)
reconstructions = model.detokenize(tokens)"""
SAMPLING = {
    None: "images = pipeline(num_images=16{label}).images  # {steps} steps",
    "DPMSolverMultistepScheduler": """images = pipeline(num_images=16{label}).images  # {steps} steps

pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
    pipeline.scheduler.config, algorithm_type="sde-dpmsolver++"
)
images = pipeline(num_images=16{label}).images  # 20 steps""",
    "DDPMScheduler": """images = pipeline(num_images=16{label}).images  # 20 steps of DPM-Solver++

pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
images = pipeline(num_images=16{label}).images  # {steps} steps, as in the paper""",
}


def vae_usages(name: str) -> dict[str, str]:
    """Lines that use an FQ-VAE of this name, for `save_card`."""
    plain = f'from diffusers import AutoModel\n\nmodel = AutoModel.from_pretrained("{name}", trust_remote_code=True)'
    packaged = f'from fq_ldm import load_vae\n\nmodel = load_vae("{name}")'
    return {PLAIN: f"{plain}\n{VAE}", PACKAGED: f"{packaged}\n{VAE}"}


def pipeline_usages(
    name: str, other_scheduler: str | None, steps: int, class_names: list[str] | None
) -> dict[str, str]:
    """Lines that use a pipeline of this name, for `save_card`.

    Args:
        name: folder or repository.
        other_scheduler: the one to show beside that which it was saved with, a key of `SAMPLING`; None for a UNet that
            was distilled for its own.
        steps: of the training, or those that it was distilled for.
        class_names: of the classes to ask for.
    """
    label = f', class_labels="{class_names[0]}"' if class_names else ""
    lines = SAMPLING[other_scheduler].format(label=label, steps=steps)
    plain = f'pipeline = DiffusionPipeline.from_pretrained("{name}", trust_remote_code=True)'
    packaged = f'pipeline = FQLDMPipeline.from_pretrained("{name}")'
    others = [other_scheduler] if other_scheduler else []
    imports = ", ".join(sorted(["DiffusionPipeline", *others], key=str.lower))
    packaged_imports = "".join(f"from diffusers import {other}\n" for other in others)
    return {
        PLAIN: f"from diffusers import {imports}\n\n{plain}\n{lines}",
        PACKAGED: f"{packaged_imports}from fq_ldm import FQLDMPipeline\n\n{packaged}\n{lines}",
    }
