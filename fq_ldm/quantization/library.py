"""Quantizers of the package vector-quantize-pytorch, behind the methods that this library's codebooks have."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from vector_quantize_pytorch import FSQ, ResidualVQ, SimVQ, VectorQuantize

from .codebook import QuantizedTokens, perplexity, sample_tokens, update_usage
from .lookup import all_finite, count_entries, nearest_entries, sum_over_processes

COMMITMENT_WEIGHT = 0.25  # beta of VQ-VAE and SimVQ
EMA_DECAY = 0.99  # VQ-VAE's appendix
USAGE_DECAY = 0.99  # of the use of the entries in the progress bar
DEAD_CODE_THRESHOLD = 2  # of the running cluster size; the revival that the package recommends
START_TOKENS = 64  # per entry


class _LibraryCodebook(nn.Module):
    """What the wrappers share; M is `num_vq_embeddings`."""

    usage: torch.Tensor
    quantizer: Any  # the package has no types

    def __init__(self, num_vq_embeddings: int):
        super().__init__()
        # A running mean of the use of the entries, for the progress bar alone.
        self.register_buffer("usage", torch.full((num_vq_embeddings,), 1 / num_vq_embeddings))

    def _wrap(self, tokens: torch.Tensor, indices: torch.Tensor, loss: torch.Tensor) -> QuantizedTokens:
        counts = count_entries(indices, len(self.usage))
        if self.training and torch.is_grad_enabled():
            self.usage.copy_(update_usage(self.usage, sum_over_processes(counts), USAGE_DECAY))
        return QuantizedTokens(tokens=tokens, indices=indices, loss=loss, perplexity=perplexity(counts))

    def objective(self, reconstruction_loss: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        """The training loss of the whole model."""
        return reconstruction_loss + loss


class _NearestCodebook(_LibraryCodebook):
    """A codebook whose lookup is the nearest entry; the package does it in training, this class otherwise."""

    @property
    def entries(self) -> torch.Tensor:
        """(M, m)."""
        return self.quantizer.codebook

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Indices (...) -> entries (..., m)."""
        return F.embedding(indices, self.entries)

    @torch.no_grad()
    def nearest(self, tokens: torch.Tensor, weights: None = None, exclude: int | None = None) -> torch.Tensor:
        """Tokens (..., m) -> indices (...) of the nearest entries."""
        return nearest_entries(tokens, self.entries, weights, exclude)

    def quantize(self, tokens: torch.Tensor, weights: None = None) -> QuantizedTokens:
        """Tokens (B, U, m), float32 -> their entries and the package's loss; updates the codebook in training."""
        if not (self.training and torch.is_grad_enabled()):
            indices = self.nearest(tokens)
            return self._wrap(self(indices), indices, (tokens - self(indices)).square().mean())
        quantized, indices, loss = self.quantizer(tokens, **self._training_options(tokens))
        return self._wrap(quantized, indices.flatten(1), loss.sum())

    def _training_options(self, tokens: torch.Tensor) -> dict:
        return {}


class _AveragingCodebook(_NearestCodebook):
    """One whose entries are running means, into which no token may go that is not finite."""

    def _training_options(self, tokens: torch.Tensor) -> dict:
        return {"freeze_codebook": not all_finite(tokens)}


class EMACodebook(_AveragingCodebook):
    """VQ-VAE with a codebook of running means, k-means start and revival of dead entries."""

    def __init__(self, num_vq_embeddings: int, vq_embed_dim: int):
        super().__init__(num_vq_embeddings)
        self.quantizer = VectorQuantize(
            vq_embed_dim,
            num_vq_embeddings,
            decay=EMA_DECAY,
            kmeans_init=True,
            commitment_weight=COMMITMENT_WEIGHT,
            threshold_ema_dead_code=DEAD_CODE_THRESHOLD,
            rotation_trick=False,
        )

    @torch.no_grad()
    def initialize_(self, tokens: torch.Tensor, weights: None = None) -> None:
        """The package's k-means, on a sample of the tokens (n, m)."""
        tokens, _ = sample_tokens(tokens, START_TOKENS * len(self.usage))
        self.quantizer.train()(tokens.unsqueeze(0))


class SimVQCodebook(_NearestCodebook):
    """SimVQ (Zhu et al. 2024): a frozen random codebook under one learnt linear map."""

    def __init__(self, num_vq_embeddings: int, vq_embed_dim: int):
        super().__init__(num_vq_embeddings)
        self.quantizer = SimVQ(
            vq_embed_dim, num_vq_embeddings, input_to_quantize_commit_loss_weight=COMMITMENT_WEIGHT, rotation_trick=True
        )

    @torch.no_grad()
    def initialize_(self, tokens: torch.Tensor, weights: None = None) -> None:
        """Let the entries have the second moments of the tokens (n, m)."""
        values, vectors = torch.linalg.eigh(tokens.T @ tokens / len(tokens))
        root = vectors * values.clamp(min=0).sqrt() @ vectors.T
        frozen = self.quantizer.frozen_codebook  # independent normal numbers of variance 1/m
        self.quantizer.code_transform.weight.copy_(root * frozen.shape[1] ** 0.5)


class FSQCodebook(_LibraryCodebook):
    """Finite scalar quantization (Mentzer et al. 2023): a few rounded numbers for each token, no codebook to learn."""

    def __init__(self, levels: list[int], vq_embed_dim: int):
        super().__init__(torch.Size(levels).numel())
        self.quantizer = FSQ(list(levels), dim=vq_embed_dim)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Indices (...) -> entries (..., m)."""
        return self.quantizer.indices_to_codes(indices)

    @torch.no_grad()
    def nearest(self, tokens: torch.Tensor, weights: None = None, exclude: int | None = None) -> torch.Tensor:
        """Tokens (..., m) -> indices (...) of the rounded values; those of a code left out go to the nearest other."""
        indices = self.quantizer(tokens.reshape(1, -1, tokens.shape[-1]))[1].view(tokens.shape[:-1]).long()
        if exclude is None:
            return indices
        entries = self(torch.arange(len(self.usage), device=tokens.device))
        return torch.where(indices == exclude, nearest_entries(tokens, entries, weights, exclude), indices)

    def quantize(self, tokens: torch.Tensor, weights: None = None) -> QuantizedTokens:
        """Tokens (B, U, m), float32 -> their rounded values, projected back; there is no loss."""
        quantized, indices = self.quantizer(tokens)
        # A token that is not finite rounds to no code; the loss tells of it, the count need not break.
        indices = indices.long().clamp(0, len(self.usage) - 1)
        return self._wrap(quantized, indices, tokens.new_zeros(()))

    @torch.no_grad()
    def initialize_(self, tokens: torch.Tensor, weights: None = None) -> None:
        """Project to and from the principal components of the tokens (n, m), each at unit variance."""
        mean = tokens.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov(tokens.T))
        count = self.quantizer.project_in.out_features
        scale, axes = values.flip(0)[:count].clamp(min=1e-8).sqrt(), vectors.flip(1)[:, :count].T
        self.quantizer.project_in.weight.copy_(axes / scale.unsqueeze(1))
        self.quantizer.project_in.bias.copy_(-self.quantizer.project_in.weight @ mean)
        # Back by least squares on the rounded codes.
        codes = self.quantizer.implicit_codebook[self.nearest(tokens)]
        codes = torch.cat([codes, torch.ones_like(codes[:, :1])], dim=1)
        solution = torch.linalg.lstsq(codes, tokens).solution  # (count + 1, m)
        self.quantizer.project_out.weight.copy_(solution[:-1].T)
        self.quantizer.project_out.bias.copy_(solution[-1])


class ResidualCodebook(_AveragingCodebook):
    """Residual quantization (Lee et al. 2022): several entries of one shared codebook for each position.

    Args:
        num_vq_embeddings: M.
        vq_embed_dim: m.
        stages: entries for each position; indices (B, U) hold the stages of a position side by side.
    """

    def __init__(self, num_vq_embeddings: int, vq_embed_dim: int, stages: int):
        super().__init__(num_vq_embeddings)
        self.stages = stages
        self.quantizer = ResidualVQ(
            dim=vq_embed_dim,
            num_quantizers=stages,
            codebook_size=num_vq_embeddings,
            shared_codebook=True,
            decay=EMA_DECAY,
            kmeans_init=True,
            commitment_weight=COMMITMENT_WEIGHT,
            threshold_ema_dead_code=DEAD_CODE_THRESHOLD,
            rotation_trick=False,
        )
        # The stages share one codebook module. Registered once, it is saved once: safetensors refuses shared tensors.
        first, *others = self.quantizer.layers
        for stage in others:
            del stage._modules["_codebook"]
            object.__setattr__(stage, "_codebook", first._codebook)

    @property
    def entries(self) -> torch.Tensor:
        """(M, m)."""
        return self.quantizer.layers[0].codebook

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Indices (B, positions * stages) -> sums of entries (B, positions, m)."""
        return F.embedding(indices.unflatten(-1, (-1, self.stages)), self.entries).sum(-2)

    @torch.no_grad()
    def nearest(self, tokens: torch.Tensor, weights: None = None, exclude: int | None = None) -> torch.Tensor:
        """Tokens (B, positions, m) -> indices (B, positions * stages), chosen one stage after another."""
        residual, chosen = tokens, []
        for _ in range(self.stages):
            chosen.append(nearest_entries(residual, self.entries, weights, exclude))
            residual = residual - F.embedding(chosen[-1], self.entries)
        return torch.stack(chosen, dim=-1).flatten(-2)

    @torch.no_grad()
    def initialize_(self, tokens: torch.Tensor, weights: None = None) -> None:
        """The package's k-means, on a sample of the tokens (n, m)."""
        tokens, _ = sample_tokens(tokens, START_TOKENS * len(self.usage))
        self.quantizer.train()(tokens.unsqueeze(0))
