"""Quantizers side by side at equal bits: python benchmarks/quantizers.py [--threads 1] [--repeats 15]

Forward and backward of the quantizer alone, on random latents (64, 3, side, side): 64 tokens of 9 bits at 32 pixels
and 256 tokens of 10 bits at 64. Ours is everything between encoder and decoder: FFT, filter bank, lookup, update of the
codebook, graph module, inverse FFT. The others get the cells of a grid, cut out beforehand. Each is timed in a process
of its own; the time is the median of the repeats, the memory what the process's peak rises by after a
step with a single image, which has loaded what the libraries need.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from memory import peak, start_peak
from torch import nn

from fq_ldm import FQModel
from fq_ldm.quantization import GridTokens

BATCH_SIZE = 64
SIZES = {32: (64, 512), 64: (256, 1024)}  # side -> tokens, codes
STAGES = 4  # of residual quantization
FSQ_LEVELS = {512: [8, 8, 8], 1024: [8, 8, 4, 4]}


class CVQ(nn.Module):
    """The steps of CVQ-VAE's own quantizer, closest anchors: two sorted distance matrices, one-hot codes."""

    def __init__(self, num_entries: int, dim: int, beta: float = 0.25, decay: float = 0.99):
        super().__init__()
        self.entries = nn.Parameter(torch.randn(num_entries, dim) / num_entries)
        self.register_buffer("usage", torch.zeros(num_entries))
        self.beta, self.decay = beta, decay

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        flat = tokens.reshape(-1, tokens.shape[-1])
        detached = flat.detach()
        closeness = 2 * detached @ self.entries.detach().T
        closeness = closeness - detached.square().sum(1, keepdim=True) - self.entries.detach().square().sum(1)
        indices = closeness.sort(dim=1).indices[:, -1:]
        codes = torch.zeros_like(closeness).scatter_(1, indices, 1)
        quantized = (codes @ self.entries).view_as(tokens)
        loss = self.beta * F.mse_loss(quantized.detach(), tokens) + F.mse_loss(quantized, tokens.detach())
        with torch.no_grad():
            self.usage.mul_(self.decay).add_(codes.mean(0), alpha=1 - self.decay)
            anchors = detached[closeness.sort(dim=0).indices[-1]]
            step = torch.exp(-self.usage * len(self.usage) * 10 / (1 - self.decay) - 1e-3).unsqueeze(1)
            self.entries.copy_(self.entries * (1 - step) + anchors * step)
        return tokens + (quantized - tokens).detach(), loss


def make(method: str, side: int):
    """A function that quantizes latents (B, 3, side, side), or its tokens, to something and a loss; and its input."""
    tokens, codes = SIZES[side]
    latents = torch.randn(BATCH_SIZE, 3, side, side, generator=torch.Generator().manual_seed(0))
    if method.startswith("FQ-VAE"):
        layout = "bank" if "bank" in method else "interleaved"
        quantizer = FQModel(
            sample_size=side, block_out_channels=(8,), num_tokens=tokens, num_vq_embeddings=codes, tokens=layout,
        ).quantize  # fmt: skip
        quantizer.initialize_(latents.split(16))

        def quantize(latents):
            quantized = quantizer.quantize(latents)
            return quantizer.refine(quantized.tokens), quantized.loss

        return quantizer.train(), quantize, latents
    from vector_quantize_pytorch import FSQ, ResidualVQ, VectorQuantize

    positions = tokens // STAGES if "residual" in method else tokens
    cells = GridTokens((3, side, side), positions).split(latents).contiguous()
    dim = cells.shape[-1]
    if method == "CVQ-VAE, its authors' steps":
        module = CVQ(codes, dim)
        return module.train(), module, cells
    if method == "library, VQ":
        module = VectorQuantize(dim, codes, kmeans_init=False)
    elif method == "library, residual VQ":
        module = ResidualVQ(dim=dim, codebook_size=codes, num_quantizers=STAGES, shared_codebook=True)
    else:
        module = FSQ(FSQ_LEVELS[codes], dim=dim)

    def quantize(cells):
        outputs = module(cells)
        return outputs[0], outputs[2].sum() if len(outputs) > 2 else outputs[0].new_zeros(())

    return module.train(), quantize, cells


METHODS = (
    "FQ-VAE, learnt bank",
    "FQ-VAE, combs",
    "CVQ-VAE, its authors' steps",
    "library, VQ",
    "library, residual VQ",
    "library, FSQ",
)


def measure(method: str, side: int, repeats: int) -> dict:
    """Median seconds of a step, and megabytes that the peak of the process's memory rises by."""
    torch.manual_seed(0)
    module, quantize, inputs = make(method, side)

    def step(inputs):
        outputs, loss = quantize(inputs)
        (outputs.square().mean() + loss).backward()
        module.zero_grad()
        inputs.grad = None

    step(inputs[:1].clone().requires_grad_())
    inputs.requires_grad_()
    before, seconds = start_peak(), []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        step(inputs)
        seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds[2:]), "megabytes": (peak() - before) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--repeats", type=int, default=15, help="steps that are timed")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "SIDE"), help="measure one of them in this process")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        print(json.dumps(measure(options.one[0], int(options.one[1]), options.repeats)))
        return
    print(f"{options.threads} threads, torch {torch.__version__}, batch {BATCH_SIZE}\n")
    print("| side | tokens x codes | quantizer | forward + backward (ms) | peak memory (MB) |\n|---|---|---|---|---|")
    for side, (tokens, codes) in SIZES.items():
        for method in METHODS:
            command = [sys.executable, __file__, "--threads", str(options.threads), "--repeats", str(options.repeats)]
            output = subprocess.run([*command, "--one", method, str(side)], capture_output=True, text=True, check=True)
            result = json.loads(output.stdout.splitlines()[-1])
            print(
                f"| {side} | {tokens} x {codes} | {method} | {1000 * result['seconds']:.1f} | "
                f"{result['megabytes']:.0f} |", flush=True,
            )  # fmt: skip


if __name__ == "__main__":
    main()
