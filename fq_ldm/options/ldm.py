"""Options of the diffusion model."""

from dataclasses import dataclass

from .errors import check
from .fields import check_positive, option


@dataclass
class LDMConfig:
    """The diffusion model on the FQ-VAE's latents."""

    vae: str = option("", "folder or Hub repository of the trained FQ-VAE, or of a pipeline, whose FQ-VAE is taken")
    vae_subfolder: str | None = option(None, "where in it; by default vqvae in a pipeline, else the folder itself")
    vae_revision: str | None = option(None, "branch, tag or commit of that repository")
    target: str = option(
        "quantized",
        "what the UNet learns: quantized latents, or unquantized ones, which the decoder quantizes",
        choices=["quantized", "unquantized"],
    )
    quantize_samples: bool = option(
        True, "snap sampled latents to the codebook; not for a decoder that was trained on unquantized ones"
    )
    latent_layout: str | None = option(
        None, "image (spatial) or Fourier coefficients (spectral); by default as the FQ-VAE's diffusion_layout"
    )
    latent_patch_size: int | None = option(
        None, "fold patches of this side into channels; by default as the FQ-VAE's diffusion_patch_size"
    )
    start_from: str | None = option(
        None,
        "pipeline, folder or Hub repository, from whose UNet training goes on, at first as it was where "
        "unet_layers_per_block is more than there, or the FQ-VAE has learnt channels beside its; by default from "
        "random weights",
    )
    linear_teacher: str | None = option(
        None,
        "pipeline, folder or Hub repository, whose UNet makes the linear channels: where noise is stronger than the "
        "latents, one that makes learnt channels too learns them from it; by default from images alone",
    )
    own_samples: int = option(
        0,
        "so many samples of start_from's UNet are made, and training is to tell images from them (direct "
        "discriminative optimisation); by default none, and training is to denoise",
    )
    own_samples_beta: float = option(
        0.3, "how much a smaller error says of what is an image; the smaller, the further training goes from start_from"
    )
    distill_steps: int = option(
        0,
        "keep the ways on which own_samples came from their noise, and train to go them in so many steps, as the saved "
        "pipeline will; by default none",
    )
    unet_block_out_channels: list[int] = option([128, 256, 512], "channels of the UNet's levels")
    unet_layers_per_block: int = option(2, "residual blocks in each level")
    unet_attention_levels: list[int] = option([1, 2], "levels with self-attention, counted from 0")
    unet_attention_head_dim: int = option(32, "channels of an attention head")
    unet_norm_num_groups: int = option(32, "groups of the group normalisations")
    unet_dropout: float = option(0.0, "dropout in the residual blocks")
    num_train_timesteps: int = option(1000, "steps of the diffusion")
    beta_schedule: str = option(
        "linear", "noise schedule, by its name in diffusers", choices=["linear", "scaled_linear", "squaredcos_cap_v2"]
    )
    beta_start: float = option(0.0015, "first beta of a linear schedule")
    beta_end: float = option(0.0195, "last beta of a linear schedule")
    prediction_type: str = option("epsilon", "what the UNet predicts", choices=["epsilon", "v_prediction"])
    snr_gamma: float | None = option(None, "min-SNR weighting of the loss; its paper has 5; by default none")
    timestep_sampling: str = option(
        "uniform", "how often each timestep is trained", choices=["uniform", "logit_normal"]
    )
    timestep_logit_mean: float = option(
        0.0, "of logit_normal: 0 is the middle of the noise, at smaller ones less noise is trained oftener"
    )
    label_dropout: float = option(
        0.1, "share of training images whose class is hidden, for guidance; only where there are classes"
    )
    use_ema: bool = option(True, "sample with a running mean of the weights")
    ema_decay: float = option(0.9999, "decay of the running mean, approached as (1 + step) / (10 + step)")
    cache_latents: bool = option(True, "encode the training images once, before training")
    preview_images: int = option(16, "images in a picture of samples")
    preview_inference_steps: int = option(50, "DPM-Solver++ steps for the pictures")
    save_scheduler: str = option(
        "ddpm",
        "scheduler of the saved pipeline: DDPM with all steps, as in the paper, or DPM-Solver++, which needs 20 to 50, "
        "with noise in each step or without (ode)",
        choices=["ddpm", "dpm_solver", "dpm_solver_ode"],
    )
    learnt_temperature: float = option(
        1.0,
        "of the saved pipeline, with dpm_solver_ode: the starting noise of learnt channels is multiplied by it, for "
        "details that fit one another better",
    )
    save_precision: str = option("fp32", "of the UNet's saved weights", choices=["fp32", "fp16"])

    def __post_init__(self):
        check(min(self.unet_attention_levels, default=0) >= 0, "unet_attention_levels", self.unet_attention_levels,
              "must not be negative")  # fmt: skip
        zeros = ("own_samples", "distill_steps", "unet_attention_levels", "unet_dropout", "label_dropout", "ema_decay",
                 "timestep_logit_mean")  # fmt: skip
        check_positive(self, but=zeros)
        for name in ("own_samples", "distill_steps"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative")
        check(0 <= self.unet_dropout < 1, "unet_dropout", self.unet_dropout, "must lie in 0 .. 1")
        check(0 <= self.label_dropout < 1, "label_dropout", self.label_dropout, "must lie in 0 .. 1")
        check(self.preview_inference_steps <= self.num_train_timesteps, "preview_inference_steps",
              self.preview_inference_steps, f"is at most num_train_timesteps, {self.num_train_timesteps}")  # fmt: skip
        check(self.timestep_logit_mean == 0 or self.timestep_sampling == "logit_normal", "timestep_logit_mean",
              self.timestep_logit_mean, "is for timestep_sampling logit_normal")  # fmt: skip
        check(self.learnt_temperature == 1 or self.save_scheduler == "dpm_solver_ode" or self.distill_steps,
              "learnt_temperature", self.learnt_temperature,
              "is for save_scheduler dpm_solver_ode: noise in each step makes that of the start forgotten")  # fmt: skip
        check(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "must lie in 0 .. 1")
