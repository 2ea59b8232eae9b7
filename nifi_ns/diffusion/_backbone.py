"""One frozen diffusion backbone with two adapters, phi_minus (the restorer) and phi_plus (the critic)."""

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nifi_ns.diffusion._adapters import AdapterName, Adapters
from nifi_ns.diffusion._autoencoder import Autoencoder
from nifi_ns.diffusion._compilation import CompileMode, compile_networks
from nifi_ns.diffusion._denoiser import encode_photos, restore_latents
from nifi_ns.diffusion._prompt import DEFAULT_PROMPT, PROMPT_FILE, Prompt
from nifi_ns.diffusion._schedules import Schedule
from nifi_ns.diffusion._sources import placement, reading, resolve
from nifi_ns.diffusion.families import Family, family_of
from nifi_ns.errors import NifiError

NIFI_TINY = "nifi-tiny"
"""Name of the miniature backbone in this package."""
NETWORK_ADAPTER_FILE = "pytorch_lora_weights.safetensors"  # the name that `pipeline.load_lora_weights` looks for
VAE_ADAPTER_FILE = "vae_lora_weights.safetensors"


class Backbone:
    """A frozen diffusion network and autoencoder. With all adapters off, it predicts the real score.

    Images are [B, 3, H, W] in [0, 1]. Latents are [B, C, h, w], scaled to about unit variance. Both are float32 for any
    `dtype` of the weights. Image sides must be multiples of `pixel_multiple`. A timestep `t` is a number for the whole
    batch or a tensor [B], between 0 and 1000. Calls are differentiable in their inputs and in the adapters' parameters.
    A lock serializes them, because switching adapters changes the one shared network.
    """

    def __init__(
        self, name: str, family: Family, vae: nn.Module, prompt: Prompt, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.name = name
        self.family = family
        self.device = device
        self.dtype = dtype
        family.network.to(device).eval()
        self.prompt = prompt.to(device, dtype)
        self._autoencoder = Autoencoder(vae, family, device, dtype)
        self._network_adapters = Adapters(family.network, family.lora_targets, family.component)
        self._lock = threading.RLock()

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
            prompt: a text ("" is valid), or embeddings; default: the folder's prompt.safetensors, else a fixed text.
                The folder's text encoders embed a text on the CPU, and are then freed.

        Raises:
            NifiError: if it cannot be found, reached or read, its family is not supported, or it cannot embed a text.
        """
        source = resolve(str(name))
        if source.packaged:
            dtype = dtype or torch.float32  # equally fast for the miniature, and sharper
        device, dtype = placement(device, dtype)
        name = source.name
        with reading(name):
            import diffusers

            family_class = family_of(source)
            vae_class = source.config("vae/config.json").get("_class_name")
            if vae_class != family_class.vae_class:
                raise NifiError(f"{name} has a {vae_class} in vae/: expected {family_class.vae_class}")
            stored = prompt is None and source.has(PROMPT_FILE)
            if not (stored or isinstance(prompt, Prompt) or source.has("text_encoder/config.json")):
                raise NifiError(
                    f"{name} has no text_encoder/ to embed a prompt with: omit the prompt if the folder has a "
                    f"{PROMPT_FILE}, or use a complete diffusers folder"
                )
            family = family_class.load(source, dtype)
            model: Any = getattr(diffusers, family.vae_class)
            vae = model.from_pretrained(source.location, subfolder="vae", torch_dtype=dtype, use_safetensors=True)
            if stored:
                embedded = Prompt.load(source.file(PROMPT_FILE))
            elif isinstance(prompt, Prompt):
                embedded = prompt
            else:
                embedded = family.encode_prompt(source, DEFAULT_PROMPT if prompt is None else prompt)
        return Backbone(name, family, vae, embedded, device=device, dtype=dtype)

    @property
    def vae(self) -> Any:
        """The autoencoder, a diffusers model."""
        return self._autoencoder.vae

    @property
    def schedule(self) -> Schedule:
        """The noise schedule, which also defines the meaning of the network's output."""
        return self.family.schedule

    @property
    def latent_channels(self) -> int:
        """Number of latent channels C."""
        return self._autoencoder.latent_channels

    @property
    def downsampling(self) -> int:
        """Pixels per latent, along one side."""
        return self._autoencoder.downsampling

    @property
    def pixel_multiple(self) -> int:
        """Image sides must be multiples of this."""
        return self.downsampling * self.family.latent_multiple

    @property
    def max_side(self) -> int | None:
        """Largest image side in pixels that the network accepts; None for no limit."""
        side = self.family.max_latent_side
        return None if side is None else side * self.downsampling

    def signal(self, t: float | Tensor) -> float | Tensor:
        """Return the factor of the latents in x_t, in [0, 1]: a float, or float32 [B] if `t` is a tensor."""
        return self.schedule.signal(t)

    def sigma(self, t: float | Tensor) -> float | Tensor:
        """Return the standard deviation of the noise at `t`: a float, or float32 [B] if `t` is a tensor."""
        return self.schedule.sigma(t)

    def add_noise(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        """Return x_t: latents x0 [B, C, h, w] with `noise` of that shape added at `t`."""
        return self.schedule.add_noise(x0, noise, t)

    def to_x0(self, x_t: Tensor, out: Tensor, t: float | Tensor) -> Tensor:
        """Return the clean latents that `out = predict(x_t, t)` implies."""
        return self.schedule.to_x0(x_t, out, t)

    def to_eps(self, x_t: Tensor, out: Tensor, t: float | Tensor) -> Tensor:
        """Return the noise that `out = predict(x_t, t)` implies."""
        return self.schedule.to_eps(x_t, out, t)

    def encode(self, images: Tensor, adapter: AdapterName | None = None) -> Tensor:
        """Return latents [B, C, h, w] of images [B, 3, H, W]: the posterior's mode, scaled as the family requires.

        `adapter` selects an adapter of the encoder.
        """
        with self._lock:
            return self._autoencoder.encode(images, adapter)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, H, W] of latents [B, C, h, w]: about [0, 1], not clamped."""
        with self._lock:
            return self._autoencoder.decode(latents)

    def autoencode(self, images: Tensor) -> Tensor:
        """Encode and decode images [B, 3, H, W] with the frozen autoencoder."""
        return self.decode(self.encode(images))

    def restore(self, images: Tensor, noise: Tensor, t0: float, attended_photos: Tensor | None = None) -> Tensor:
        """Restore images with one step of phi_minus from `t0`, and return them decoded: [B, 3, H, W], about [0, 1].

        Args:
            images: [B, 3, H, W] in [0, 1].
            noise: [1, C, h, w] or [B, C, h, w], added at t0; zeros for none.
            t0: the timestep.
            attended_photos: [B, R, 3, H, W] photos of other cameras, for self-attention to attend to.
        """
        z = self.encode(images, "phi_minus")
        photos = None if attended_photos is None else encode_photos(self, attended_photos)
        return self.decode(restore_latents(self, z, noise, t0, photos))

    def predict(
        self,
        x_t: Tensor,
        t: float | Tensor,
        adapter: AdapterName | None,
        guidance_scale: float = 1.0,
        num_views: int = 1,
        dropped: Tensor | None = None,
    ) -> Tensor:
        """Return the network's output [B, C, h, w] for noisy latents x_t [B, C, h, w] at `t`.

        Args:
            x_t: the latents.
            t: their timestep.
            adapter: the adapter to switch on; None for the real score.
            guidance_scale: if not 1, extrapolate from the null prompt's output to the fixed prompt's, which doubles the
                work.
            num_views: this many consecutive samples are views of one scene; self-attention attends to all of them.
            dropped: [B] samples that get the null prompt instead of the fixed one.
        """
        batch = len(x_t)
        timestep = self.schedule.timestep(t)
        if isinstance(timestep, Tensor):
            timestep = timestep.to(self.device).expand(batch)
        else:
            timestep = torch.full((batch,), timestep, device=self.device)
        x_t = x_t.to(self.device, self.dtype)
        with self._lock, self.family.attend_across(num_views):
            self._network_adapters.use(adapter)
            out = self.family(x_t, timestep, self.prompt.expand(batch, dropped)).float()
            if guidance_scale != 1:
                null = self.family(x_t, timestep, self.prompt.null.expand(batch)).float()
                out = null + guidance_scale * (out - null)
        return out

    def use_decoder(self, name: str | Path) -> None:
        """Decode with a small autoencoder instead of the backbone's from now on: see `TinyDecoder`.

        Raises:
            NifiError: if it cannot be loaded, or is for other latents.
        """
        self._autoencoder.use_decoder(name)

    def compile(self, mode: CompileMode) -> None:
        """Compile the networks with `torch.compile` from now on: slow at first for each image size, then faster.

        Raises:
            NifiError: if there is no C++ compiler.
        """
        compile_networks((self.family.network, *self._autoencoder.modules), mode)

    def add_adapters(self, rank: int, alpha: float, vae_encoder: bool = True) -> None:
        """Add phi_minus and phi_plus to the network, and phi_minus to the VAE encoder; no effect until trained."""
        self._network_adapters.add("phi_minus", rank, alpha)
        self._network_adapters.add("phi_plus", rank, alpha)
        if vae_encoder:
            self._autoencoder.adapters.add("phi_minus", rank, alpha)

    def checkpoint_gradients(self) -> None:
        """Recompute activations of network and autoencoder in backward passes from now on: less memory, slower.

        Backward passes then switch adapters, in whatever thread they run: not for training in several threads.
        """
        self._network_adapters.checkpoint_gradients(lambda: self.family.attend_across(self.family.num_views))
        self._autoencoder.adapters.checkpoint_gradients()

    def adapter_parameters(self, name: AdapterName) -> list[nn.Parameter]:
        """Return an adapter's parameters, the network's before the encoder's: float32, trainable even while off."""
        return [*self._network_adapters.parameters(name), *self._autoencoder.adapters.parameters(name)]

    def adapter_state_dict(self, name: AdapterName) -> dict[str, Tensor]:
        """Return an adapter's tensors, without a copy, under diffusers' LoRA keys (`transformer.`, `unet.`, `vae.`)."""
        return {**self._network_adapters.state_dict(name), **self._autoencoder.adapters.state_dict(name)}

    def load_adapter_state_dict(self, name: AdapterName, state: dict[str, Tensor]) -> None:
        """Copy `state` into an adapter that was added before.

        Raises:
            NifiError: if layers are missing or unknown, or shapes differ.
        """
        self._network_adapters.load_state_dict(name, state)
        self._autoencoder.adapters.load_state_dict(name, state)

    def add_adapter(self, name: AdapterName, state: dict[str, Tensor], source: str) -> None:
        """Add an adapter of network and encoder from tensors under diffusers' LoRA keys, with the rank as alpha.

        Layers without tensors are not adapted.

        Raises:
            NifiError: if layers are unknown, shapes differ, or network or encoder has no tensors; it names `source`.
        """
        self._network_adapters.add_tensors(name, state, source)
        self._autoencoder.adapters.add_tensors(name, state, source)

    def save_adapter(self, directory: Path | str, name: AdapterName) -> None:
        """Write an adapter for diffusers.

        `pipeline.load_lora_weights(directory)` loads the network's part (pytorch_lora_weights.safetensors), and
        `vae.load_lora_adapter(directory, prefix="vae", weight_name="vae_lora_weights.safetensors")` the encoder's.
        """
        self._network_adapters.save(Path(directory) / NETWORK_ADAPTER_FILE, name)
        if name in self._autoencoder.adapters.names:
            self._autoencoder.adapters.save(Path(directory) / VAE_ADAPTER_FILE, name)
        else:
            (Path(directory) / VAE_ADAPTER_FILE).unlink(missing_ok=True)  # from an adapter saved here earlier

    def load_adapter(self, directory: Path | str, name: AdapterName) -> None:
        """Add adapter `name` from files written by `save_adapter`, with their rank and alpha.

        Raises:
            NifiError: if a file is missing, damaged (CorruptFileError) or made for another backbone.
        """
        self._network_adapters.load(Path(directory) / NETWORK_ADAPTER_FILE, name)
        if (Path(directory) / VAE_ADAPTER_FILE).is_file():
            self._autoencoder.adapters.load(Path(directory) / VAE_ADAPTER_FILE, name)
