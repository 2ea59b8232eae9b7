"""One frozen diffusion backbone with two adapters, phi_minus (the restorer) and phi_plus (the critic)."""

import math
import threading
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nifi_ns.diffusion._adapters import Adapters
from nifi_ns.diffusion._compilation import CompileMode, compile_networks
from nifi_ns.diffusion._cross_view import across_views
from nifi_ns.diffusion._decoders import TinyDecoder
from nifi_ns.diffusion._denoiser import encode_views, restore_latents
from nifi_ns.diffusion._families import FAMILIES, Family
from nifi_ns.diffusion._prompt import DEFAULT_PROMPT, PROMPT_FILE, Prompt
from nifi_ns.diffusion._schedules import Schedule
from nifi_ns.diffusion._sources import placement, reading, resolve
from nifi_ns.errors import NifiError

AdapterName = Literal["phi_minus", "phi_plus"]
NIFI_TINY = "nifi-tiny"
NETWORK_ADAPTER_FILE = "pytorch_lora_weights.safetensors"
VAE_ADAPTER_FILE = "vae_lora_weights.safetensors"
# Every convolution of the encoder, its mid attention and quant_conv, as in the paper's code; nothing of the decoder.
_WITHOUT_ENCODER = f"leave the prompt away, if the folder has a {PROMPT_FILE}, or give a whole diffusers folder"
_VAE_TARGETS = r"(encoder\.(.*\.)?(conv(1|2|_in|_out|_shortcut)?|to_q|to_k|to_v|to_out\.0)|quant_conv)"


class Backbone:
    """A frozen diffusion network and autoencoder. With every adapter off, its predictions are the real score's.

    Images are [B, 3, H, W] in [0, 1], latents [B, C, h, w] scaled to about unit variance, and both float32 whatever
    `dtype` the weights have. Sides of images must be multiples of `pixel_multiple`. A timestep `t` is a number for the
    whole batch or a tensor [B], between 0 and 1000. Calls are differentiable in their inputs and in the adapters'
    parameters, and serialized by a lock, because which adapter is on is state of the one network they share.
    """

    def __init__(
        self, name: str, family: Family, vae: nn.Module, prompt: Prompt, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.name = name
        self.family = family
        self.device = device
        self.dtype = dtype
        family.network.to(device).eval()
        self.vae: Any = vae.to(device).eval()
        self.prompt = prompt.to(device, dtype)
        self._network_adapters = Adapters(family.network, family.lora_targets, family.component)
        self._vae_adapters = Adapters(vae, _VAE_TARGETS, "vae")
        self._lock = threading.RLock()
        self._decoder: TinyDecoder | None = None

    @staticmethod
    def from_pretrained(
        name: str | Path,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        prompt: Prompt | str | None = None,
    ) -> "Backbone":
        """Load a backbone from a diffusers folder, a hub id, or "nifi-tiny" (the miniature in this package).

        Args:
            name: what to load: subfolders transformer or unet, vae, scheduler, and the text encoders only if needed.
            device: default: CUDA if there is a GPU, else the CPU.
            dtype: of the frozen weights; default: bfloat16 on CUDA, float32 on the CPU and for nifi-tiny.
            prompt: a text ("" is one), or embeddings; default: the folder's prompt.safetensors, else a fixed text. A
                text is embedded by the folder's text encoders, on the CPU; then they are let go.

        Raises:
            NifiError: if it cannot be found, reached, read, is of no supported family, or cannot embed a text.
        """
        if str(name) == NIFI_TINY:
            dtype = dtype or torch.float32  # as fast for the miniature, and sharper
        device, dtype = placement(device, dtype)
        source = resolve(str(name))
        name = source.name
        with reading(name):
            family_class = next((f for f in FAMILIES if source.has(f"{f.component}/config.json")), None)
            if family_class is None:
                raise NifiError(f"{name} is no diffusers folder: expected transformer/ or unet/, vae/ and scheduler/")
            from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

            model_class = source.config(f"{family_class.component}/config.json").get("_class_name")
            if model_class != family_class.model_class:
                raise NifiError(
                    f"{name} is a {model_class}: supported are {', '.join(f.model_class for f in FAMILIES)}"
                )
            stored = prompt is None and source.has(PROMPT_FILE)
            if not (stored or isinstance(prompt, Prompt) or source.has("text_encoder/config.json")):
                raise NifiError(f"{name} has no text_encoder/ to embed a prompt with: {_WITHOUT_ENCODER}")
            family = family_class.load(source.location, dtype)
            vae: Any = AutoencoderKL.from_pretrained(
                source.location, subfolder="vae", torch_dtype=dtype, use_safetensors=True
            )
            if stored:
                prompt = Prompt.load(source.file(PROMPT_FILE))
            elif not isinstance(prompt, Prompt):
                prompt = family.encode_prompt(source, DEFAULT_PROMPT if prompt is None else prompt)
        return Backbone(name, family, vae, prompt, device=device, dtype=dtype)

    @property
    def schedule(self) -> Schedule:
        """The forward process and the meaning of the network's output."""
        return self.family.schedule

    @property
    def latent_channels(self) -> int:
        """C of the latents."""
        return self.vae.config.latent_channels

    @property
    def downsampling(self) -> int:
        """Pixels per latent, along a side."""
        return self._patch * 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def _patch(self) -> int:
        """The side of the patches the autoencoder takes as channels: 1 (pixels), but 4 for nifi-tiny."""
        return math.isqrt(self.vae.config.in_channels // 3)

    @property
    def pixel_multiple(self) -> int:
        """Image sides must be a multiple of this."""
        return self.downsampling * self.family.latent_multiple

    @property
    def max_side(self) -> int | None:
        """The largest image side in pixels that the network accepts, if there is a limit."""
        side = self.family.max_latent_side
        return None if side is None else side * self.downsampling

    def signal(self, t: float | Tensor) -> float | Tensor:
        """What is left of the latents at `t`, a factor in [0, 1]: a float, or float32 [B] where `t` is a tensor."""
        return self.schedule.signal(t)

    def sigma(self, t: float | Tensor) -> float | Tensor:
        """The standard deviation of the noise at `t`: a float, or float32 [B] where `t` is a tensor."""
        return self.schedule.sigma(t)

    def add_noise(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        """The forward process: latents x0 [B, C, h, w] with `noise` of that shape at `t`."""
        return self.schedule.add_noise(x0, noise, t)

    def to_x0(self, x_t: Tensor, out: Tensor, t: float | Tensor) -> Tensor:
        """The clean latents meant by `out = predict(x_t, t)`."""
        return self.schedule.to_x0(x_t, out, t)

    def to_eps(self, x_t: Tensor, out: Tensor, t: float | Tensor) -> Tensor:
        """The noise meant by `out = predict(x_t, t)`."""
        return self.schedule.to_eps(x_t, out, t)

    def encode(self, images: Tensor, adapter: AdapterName | None = None) -> Tensor:
        """Latents [B, C, h, w] of images [B, 3, H, W]: the posterior's mode, scaled; `adapter` is the encoder's."""
        with self._lock:
            self._vae_adapters.use(adapter)
            pixels = F.pixel_unshuffle(images.to(self.device, self.dtype) * 2 - 1, self._patch)
            posterior = self.vae.encode(pixels).latent_dist
        # SD3's shift_factor is left out on purpose: the paper's inference code (github.com/ceteke/nifi) scales only.
        return posterior.mode().float() * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] of latents [B, C, h, w]: about [0, 1], not clamped."""
        if self._decoder is not None:
            with self._lock:
                return self._decoder(latents.to(self.device, self.dtype)).float()
        scaled = (latents / self.vae.config.scaling_factor).to(self.device, self.dtype)
        with self._lock:
            pixels = self.vae.decode(scaled, return_dict=False)[0]
        return F.pixel_shuffle(pixels, self._patch).float() / 2 + 0.5

    def restore(self, images: Tensor, noise: Tensor, t0: float, attended_photos: Tensor | None = None) -> Tensor:
        """One step of phi_minus from `t0`, decoded: restored images [B, 3, H, W], about [0, 1], of such.

        Args:
            images: what to restore.
            noise: [1, C, h, w] or [B, C, h, w], added at t0; zeros for none.
            t0: the timestep.
            attended_photos: [B, R, 3, H, W] photos of other cameras, that self-attention sees beside the images.
        """
        z = self.encode(images, "phi_minus")
        others = None if attended_photos is None else encode_views(self, attended_photos)
        return self.decode(restore_latents(self, z, noise, t0, others))

    def predict(
        self,
        x_t: Tensor,
        t: float | Tensor,
        adapter: AdapterName | None,
        guidance_scale: float = 1.0,
        views: int = 1,
        dropped: Tensor | None = None,
    ) -> Tensor:
        """The network's output [B, C, h, w] for noisy latents x_t at `t`, with `adapter` on (None: the real score).

        A guidance_scale other than 1 extrapolates from the null prompt's output to the fixed prompt's: twice the work.
        Of more than one view, those of a sample follow one another, and self-attention sees all of them.
        Samples that `dropped` [B] says get the null prompt in place of the fixed one.
        """
        batch = len(x_t)
        timestep = torch.as_tensor(self.schedule.timestep(t), dtype=torch.float32, device=self.device).expand(batch)
        x_t = x_t.to(self.device, self.dtype)
        with self._lock, across_views(self.family.network, views):
            self._network_adapters.use(adapter)
            out = self.family(x_t, timestep, self.prompt.expand(batch, dropped)).float()
            if guidance_scale != 1:
                null = self.family(x_t, timestep, self.prompt.null.expand(batch)).float()
                out = null + guidance_scale * (out - null)
        return out

    def use_decoder(self, name: str | Path) -> None:
        """From now on, decode with a small autoencoder in place of the backbone's: see `TinyDecoder`.

        Raises:
            NifiError: if it cannot be had, or is for other latents.
        """
        self._decoder = TinyDecoder.from_pretrained(name, self.vae.config, self.downsampling)
        self._decoder.to(self.device, self.dtype)

    def compile(self, mode: CompileMode) -> None:
        """From now on, compile the networks by `torch.compile` for each new size of image: slow at first, then faster.

        Raises:
            NifiError: if there is no C++ compiler.
        """
        decoder = self.vae.decoder if self._decoder is None else self._decoder
        compile_networks((self.family.network, self.vae.encoder, decoder), mode)

    def add_adapters(self, rank: int, alpha: float, vae_encoder: bool = True) -> None:
        """Add phi_minus and phi_plus to the network, phi_minus to the VAE encoder; no change until trained."""
        self._network_adapters.add("phi_minus", rank, alpha)
        self._network_adapters.add("phi_plus", rank, alpha)
        if vae_encoder:
            self._vae_adapters.add("phi_minus", rank, alpha)

    def checkpoint_gradients(self) -> None:
        """From now on, backward passes compute again what they need, in network and autoencoder: less memory, slower.

        They then switch adapters, from whatever thread they run in: not for a backbone that several threads train.
        """
        self._network_adapters.checkpoint_gradients()
        self._vae_adapters.checkpoint_gradients()

    def adapter_parameters(self, name: AdapterName) -> list[nn.Parameter]:
        """An adapter's parameters, the network's before the encoder's: float32, trainable whichever adapter is on."""
        return [*self._network_adapters.parameters(name), *self._vae_adapters.parameters(name)]

    def adapter_state_dict(self, name: AdapterName) -> dict[str, Tensor]:
        """The tensors of an adapter, not copied, under diffusers' LoRA keys (`transformer.`, `unet.` and `vae.`)."""
        return {**self._network_adapters.state_dict(name), **self._vae_adapters.state_dict(name)}

    def load_adapter_state_dict(self, name: AdapterName, state: dict[str, Tensor]) -> None:
        """Copy `state` into an adapter that was added.

        Raises:
            NifiError: if layers are missing or unknown, or shapes differ.
        """
        self._network_adapters.load_state_dict(name, state)
        self._vae_adapters.load_state_dict(name, state)

    def add_adapter(self, name: AdapterName, state: dict[str, Tensor], source: str) -> None:
        """Add an adapter of the network and of the encoder, with tensors under diffusers' LoRA keys; alpha is the rank.

        Layers of which there are none are not adapted.

        Raises:
            NifiError: naming `source`, if layers are unknown, shapes differ, or one of the two has none.
        """
        self._network_adapters.add_tensors(name, state, source)
        self._vae_adapters.add_tensors(name, state, source)

    def save_adapter(self, directory: Path | str, name: AdapterName) -> None:
        """Write an adapter as diffusers reads it.

        `pipeline.load_lora_weights(directory)` finds the network's part (pytorch_lora_weights.safetensors), and
        `vae.load_lora_adapter(directory, prefix="vae", weight_name="vae_lora_weights.safetensors")` the encoder's.
        """
        self._network_adapters.save(Path(directory) / NETWORK_ADAPTER_FILE, name)
        if name in self._vae_adapters.names:
            self._vae_adapters.save(Path(directory) / VAE_ADAPTER_FILE, name)
        else:
            (Path(directory) / VAE_ADAPTER_FILE).unlink(missing_ok=True)  # of an adapter saved here before

    def load_adapter(self, directory: Path | str, name: AdapterName) -> None:
        """Add what `save_adapter` wrote as adapter `name`, with its rank and alpha.

        Raises:
            NifiError: if a file is missing, damaged (CorruptFileError) or made for another backbone.
        """
        self._network_adapters.load(Path(directory) / NETWORK_ADAPTER_FILE, name)
        if (Path(directory) / VAE_ADAPTER_FILE).is_file():
            self._vae_adapters.load(Path(directory) / VAE_ADAPTER_FILE, name)
