"""One process of test_slow_sharding.py: sharded or, where accelerate is not told of FSDP, not.

python -m torch.distributed.run --nproc_per_node 2 tests/sharded_worker.py train_ldm|train_vae ...
python -m torch.distributed.run --nproc_per_node 2 tests/sharded_worker.py faults FOLDER

Says after each script which part of the weights, of their running mean and of the optimizer's state it holds, and how
the script ended. With STOP_AFTER in the environment, the second process gets a SIGTERM after that step.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from fq_ldm import train_ldm, train_vae
from fq_ldm.distributed import processes
from fq_ldm.options import TrainingConfig, run_script
from fq_ldm.training import loop, nonfinite, optimizer, run
from fq_ldm.training.setup import make_accelerator, make_loader
from fq_ldm.training.sharding import whole_unet

SPOILED = 4  # the batch of the second process


class Watched(run.Run):
    """A run that remembers itself, and can be asked to stop."""

    last = None

    def __init__(self, *arguments):
        super().__init__(*arguments)
        Watched.last = self

    def complete_step(self, left_out):
        super().complete_step(left_out)
        if self.progress.step == int(os.environ.get("STOP_AFTER", 0)) and self.accelerator.process_index == 1:
            signal.raise_signal(signal.SIGTERM)


def held_part(tensors):
    """Of all numbers, the part that lies in this process."""
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(t.numel() for t in local) / sum(t.numel() for t in tensors)


def run_watched(main):
    """Run a script, and say how it went."""
    loop.Run = Watched
    status = 0
    try:
        run_script(main)
    except SystemExit as end:
        status = end.code
    if Watched.last is not None:
        moments = [state["exp_avg"] for state in Watched.last.optimizer.state.values()]
        held = (list(Watched.last.model.parameters()), Watched.last.ema.shadow_params, moments)
        print("holds " + " ".join(f"{held_part(tensors):.3f}" for tensors in held), flush=True)
    print(f"exit status {status}", flush=True)


def train_spoiled(folder: Path, late: bool, spoil: str) -> None:
    """Six steps of a small UNet, one of which is not finite and left out."""
    optimizer.looks_late = lambda device: True  # the same optimizer for both
    nonfinite.looks_late = lambda device: late
    config = TrainingConfig(
        output_dir=str(folder / f"{late}-{spoil}"), max_train_steps=6, train_batch_size=4, report_to="none",
        lr_warmup_steps=1, logging_steps=3, skip_nonfinite=True, max_grad_norm=0.1,
    )  # fmt: skip
    Path(config.output_dir).mkdir(exist_ok=True)
    accelerator = make_accelerator(config, may_shard=True)
    unet = UNet2DModel(8, 3, 3, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
                       down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    ema = EMAModel([], foreach=True)
    seen = []

    def compute_loss(prepared, drawn):
        batch = drawn.data
        seen.append(batch)
        prediction = prepared(batch, 10).sample
        loss = (prediction - batch).square().mean()
        if len(seen) == SPOILED and accelerator.process_index == 1:
            loss = loss * float("nan") if spoil == "loss" else loss + (prediction - prediction).sum().sqrt()
        return loss, {}

    latents = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    progress = loop.train(accelerator, config, unet, make_loader(latents, config), compute_loss, lambda step: {}, ema)
    assert progress.step == 6 and progress.skipped == 1
    result = {"weights": whole_unet(unet, None), "mean": whole_unet(unet, ema)}
    if accelerator.is_main_process:
        for name, model in result.items():
            save_file(model.state_dict(), folder / f"{late}-{spoil}" / f"{name}.safetensors")


def main():
    processes()  # starts gloo
    if "ACCELERATE_USE_FSDP" in os.environ:
        # Accelerate shards on GPUs alone, and asks nothing else of one.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    what = sys.argv.pop(1)
    if what == "faults":
        for late in (False, True):
            for spoil in ("loss", "gradient"):
                train_spoiled(Path(sys.argv[1]), late, spoil)
    else:
        run_watched({"train_ldm": train_ldm, "train_vae": train_vae}[what].main)


if __name__ == "__main__":
    main()
