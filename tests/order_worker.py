"""Which images a training run sees, step by step: one process of test_order.py.

python tests/order_worker.py FOLDER IMAGES BATCH STEPS [ACCUMULATION], alone or under torch.distributed.run; a process
appends its batches to FOLDER/<process>.json.
"""

import json
import sys
from pathlib import Path

import torch

from fq_ldm.options import TrainingConfig
from fq_ldm.training.loop import train
from fq_ldm.training.setup import make_accelerator, make_loader


def watch(folder: Path, images: int, batch: int, steps: int, accumulation: int = 1) -> None:
    """Train something on the numbers 0 .. images - 1, and write down their order."""
    config = TrainingConfig(
        output_dir=str(folder / "run"), max_train_steps=steps, train_batch_size=batch, report_to="none",
        gradient_accumulation_steps=accumulation, checkpointing_steps=1000, preview_steps=1000,
    )  # fmt: skip
    accelerator = make_accelerator(config)
    model = torch.nn.Linear(1, 1)
    seen = []

    def compute_loss(prepared, batch):
        numbers = batch.data
        seen.append(numbers.flatten().long().tolist())
        return prepared(numbers).square().mean(), {}

    numbers = torch.arange(images, dtype=torch.float32).view(-1, 1)
    train(accelerator, config, model, make_loader(numbers, config), compute_loss, lambda step: {})
    path = folder / f"{accelerator.process_index}.json"
    before = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps(before + seen))
    accelerator.end_training()


if __name__ == "__main__":
    watch(Path(sys.argv[1]), *map(int, sys.argv[2:]))
