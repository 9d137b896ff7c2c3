"""Which schedulers of diffusers sample a pipeline's latents? python benchmarks/schedulers.py PIPELINE [--samples 64]

Makes every scheduler of diffusers from the pipeline's configuration, samples the same seeds with each, and counts
those that MTCNN takes for a face (OpenCV's cascade where facenet-pytorch is not installed). Prints a Markdown table,
best first, then those that fail, with the first line of their error. DDPM takes five times the steps: it is not made
for few.
"""

import argparse
import inspect
import time

import diffusers
import torch
from diffusers import SchedulerMixin
from faces import MTCNN_PROBABILITY, cascade_finds, mtcnn_probabilities, prepare

from fq_ldm import FQLDMPipeline
from fq_ldm.pipelines import pipeline_fq_ldm

SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
DDPM_FACTOR = 5


def candidates(pipeline: FQLDMPipeline) -> dict[str, SchedulerMixin | Exception]:
    """Every scheduler of diffusers by its name, also with other steps of the noise, or why there is none."""
    found = {"as saved": pipeline.scheduler}
    for name in sorted(dir(diffusers.schedulers)):
        cls = getattr(diffusers.schedulers, name)
        if not (isinstance(cls, type) and issubclass(cls, SchedulerMixin)) or cls is SchedulerMixin:
            continue
        known = inspect.signature(cls.__init__).parameters
        for option in ("", *(sigmas for sigmas in SIGMAS if sigmas in known)):
            label = f"{name} {option}".strip()
            try:
                spacing = {sigmas: sigmas == option for sigmas in SIGMAS if sigmas in known}
                scheduler = cls.from_config(pipeline.scheduler.config, **spacing)
            except Exception as error:  # whatever is missing or asked for
                found.setdefault(name, error)
                continue
            found[label] = scheduler
    return found


def share_of_faces(images: torch.Tensor) -> float:
    """Of images (n, 3, H, W) in [0, 1]."""
    prepared = [prepare(image) for image in images]
    probabilities = mtcnn_probabilities(prepared)
    finds = cascade_finds(prepared) if probabilities is None else [p > MTCNN_PROBABILITY for p in probabilities]
    return sum(finds) / len(finds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", help="folder or Hub repository")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--only", nargs="+", help="parts of names")
    options = parser.parse_args()
    # How many images a threshold guides differs between steps and schedulers.
    pipeline = FQLDMPipeline.from_pretrained(options.pipeline, pag_scale=0.0)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=True)
    pipeline_fq_ldm.check_scheduler = lambda scheduler, trained: None  # this is how it is found out what to refuse

    worked, failed = [], []
    for name, scheduler in candidates(pipeline).items():
        if options.only and not any(part in name for part in options.only):
            continue
        if isinstance(scheduler, Exception):
            failed.append((name, scheduler))
            continue
        steps = options.num_inference_steps * (DDPM_FACTOR if name.startswith("DDPM") else 1)
        pipeline.scheduler = scheduler
        seeds = [torch.Generator().manual_seed(seed) for seed in range(options.samples)]
        start = time.perf_counter()
        try:
            images = pipeline(options.samples, steps, seeds, output_type="pt").images.cpu()
        except Exception as error:  # schedulers that want other arguments fail in as many ways
            failed.append((name, error))
            continue
        seconds = time.perf_counter() - start
        share = share_of_faces(images) if images.isfinite().all() else 0.0
        worked.append((share, name, steps, seconds))
        print(f"{name}: {share:.1%}, {steps} steps, {seconds:.0f} s", flush=True)
    print("\n| scheduler | steps | faces | s |\n|---|---|---|---|")
    for share, name, steps, seconds in sorted(worked, reverse=True):
        print(f"| `{name}` | {steps} | {share:.1%} | {seconds:.0f} |")
    print("\n| fails | why |\n|---|---|")
    for name, error in failed:
        print(f"| `{name}` | {type(error).__name__}: {(str(error) or 'no message').strip().splitlines()[0][:100]} |")


if __name__ == "__main__":
    main()
