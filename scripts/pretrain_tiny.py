"""Train the backbone nifi-tiny from scratch: its autoencoder, its flow-matching transformer, and its decoder again.

The autoencoder is trained to be robust to the noise that restoring starts from. In the end the decoder is trained on
outputs of the transformer.

    python scripts/pretrain_tiny.py --data PHOTOS --output nifi_ns/weights/nifi-tiny

PHOTOS are folders of images. Every fifth image by name is held out and measured. Procedural textures are added to the
rest. Every step has its own generator, seeded by (seed, stage, step), and progress is saved: an interrupted run
continues when the command is repeated, with the same result. Every measurement updates a usable --output.
"""

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import tyro
from _photos import Photos
from _tiny_models import LATENT_NOISE, PATCH, build_autoencoder, build_transformer, fixed_prompt
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nifi_ns.commands import run
from nifi_ns.diffusion import PROMPT_FILE, Backbone, FlowMatching, StableDiffusion3
from nifi_ns.files import atomic_path, write_text

T0 = 199.0
SCHEDULER = FlowMatchEulerDiscreteScheduler(shift=3.0)  # SD3's
SCHEDULE = FlowMatching.from_config(dict(SCHEDULER.config))
# (images, height, width) of successive steps: mostly small, and now and then as long a sequence as a frame's.
SIZES = [*[(8, 128, 128)] * 7, (2, 256, 256)] * 3 + [*[(8, 128, 128)] * 7, (1, 272, 480)]


@dataclass
class PretrainTiny:
    """Train the miniature backbone nifi-tiny on photos that are free to redistribute."""

    data: Annotated[tuple[Path, ...], tyro.conf.arg(aliases=["-d"])]
    """Folders of photos (PNG, JPEG, WebP), searched recursively."""
    output: Path = Path("nifi_ns/weights/nifi-tiny")
    """The diffusers folder to write."""
    progress: Path = Path("outputs/pretrain_tiny")
    """Folder for the state of the run."""
    autoencoder_steps: int = 2400
    """Steps of the first stage (16 crops of 64 pixels each)."""
    steps: int = 2400
    """Steps of the second stage (8 crops of 128 pixels each, or fewer and larger ones)."""
    decoder_steps: int = 600
    """Steps of the third stage (8 crops of 128 pixels each)."""
    width: int = 128
    """Width of the transformer."""
    layers: int = 4
    """Layers of the transformer."""
    measure_every: int = 200
    """Steps between measurements on the held-out photos."""
    seed: int = 0
    threads: int = 1
    """CPU threads. Another number may round differently."""
    device: str = "cpu"
    smoke: bool = False
    """Train a smaller model for a few steps, to test that everything runs."""

    def main(self) -> None:
        """Train all stages, or continue an interrupted run."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(self.seed)
        if self.smoke:
            self.autoencoder_steps, self.steps, self.decoder_steps, self.measure_every = 4, 4, 4, 4
            self.width, self.layers = 128, 1
        console = Console()
        photos = Photos(self.data, self.seed)
        device: Any = self.device
        vae: Any = build_autoencoder(photos.training).to(device)
        transformer: Any = build_transformer(self.width, self.layers).to(device)
        autoencoder = Stage("autoencoder", vae, self.autoencoder_steps, lr=5e-4, options=self)
        flow = Stage("transformer", transformer, self.steps, lr=2e-3, options=self)
        decoder = Stage("decoder", vae.decoder, self.decoder_steps, lr=2e-4, options=self)
        started = time.monotonic()

        def report(stage: Stage) -> None:
            numbers = {key: round(value, 2) for key, value in measure(self._backbone(vae, transformer), photos).items()}
            console.print(f"{stage.name} {stage.step}/{stage.steps}", numbers, f"{time.monotonic() - started:.0f} s")
            training = {"photos": photos.names, "held_out": photos.held_out_names, "seed": self.seed, **numbers}
            training |= {f"{stage.name}_steps": stage.step for stage in (autoencoder, flow, decoder)}
            write_backbone(self.output, vae, transformer, training)

        autoencoder.train(lambda stage: autoencoder_loss(stage, photos, self.device), report)
        with torch.no_grad():  # the factor that brings latents to unit variance, from every training photo
            modes = [vae.encode(_patches(_whole(photo), self.device)).latent_dist.mode() for photo in photos.training]
            vae.register_to_config(scaling_factor=round(1 / torch.cat([m.flatten() for m in modes]).std().item(), 4))
        backbone = self._backbone(vae, transformer)
        flow.train(lambda stage: flow_matching_loss(stage, photos, backbone), report)
        decoder.train(lambda stage: decoder_loss(stage, photos, backbone), report)
        report(decoder)

    def _backbone(self, vae: nn.Module, transformer: nn.Module) -> Backbone:
        trains = [(p, p.requires_grad) for m in (vae, transformer) for p in m.parameters()]
        family = StableDiffusion3(transformer, SCHEDULE)
        device = torch.device(self.device)
        backbone = Backbone("nifi-tiny", family, vae, fixed_prompt(), device=device, dtype=torch.float32)
        for parameter, flag in trains:  # a Backbone freezes its networks
            parameter.requires_grad_(flag)
        return backbone


class Stage:
    """A model in training: AdamW with a cosine schedule, a moving average of its weights, and its progress on disk."""

    def __init__(self, name: str, model: nn.Module, steps: int, lr: float, options: PretrainTiny) -> None:
        self.name, self.model, self.steps, self.step = name, model, steps, 0
        self._file = options.progress / f"{name}.safetensors"
        self._lr, self._options = lr, options
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
        self._average: dict[str, Tensor] = {}

    def train(self, loss: Any, report: Any) -> None:
        """Minimise `loss(self)` from the last step, calling `report(self)` regularly. End with the averaged weights."""
        if self._file.is_file():
            self._load()
        else:
            self._average = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
        while self.step < self.steps:
            self._update(loss(self))
            if self.step % self._options.measure_every == 0 or self.step == self.steps:
                self._save()
                weights = {key: value.clone() for key, value in self.model.state_dict().items()}
                self.model.load_state_dict(self._average)
                report(self)
                self.model.load_state_dict(weights)
        self.model.load_state_dict(self._average)

    def generator(self) -> torch.Generator:
        """Generator of this step's random numbers."""
        stage = sum(self.name.encode())
        return torch.Generator().manual_seed((self._options.seed * 1_000_003 + stage) * 1_000_003 + self.step)

    def _update(self, loss: Tensor) -> None:
        warm, done = min(1.0, (self.step + 1) / 100), self.step / self.steps
        self._optimizer.param_groups[0]["lr"] = self._lr * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self.step += 1
        decay = min(0.995, self.step / (self.step + 10))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                self._average[key].lerp_(value, 1 - decay)

    def _save(self) -> None:
        state = {"step": torch.tensor(self.step)}
        state |= {f"model.{k}": v for k, v in self.model.state_dict().items()}
        state |= {f"average.{k}": v for k, v in self._average.items()}
        for i, moments in enumerate(self._optimizer.state.values()):
            state |= {f"{key}.{i}": moments[key] for key in ("exp_avg", "exp_avg_sq")}
        with atomic_path(self._file) as temporary:
            save_file({k: v.detach().cpu().clone().contiguous() for k, v in state.items()}, temporary)

    def _load(self) -> None:
        state = load_file(self._file, device=self._options.device)
        self.step = int(state["step"])
        self.model.load_state_dict({k[len("model.") :]: v for k, v in state.items() if k.startswith("model.")})
        self._average = {k[len("average.") :]: v for k, v in state.items() if k.startswith("average.")}
        for i, parameter in enumerate(self.model.parameters()):
            moments = {key: state[f"{key}.{i}"] for key in ("exp_avg", "exp_avg_sq")}
            self._optimizer.state[parameter] = {"step": torch.tensor(float(self.step)), **moments}


def autoencoder_loss(stage: Stage, photos: Photos, device: str) -> Tensor:
    """Return the reconstruction loss of crops, half from clean latents and half from latents with the noise at T0."""
    generator = stage.generator()
    crops, _ = photos.crops(16, 64, 64, generator)
    vae: Any = stage.model
    mode = vae.encode(_patches(crops, device)).latent_dist.mode()
    level = torch.tensor([LATENT_NOISE, SCHEDULE.sigma(T0) / SCHEDULE.signal(T0)]).repeat(8)[:, None, None, None]
    noise = (level * torch.randn(mode.shape, generator=generator)).to(device)
    # relative to the latents' scale, so that they cannot outgrow the noise
    noise = noise * mode.square().mean().sqrt()
    return _image_loss(F.pixel_shuffle(vae.decode(mode + noise).sample, PATCH), crops.to(device) * 2 - 1)


def decoder_loss(stage: Stage, photos: Photos, backbone: Backbone) -> Tensor:
    """Return the reconstruction loss of crops, half from clean latents and half from noised ones after one step."""
    generator = stage.generator()
    crops, _ = photos.crops(8, 128, 128, generator)
    with torch.no_grad():
        clean, noised = backbone.encode(crops).chunk(2)
        t = 1000 * (0.05 + 0.2 * torch.rand(len(noised), generator=generator)).to(noised)
        x_t = backbone.add_noise(noised, torch.randn(noised.shape, generator=generator).to(noised), t)
        restored = backbone.to_x0(x_t, backbone.predict(x_t, t, None), t)
    return _image_loss(backbone.decode(torch.cat([clean, restored])), crops.to(backbone.device))


def flow_matching_loss(stage: Stage, photos: Photos, backbone: Backbone) -> Tensor:
    """Return the squared error of the velocity, over noise levels and sizes."""
    generator, device = stage.generator(), backbone.device
    batch, height, width = SIZES[stage.step % len(SIZES)]
    crops, is_photo = photos.crops(batch, height, width, generator)
    with torch.no_grad():
        z = backbone.encode(crops)
    # Half of the noise levels where the restorer starts, half anywhere, for the critic.
    near = 0.1 + 0.25 * torch.rand(batch, generator=generator)
    anywhere = 0.02 + 0.98 * torch.rand(batch, generator=generator)
    t = 1000 * torch.where(torch.rand(batch, generator=generator) < 0.5, near, anywhere).to(device)
    noise = torch.randn(z.shape, generator=generator).to(device)
    # The prompt stands for photos, the null prompt for any image.
    photo = (is_photo & (torch.rand(batch, generator=generator) < 0.8)).float().to(device)
    positive, null = backbone.prompt.positive, backbone.prompt.null
    assert positive.pooled is not None and null.pooled is not None
    pooled = null.pooled.lerp(positive.pooled, photo[:, None])
    prompt = replace(positive, tokens=null.tokens.lerp(positive.tokens, photo[:, None, None]), pooled=pooled)
    timestep = torch.as_tensor(backbone.schedule.timestep(t))
    with _position_table_moved(backbone.family.network.pos_embed, height // 8, width // 8, generator):
        velocity = backbone.family(backbone.add_noise(z, noise, t), timestep, prompt)
    return F.mse_loss(velocity, noise - z)


@contextmanager
def _position_table_moved(pos_embed: Any, rows: int, columns: int, generator: torch.Generator) -> Iterator[None]:
    """Train all of the position table with small crops, of which SD3 uses only the centre."""
    table, side = pos_embed.pos_embed, pos_embed.pos_embed_max_size
    limits = [(side - length) // 2 for length in (rows, columns)]
    moves = [int(torch.randint(-limit, limit + 1, (), generator=generator)) for limit in limits]
    pos_embed.pos_embed = table.reshape(side, side, -1).roll(moves, (0, 1)).reshape(table.shape)
    try:
        yield
    finally:
        pos_embed.pos_embed = table


def _image_loss(images: Tensor, clean: Tensor) -> Tensor:
    # The absolute error weights faint texture more than the squared error.
    error = images - clean
    return error.square().mean() + 0.02 * error.abs().mean()


def _patches(images: Tensor, device: str) -> Tensor:
    return F.pixel_unshuffle(images.to(device) * 2 - 1, PATCH)


def _whole(photo: Tensor, multiple: int = 2 * PATCH) -> Tensor:
    """Return the photo [1, 3, H, W], cropped to whole patches."""
    return photo[None, :, : photo.shape[1] // multiple * multiple, : photo.shape[2] // multiple * multiple]


@torch.no_grad()
def measure(backbone: Backbone, photos: Photos) -> dict[str, float]:
    """Return the mean PSNR over held-out photos: autoencoder, latents noised to T0, and one step from there."""
    scores: dict[str, list[float]] = {"autoencoder_psnr": [], "noisy_psnr": [], "self_denoising_psnr": []}
    for i, photo in enumerate(photos.held_out):
        image = _whole(photo).to(backbone.device)
        scores["autoencoder_psnr"].append(_psnr(backbone.decode(backbone.encode(image)), image))
        image = image[..., :256, :256]
        z = backbone.encode(image)
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(i)).to(z)
        x_t = backbone.add_noise(z, noise, T0)
        restored = backbone.to_x0(x_t, backbone.predict(x_t, T0, None), T0)
        scores["noisy_psnr"].append(_psnr(backbone.decode(x_t / backbone.schedule.signal(T0)), image))
        scores["self_denoising_psnr"].append(_psnr(backbone.decode(restored), image))
    return {key: sum(values) / len(values) for key, values in scores.items()}


def _psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(F.mse_loss(a.clamp(0, 1), b).item())


def write_backbone(output: Path, vae: Any, transformer: Any, training: dict[str, Any]) -> None:
    """Write the diffusers folder in half precision, which is precise enough and halves the size."""
    for name, model in (("vae", vae), ("transformer", transformer)):
        half = type(model).from_config(model.config).half()
        half.load_state_dict(model.state_dict())
        half.save_pretrained(output / name, max_shard_size="3900KB")
    SCHEDULER.save_pretrained(output / "scheduler")
    fixed_prompt().save(output / PROMPT_FILE)
    write_text(output / "training.json", json.dumps(training, indent=2) + "\n")


if __name__ == "__main__":
    run(PretrainTiny)
