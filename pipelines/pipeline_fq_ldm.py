"""Image generation, of classes where there are some: diffusion on the quantized frequency latents of an FQ-VAE."""

import math
from collections.abc import Callable

import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor

from fq_ldm.own_code import OwnCode

from .arguments import OF_UNET, check_callback, check_inputs, check_start, check_steps, how_many
from .classes import ClassLabels, class_numbers
from .guidance import PAG_INTERVAL, Guidance, Interval, check_attention_guidance
from .known_images import Images, KnownImages
from .loading import PackageLoading
from .schedules import adds_noise, check_scheduler, default_steps, schedule_of, step_options
from .temperatures import check_learnt_temperature, check_temperatures

# What `FQLDMPipeline` is saved with beside its components.
OPTIONS = (
    "quantize_samples", "class_names", "class_shares", "num_inference_steps", "learnt_temperature", "pag_scale",
    "pag_threshold",
)  # fmt: skip
DECODE_BATCH_SIZE = 64  # images decoded at a time: the decoder works at full resolution


class FQLDMPipeline(OwnCode, PackageLoading, DiffusionPipeline):
    """Samples images: noise -> UNet and scheduler -> FQ-VAE latents -> quantize and decode.

    Args:
        vqvae: a trained `FQModel`, or a baseline.
        unet: denoises the FQ-VAE's diffusion latents; its channels and size are the model's
            `diffusion_latent_shape`.
        scheduler: with the noise schedule and the prediction of the training. Others are made from its configuration;
            `schedules.TRIED` names those that work. None may clip the predicted sample to [-1, 1], since standardised
            latents reach further: `clip_sample=False`.
        quantize_samples: snap sampled latents to the codebook before they are decoded, which takes small errors of
            the UNet away; not for a decoder that was trained on unquantized latents.
        class_names: of the classes that the UNet was trained with, or None. Its last class embedding stands for
            "none of them".
        class_shares: how often each class occurs in the training data.
        num_inference_steps: by default, of a UNet that was trained for so many; None for those of the scheduler.
        learnt_temperature: by default, of an FQ-VAE with learnt channels.
        pag_scale: the default of calls, for a UNet with attention.
        pag_threshold: the default of calls, found with this UNet (`attention_change`); None guides every image.

    Raises:
        ValueError: if the UNet's channels are not those of the diffusion latents, or its classes not those named,
            if there are more steps than in training, or no learnt channels for their temperature, or no attention.
    """

    model_cpu_offload_seq = "unet"
    # It is small, and its tokens, codebook and latents are reached through methods: offloading finds only `forward`.
    _exclude_from_cpu_offload = ["vqvae"]
    _callback_tensor_inputs = ["latents"]
    package_only = ("fq_ldm.pipelines.loading",)

    def __init__(
        self,
        vqvae: ModelMixin,  # a `TokenAutoencoder`, from wherever its code was loaded
        unet: UNet2DModel,
        scheduler: SchedulerMixin,
        quantize_samples: bool = True,
        class_names: list[str] | None = None,
        class_shares: list[float] | None = None,
        num_inference_steps: int | None = None,
        learnt_temperature: float = 1.0,
        pag_scale: float = 0.0,
        pag_threshold: float | None = None,
    ):
        super().__init__()
        channels = vqvae.diffusion_latent_shape[0]
        if unet.config.in_channels != channels or unet.config.out_channels != channels:
            raise ValueError(
                f"the UNet maps {unet.config.in_channels} to {unet.config.out_channels} channels, but the diffusion "
                f"latents of this FQ-VAE have {channels}: was the UNet trained with another FQ-VAE?"
            )
        embeddings, named = unet.config.num_class_embeds or 0, len(class_names or ())
        if embeddings != (named + 1 if named else 0) or len(class_shares or ()) != named:
            raise ValueError(
                f"the UNet has {embeddings} class embeddings, one of them for no class, but there are {named} "
                f"class_names and {len(class_shares or ())} class_shares"
            )
        most = scheduler.config.num_train_timesteps
        if num_inference_steps is not None and not 1 <= num_inference_steps <= most:
            raise ValueError(f"num_inference_steps must lie in 1 .. {most}, or be None, not {num_inference_steps}")
        check_learnt_temperature(learnt_temperature, vqvae)
        check_attention_guidance(pag_scale, math.inf if pag_threshold is None else pag_threshold, unet)
        if pag_threshold == math.inf:
            raise ValueError("pag_threshold is saved with the pipeline: to guide every image give None, not infinity")
        self.register_modules(vqvae=vqvae, unet=unet, scheduler=scheduler)
        self.register_to_config(
            quantize_samples=quantize_samples, class_names=class_names, class_shares=class_shares,
            num_inference_steps=num_inference_steps, learnt_temperature=learnt_temperature,
            pag_scale=pag_scale, pag_threshold=pag_threshold,
        )  # fmt: skip
        self._trained_schedule = schedule_of(scheduler)
        self._interrupt = False
        self._guidance: Guidance | None = None

    @classmethod
    def from_pipe(cls, pipeline: "FQLDMPipeline", **kwargs) -> "FQLDMPipeline":
        """A pipeline with the components and options of another; arguments of `__init__` replace them.

        The same UNet knows the same noise and the same latents: others are refused. Another UNet leaves out steps and
        guidance, which were found for that one.
        """
        other = kwargs.get("unet", pipeline.unet) is not pipeline.unet
        made = cls(**(pipeline.components | pipeline.options | (OF_UNET if other else {}) | kwargs))
        if not other:
            made._trained_schedule = pipeline._trained_schedule
            if not made.vqvae.diffusion_view.resembles(pipeline.vqvae.diffusion_view):
                raise ValueError("vqvae: has other diffusion latents than those that the UNet was trained on")
        return made

    def with_code(self, config: dict, module: str) -> dict:
        """The index with the files that diffusers finds the pipeline's and the FQ-VAE's code in."""
        config = config | {"_class_name": [module, type(self).__name__]}
        if (code := self.vqvae.own_code()) is not None:
            config["vqvae"] = [code[0], type(self.vqvae).__name__]
        return config

    @property
    def num_classes(self) -> int:
        """How many classes there are to ask for; 0 for an unconditional pipeline."""
        return len(self.config.class_names or ())

    @property
    def interrupt(self) -> bool:
        """Whether a callback has asked to stop: `pipeline._interrupt = True` leaves the remaining steps out."""
        return self._interrupt

    @property
    def options(self) -> dict:
        """What `__init__` takes beside the components."""
        return {name: self.config[name] for name in OPTIONS}

    @property
    def attention_change(self) -> torch.Tensor | None:
        """What `pag_threshold` is compared with, of the images made last: (num_images,), or None if not guided so.

        It is measured in the learnt channels, or in all where none is learnt, at the first guided step.
        """
        return None if self._guidance is None else self._guidance.attention_change

    @torch.no_grad()
    def __call__(
        self,
        num_images: int | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        eta: float = 0.0,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: tuple[str, ...] = ("latents",),
        class_labels: ClassLabels = None,
        guidance_scale: float = 1.0,
        guidance_interval: Interval = (0.0, 1.0),
        image: Images | None = None,
        strength: float | None = None,
        mask_image: Images | None = None,
        batch_size: int | None = None,
        temperature: float = 1.0,
        learnt_temperature: float | None = None,
        pag_scale: float | None = None,
        pag_interval: Interval = PAG_INTERVAL,
        pag_threshold: float | None = None,
    ) -> ImagePipelineOutput | tuple:
        """Generate images.

        Args:
            num_images: how many; by default as many as `latents` or images are given, or 1.
            num_inference_steps: denoising steps; by default those that the UNet was distilled for, or those of the
                training (1000) for `DDPMScheduler`, as in the paper, 20 for DPM-Solver and UniPC, 50 for others.
            generator: one generator for the batch, or a list with one for each image. An image made with a
                generator of its own does not depend on the batch it is made in, but for rounding, which may put one
                at `pag_threshold` on the other side.
            eta: noise added at each step, from 0 (none) to 1, for schedulers that have it (DDIM).
            latents: starting noise of unit variance (num_images, C, H, W), drawn from `generator` if None.
            output_type: "pil" (list of images), "np" (num_images, H, W, c) or "pt" (num_images, c, H, W),
                the last two float32 in [0, 1]; or "latent": the sampled latents (num_images, C, H, W).
            return_dict: return an `ImagePipelineOutput`, else a tuple with the images.
            callback_on_step_end: called after each step as `callback(pipeline, step, timestep, tensors)`; a
                "latents" in the dictionary that it returns replaces the current ones.
            callback_on_step_end_tensor_inputs: names in `tensors`; only "latents" exists.
            class_labels: a class by number or name, for all images, or a list or tensor with one for each; None draws
                classes as often as they occur in the training data.
            guidance_scale: of classifier-free guidance (Ho & Salimans 2022): 1 for none; larger ones make classes
                plainer and samples more alike, and evaluate the UNet twice as often.
            guidance_interval: guide only while the timestep lies between these shares of the noise, 0 without noise
                and 1 all noise; the ends cost diversity (Kynkäänniemi et al. 2024).
            image: start from images instead of noise: PIL images, arrays (n, H, W, c) or tensors (n, c, H, W) in
                [0, 1], one or one for each.
            strength: how much of the noise they are given, in 0 .. 1, to the nearest step: 1 leaves hardly any of
                them. By default 0.6, and 1 with a mask.
            mask_image: keep the pixels of `image` where this is 0, or black, and make those anew where it is 1; masks
                of one channel, given as images are.
            batch_size: what diffusers' unconditional pipelines call `num_images`; give one of the two.
            temperature: of the starting noise, whose coarsest waves are multiplied by it. Below 1 fewer images are
                broken, and all are more alike. For schedulers that add no noise in their steps, which would make the
                starting noise forgotten.
            learnt_temperature: of the starting noise of learnt channels, all waves of it, for such schedulers: with
                these by default what the pipeline was saved with, with others 1. Below 1 details fit one another
                better and textures are smoother; who is shown changes little, since the linear channels say that.
            pag_scale: of perturbed-attention guidance (Ahn et al. 2024), away from what the UNet predicts where every
                place attends to itself alone: 0 for none, and by default what the pipeline was saved with. Larger ones
                make parts of an image fit one another, and images more alike; guided steps take up to twice as long.
                For UNets with attention.
            pag_interval: guide so only while the timestep lies between these shares of the noise.
            pag_threshold: guide so only images whose `attention_change` is below, by default what the pipeline was
                saved with: `math.inf` for all. Images that break are oftener below; those above stay as they are.

        Returns:
            `ImagePipelineOutput` with `images`, or `(images,)`.

        Raises:
            ValueError: for an argument that fits neither the pipeline nor its scheduler.
        """
        num_images = how_many(num_images, batch_size, latents, image)
        check_scheduler(self.scheduler, self._trained_schedule)
        shape = (num_images, *self.vqvae.diffusion_latent_shape)
        check_inputs(num_images, generator, latents, shape, output_type)
        check_callback(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        check_steps(num_inference_steps, self.scheduler)
        step_kwargs = step_options(self.scheduler, generator, eta)
        self._check_classes(class_labels, guidance_scale)
        predict = self._guide(guidance_scale, guidance_interval, pag_scale, pag_interval, pag_threshold)
        check_start(image, strength, mask_image)
        check_temperatures(temperature, learnt_temperature, self.vqvae, self.scheduler, eta, image)
        device = self._execution_device

        labels = self._labels(class_labels, num_images, generator, device)
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        latents = latents.to(device, torch.float32)  # schedulers that count in sigmas begin beyond float16's range

        self.scheduler.set_timesteps(num_inference_steps or self._own_steps(), device=device)
        noise, known, timesteps = latents, None, self.scheduler.timesteps
        self._interrupt = False
        if image is None:
            latents = self._cooled(noise, temperature, learnt_temperature, eta) * self.scheduler.init_noise_sigma
            if hasattr(self.scheduler, "set_begin_index"):  # some would look the first timestep up, and find two
                self.scheduler.set_begin_index(0)
        else:
            quantize = self.config.quantize_samples
            known = KnownImages(self.vqvae, image, mask_image, num_images, quantize, device)
            timesteps, latents = known.start(self.scheduler, noise, strength or (0.6 if mask_image is None else 1.0))

        for i, t in enumerate(self.progress_bar(timesteps)):
            if self.interrupt:
                continue
            model_input = self.scheduler.scale_model_input(latents, t)
            prediction = predict(model_input.to(self.unet.dtype), t, labels)
            latents = self.scheduler.step(prediction.float(), t, latents, **step_kwargs).prev_sample
            if known is not None:
                following = timesteps[i + 1] if i + 1 < len(timesteps) else None
                latents = known.keep_latents(latents, self.scheduler, following, generator)
            if callback_on_step_end is not None:
                tensors = dict.fromkeys(callback_on_step_end_tensor_inputs, latents)
                latents = (callback_on_step_end(self, i, t, tensors) or {}).get("latents", latents)

        images = latents if output_type == "latent" else self._finished(latents, generator, known, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _labels(self, class_labels: ClassLabels, count: int, generator, device: torch.device) -> torch.Tensor | None:
        if not self.num_classes:
            return None
        classes = (self.config.class_names, self.config.class_shares)
        return class_numbers(class_labels, count, *classes, generator).to(device)

    def _guide(self, guidance_scale, guidance_interval, pag_scale, pag_interval, pag_threshold) -> Guidance:
        self._guidance = None  # a call that is refused has changed nothing
        scale, threshold = self.own_attention_guidance(pag_scale, pag_threshold)
        view = self.vqvae.diffusion_view
        channels = slice(view.linear_channels if view.has_learnt_channels else 0, None)
        self._guidance = Guidance(
            self.unet, self.scheduler.alphas_cumprod, guidance_scale, guidance_interval, scale, pag_interval, threshold,
            channels,
        )  # fmt: skip
        return self._guidance

    def own_attention_guidance(self, scale: float | None, threshold: float | None) -> tuple[float, float]:
        """`pag_scale` and `pag_threshold` as given, or those that the pipeline was saved with; refuses wrong ones."""
        scale = self.config.pag_scale if scale is None else scale
        if scale == 0 and threshold is not None:
            raise ValueError("pag_threshold says whom attention guides, and with pag_scale=0 it guides none")
        threshold = self.config.pag_threshold if threshold is None else threshold
        threshold = math.inf if threshold is None else threshold
        check_attention_guidance(scale, threshold, self.unet)
        return scale, threshold

    def own_learnt_temperature(self, eta: float = 0.0) -> float:
        """What `learnt_temperature` is by default: of no use, and 1, where steps add noise."""
        return 1.0 if adds_noise(self.scheduler, eta) else self.config.learnt_temperature

    def _own_steps(self) -> int:
        return self.config.num_inference_steps or default_steps(self.scheduler)

    def _cooled(self, noise: torch.Tensor, temperature: float, learnt: float | None, eta: float) -> torch.Tensor:
        learnt = self.own_learnt_temperature(eta) if learnt is None else learnt
        return noise if temperature == learnt == 1 else self.vqvae.diffusion_view.temper(noise, temperature, learnt)

    def _finished(self, latents: torch.Tensor, generator, known: KnownImages | None, output_type: str):
        """Diffusion latents -> images of a type, with the known pixels in their places."""
        images = self.decode(latents, generator)
        if known is not None:
            images = known.keep_pixels(images)
        if output_type == "pt":
            return images
        images = VaeImageProcessor.pt_to_numpy(images)
        return self.numpy_to_pil(images) if output_type == "pil" else images

    @torch.no_grad()
    def decode(
        self, latents: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None = None
    ) -> torch.Tensor:
        """Diffusion latents (n, C, H, W) -> images (n, c, H, W), float32 in [0, 1], some at a time.

        Args:
            latents: sampled ones, as `output_type="latent"` gives them; snapped to the codebook first if the pipeline
                has `quantize_samples`.
            generator: of the noise of a decoder that paints, one for all or one for each image; None for the same noise
                in every image.

        Raises:
            ValueError: if latents or generators are not of that shape and number.
        """
        check_inputs(len(latents), generator, latents, (len(latents), *self.vqvae.diffusion_latent_shape), "pt")
        latents = latents.to(self.vqvae.device)
        kept, images = not self.config.quantize_samples, []
        for start in range(0, len(latents), DECODE_BATCH_SIZE):
            part = slice(start, start + DECODE_BATCH_SIZE)
            own = generator[part] if isinstance(generator, list) else generator
            decoded = self.vqvae.decode(
                self.vqvae.from_diffusion_latents(latents[part]), force_not_quantize=kept, generator=own
            )
            images.append((decoded.sample.float() / 2 + 0.5).clamp(0, 1))
        return torch.cat(images)

    def _check_classes(self, class_labels, guidance_scale):
        if not self.num_classes and (class_labels is not None or guidance_scale != 1):
            raise ValueError(
                "this pipeline knows no classes: leave class_labels and guidance_scale out, or train with label_column"
            )
