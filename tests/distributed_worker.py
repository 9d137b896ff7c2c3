"""One process of test_slow_processes.py: a few training steps on its share of each batch.

python -m torch.distributed.run --nproc_per_node N tests/distributed_worker.py FOLDER KIND ...

Fails where anything that must be the same on all processes is not, after any step. The first process saves the mean
loss of every step, and the model, for each kind.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from conftest import TINY, smooth_images
from safetensors.torch import save_file

from fq_ldm import BaselineModel, FQModel
from fq_ldm.distributed import processes

BATCH, STEPS = 48, 8
KINDS = {
    "closest": lambda: FQModel(**TINY),
    "random": lambda: FQModel(**TINY, anchors="random"),
    "probabilistic": lambda: FQModel(**TINY, anchors="probabilistic"),
    "paper": lambda: FQModel(**{**TINY, "vq_embed_dim": None, "tokens": "paper", "latent_channels": 2}),
    "ema": lambda: baseline("ema"),
    "sq": lambda: baseline("sq"),
    "residual": lambda: baseline("residual", residual_stages=4),
}


def baseline(quantizer, **options):
    shared = {k: TINY[k] for k in ("in_channels", "block_out_channels", "norm_num_groups", "num_vq_embeddings")}
    return BaselineModel(**shared, sample_size=8, num_tokens=16, quantizer=quantizer, **options)


def assert_same_everywhere(model, step):
    for name, value in model.state_dict().items():
        values = [torch.empty_like(value) for _ in range(dist.get_world_size())]
        dist.all_gather(values, value.contiguous())
        for other in values:
            assert torch.equal(other, value), f"step {step}: {name} differs between processes"


def train(kind: str, output: Path) -> None:
    torch.manual_seed(0)
    state = processes()
    rank, count = state.process_index, state.num_processes
    model = KINDS[kind]()
    size = model.sample_size
    model.initialize_(smooth_images(64, 3, *size, seed=99))
    torch.manual_seed(rank)  # draws must not need the same seed everywhere
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    prepared, optimizer = accelerator.prepare(model.train(), optimizer)
    losses = []
    for step in range(STEPS):
        batch = smooth_images(BATCH, 3, *size, seed=step).chunk(count)[rank]
        loss, _ = model.loss(batch, prepared(batch))
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(accelerator.gather(loss.detach().view(1)).mean())
        if count > 1:
            assert_same_everywhere(model, step)
    if accelerator.is_main_process:
        state = {name: value.detach().clone() for name, value in model.state_dict().items()}
        save_file({"losses": torch.stack(losses), **state}, output)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for kind in sys.argv[2:]:
        train(kind, Path(sys.argv[1]) / f"{kind}.safetensors")
