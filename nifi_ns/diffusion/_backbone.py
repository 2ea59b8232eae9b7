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
"""Name of the miniature that comes with this package."""
NETWORK_ADAPTER_FILE = "pytorch_lora_weights.safetensors"  # the name that `pipeline.load_lora_weights` looks for
VAE_ADAPTER_FILE = "vae_lora_weights.safetensors"


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
            prompt: a text ("" is one), or embeddings; default: the folder's prompt.safetensors, else a fixed text. A
                text is embedded by the folder's text encoders, on the CPU, which are then freed.

        Raises:
            NifiError: if it cannot be found, reached, read, is of no supported family, or cannot embed a text.
        """
        source = resolve(str(name))
        if source.packaged:
            dtype = dtype or torch.float32  # as fast for the miniature, and sharper
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
                    f"{PROMPT_FILE}, or give a whole diffusers folder"
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
        """The autoencoder, a model of diffusers."""
        return self._autoencoder.vae

    @property
    def schedule(self) -> Schedule:
        """The forward process and the meaning of the network's output."""
        return self.family.schedule

    @property
    def latent_channels(self) -> int:
        """C of the latents."""
        return self._autoencoder.latent_channels

    @property
    def downsampling(self) -> int:
        """Pixels per latent, along a side."""
        return self._autoencoder.downsampling

    @property
    def pixel_multiple(self) -> int:
        """Image sides must be a multiple of this."""
        return self.downsampling * self.family.latent_multiple

    @property
    def max_side(self) -> int | None:
        """The largest image side in pixels that the network accepts; None for no limit."""
        side = self.family.max_latent_side
        return None if side is None else side * self.downsampling

    def signal(self, t: float | Tensor) -> float | Tensor:
        """Return what is left of the latents at `t`, in [0, 1]: a float, or float32 [B] where `t` is a tensor."""
        return self.schedule.signal(t)

    def sigma(self, t: float | Tensor) -> float | Tensor:
        """Return the standard deviation of the noise at `t`: a float, or float32 [B] where `t` is a tensor."""
        return self.schedule.sigma(t)

    def add_noise(self, x0: Tensor, noise: Tensor, t: float | Tensor) -> Tensor:
        """Return latents x0 [B, C, h, w] with `noise` of that shape added at `t`."""
        return self.schedule.add_noise(x0, noise, t)

    def to_x0(self, x_t: Tensor, out: Tensor, t: float | Tensor) -> Tensor:
        """Return the clean latents meant by `out = predict(x_t, t)`."""
        return self.schedule.to_x0(x_t, out, t)

    def to_eps(self, x_t: Tensor, out: Tensor, t: float | Tensor) -> Tensor:
        """Return the noise meant by `out = predict(x_t, t)`."""
        return self.schedule.to_eps(x_t, out, t)

    def encode(self, images: Tensor, adapter: AdapterName | None = None) -> Tensor:
        """Return latents [B, C, h, w] of images [B, 3, H, W]: the posterior's mode, scaled as the family says.

        `adapter` is the encoder's.
        """
        with self._lock:
            return self._autoencoder.encode(images, adapter)

    def decode(self, latents: Tensor) -> Tensor:
        """Return images [B, 3, H, W] of latents [B, C, h, w]: about [0, 1], not clamped."""
        with self._lock:
            return self._autoencoder.decode(latents)

    def autoencode(self, images: Tensor) -> Tensor:
        """Return what the frozen autoencoder makes of images, both [B, 3, H, W]."""
        return self.decode(self.encode(images))

    def restore(self, images: Tensor, noise: Tensor, t0: float, attended_photos: Tensor | None = None) -> Tensor:
        """Restore images by one step of phi_minus from `t0`, decoded: [B, 3, H, W], about [0, 1].

        Args:
            images: [B, 3, H, W] in [0, 1].
            noise: [1, C, h, w] or [B, C, h, w], added at t0; zeros for none.
            t0: the timestep.
            attended_photos: [B, R, 3, H, W] photos of other cameras, which self-attention sees beside the images.
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
            adapter: which one is on; None for the real score.
            guidance_scale: other than 1, extrapolate from the null prompt's output to the fixed prompt's: twice the
                work.
            num_views: this many consecutive samples are views of one scene, all of which self-attention sees.
            dropped: [B] samples that get the null prompt in place of the fixed one.
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
        """From now on, decode with a small autoencoder in place of the backbone's: see `TinyDecoder`.

        Raises:
            NifiError: if it cannot be loaded, or is for other latents.
        """
        self._autoencoder.use_decoder(name)

    def compile(self, mode: CompileMode) -> None:
        """From now on, compile the networks by `torch.compile` for each new size of image: slow at first, then faster.

        Raises:
            NifiError: if there is no C++ compiler.
        """
        compile_networks((self.family.network, *self._autoencoder.modules), mode)

    def add_adapters(self, rank: int, alpha: float, vae_encoder: bool = True) -> None:
        """Add phi_minus and phi_plus to the network, phi_minus to the VAE encoder; no change until trained."""
        self._network_adapters.add("phi_minus", rank, alpha)
        self._network_adapters.add("phi_plus", rank, alpha)
        if vae_encoder:
            self._autoencoder.adapters.add("phi_minus", rank, alpha)

    def checkpoint_gradients(self) -> None:
        """From now on, backward passes compute again what they need, in network and autoencoder: less memory, slower.

        They then switch adapters, from whatever thread they run in: not for a backbone that several threads train.
        """
        self._network_adapters.checkpoint_gradients(lambda: self.family.attend_across(self.family.num_views))
        self._autoencoder.adapters.checkpoint_gradients()

    def adapter_parameters(self, name: AdapterName) -> list[nn.Parameter]:
        """Return an adapter's parameters, the network's before the encoder's: float32, trainable even if it is off."""
        return [*self._network_adapters.parameters(name), *self._autoencoder.adapters.parameters(name)]

    def adapter_state_dict(self, name: AdapterName) -> dict[str, Tensor]:
        """Return an adapter's tensors, not copied, under diffusers' LoRA keys (`transformer.`, `unet.` and `vae.`)."""
        return {**self._network_adapters.state_dict(name), **self._autoencoder.adapters.state_dict(name)}

    def load_adapter_state_dict(self, name: AdapterName, state: dict[str, Tensor]) -> None:
        """Copy `state` into an adapter that was added.

        Raises:
            NifiError: if layers are missing or unknown, or shapes differ.
        """
        self._network_adapters.load_state_dict(name, state)
        self._autoencoder.adapters.load_state_dict(name, state)

    def add_adapter(self, name: AdapterName, state: dict[str, Tensor], source: str) -> None:
        """Add an adapter of network and encoder from tensors under diffusers' LoRA keys, with the rank as alpha.

        Layers without tensors are not adapted.

        Raises:
            NifiError: naming `source`, if layers are unknown, shapes differ, or one of the two has none.
        """
        self._network_adapters.add_tensors(name, state, source)
        self._autoencoder.adapters.add_tensors(name, state, source)

    def save_adapter(self, directory: Path | str, name: AdapterName) -> None:
        """Write an adapter as diffusers reads it.

        `pipeline.load_lora_weights(directory)` finds the network's part (pytorch_lora_weights.safetensors), and
        `vae.load_lora_adapter(directory, prefix="vae", weight_name="vae_lora_weights.safetensors")` the encoder's.
        """
        self._network_adapters.save(Path(directory) / NETWORK_ADAPTER_FILE, name)
        if name in self._autoencoder.adapters.names:
            self._autoencoder.adapters.save(Path(directory) / VAE_ADAPTER_FILE, name)
        else:
            (Path(directory) / VAE_ADAPTER_FILE).unlink(missing_ok=True)  # of an adapter saved here before

    def load_adapter(self, directory: Path | str, name: AdapterName) -> None:
        """Add what `save_adapter` wrote as adapter `name`, with its rank and alpha.

        Raises:
            NifiError: if a file is missing, damaged (CorruptFileError) or made for another backbone.
        """
        self._network_adapters.load(Path(directory) / NETWORK_ADAPTER_FILE, name)
        if (Path(directory) / VAE_ADAPTER_FILE).is_file():
            self._autoencoder.adapters.load(Path(directory) / VAE_ADAPTER_FILE, name)
