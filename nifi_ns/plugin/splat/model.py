"""`nifi-splat`: splatfacto on any device, with a compression stage and restored outputs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from gsplat.strategy import DefaultStrategy
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes
from nerfstudio.models.splatfacto import RGB2SH, SplatfactoModel, SplatfactoModelConfig
from torch import Tensor, nn

from nifi_ns.errors import NifiError
from nifi_ns.plugin.repairs.intrinsics import on_own_device
from nifi_ns.plugin.repairs.lpips_weights import without_lpips
from nifi_ns.plugin.restoration.restorable import RenderSnapshot
from nifi_ns.plugin.restoration.restored_outputs import RestoredOutputs, RestoredOutputsConfig
from nifi_ns.plugin.splat.compression_stage import CompressionStage, CompressionStageConfig
from nifi_ns.plugin.splat.dropout import drop
from nifi_ns.plugin.splat.strategy import densification
from nifi_ns.rasterize import render
from nifi_ns.rasterize.ssim import SSIM
from nifi_ns.splats import Splats
from nifi_ns.views import View


@dataclass
class NifiSplatModelConfig(RestoredOutputsConfig, SplatfactoModelConfig):
    """Splatfacto, with compression and restoration."""

    _target: type = field(default_factory=lambda: NifiSplatModel)
    strategy: Literal["default", "mcmc"] = "default"
    """How gaussians are added and removed: gsplat's default strategy, or MCMC (relocation and noise)."""
    max_gaussians: int = 2_000_000
    """Largest number of gaussians, for both strategies."""
    dropout: float = 0.0
    """Share of the gaussians that training drops at random from each render. It grows to this value until training
    ends or compression begins. 0.2 suits captures of about 8 photos."""
    compression: CompressionStageConfig = field(default_factory=CompressionStageConfig)
    """The last stage of training: prune, fine-tune with the quantisers in the loop, write a scene file."""
    scene_file: Path | None = None
    """Scene file to use instead of the checkpoint's splats. Set by training and `ns-nifi-compress`."""


class _KeptSplats(nn.Module):
    """Splats that are stored in the checkpoint but not optimised."""

    def __init__(self, splats: Splats) -> None:
        super().__init__()
        for name, value in vars(splats).items():
            self.register_buffer(name, value.detach().clone())

    @property
    def splats(self) -> Splats:
        return Splats(**dict(self.named_buffers()))


class NifiSplatModel(RestoredOutputs, SplatfactoModel):
    """Splatfacto with a compression stage and restored outputs.

    Besides the outputs of splatfacto and `RestoredOutputs`, it has `rgb_uncompressed`: the splats before compression,
    rendered when the output is read.
    """

    config: NifiSplatModelConfig
    uncompressed: _KeptSplats | None

    def populate_modules(self) -> None:
        """Build splatfacto without CUDA or internet access, and with this project's strategies."""
        if not 0 <= self.config.dropout < 1:
            raise NifiError(f"dropout is {self.config.dropout}, expected at least 0 and less than 1")
        seed_points = self.seed_points
        if seed_points is not None and not self.config.random_init:
            # splatfacto moves seed colours to CUDA; pass points without colours, and set colours below
            self.seed_points = (seed_points[0], seed_points[1][:0])
        with without_lpips():
            super().populate_modules()
        self.seed_points = seed_points
        if seed_points is not None and not self.config.random_init and len(seed_points[1]) > 0:
            colours = seed_points[1].float() / 255
            degree_zero = self.config.sh_degree == 0
            dc = torch.logit(colours, eps=1e-3) if degree_zero else RGB2SH(colours)
            self.gauss_params["features_dc"].data = dc
        self.ssim = SSIM()
        self.uncompressed = None
        assert isinstance(self.strategy, DefaultStrategy)
        self.strategy = densification(self.config.strategy, self.strategy, self.config.max_gaussians)
        self.strategy_state = self.strategy.initialize_state(scene_scale=1.0)
        self.compression = CompressionStage(self.config.compression, self)
        self._substituted: dict[str, Tensor] | None = None
        self._last_step = 1

    # -- what splatfacto renders, trains and exports -----------------------------------------------------------------

    @property
    def means(self) -> Tensor:
        """[N, 3]. Like the properties below, quantised while the compression stage has the quantisers in the loop."""
        return self._gauss_param("means")

    @property
    def scales(self) -> Tensor:
        """[N, 3] log-scales."""
        return self._gauss_param("scales")

    @property
    def quats(self) -> Tensor:
        """[N, 4] wxyz."""
        return self._gauss_param("quats")

    @property
    def opacities(self) -> Tensor:
        """[N, 1] logits."""
        return self._gauss_param("opacities")

    @property
    def features_dc(self) -> Tensor:
        """[N, 3]."""
        return self._gauss_param("features_dc")

    @property
    def features_rest(self) -> Tensor:
        """[N, K - 1, 3]."""
        return self._gauss_param("features_rest")

    def _gauss_param(self, name: str) -> Tensor:
        return self.gauss_params[name] if self._substituted is None else self._substituted[name]

    @property
    def splats(self) -> Splats:
        """The gaussians in use now, detached."""
        return Splats.from_gauss_params({name: self._gauss_param(name).detach() for name in self.gauss_params})

    @property
    def uncompressed_splats(self) -> Splats:
        """The splats before compression; the current ones if there was none."""
        return self.splats if self.uncompressed is None else self.uncompressed.splats

    @property
    def is_compressed(self) -> bool:
        """Whether the splats before compression are stored beside the current ones."""
        return self.uncompressed is not None

    def set_splats(self, splats: Splats) -> None:
        """Replace the model's gaussians, which are rendered, exported and saved, by `splats`."""
        for name, value in splats.to_gauss_params(self.config.sh_degree).items():
            self.gauss_params[name] = nn.Parameter(value.detach().clone().to(self.device))
        self.view_restorer.clear_reference_bank()

    def keep_uncompressed(self) -> None:
        """Store the current splats as the uncompressed ones."""
        self.uncompressed = _KeptSplats(self.splats)

    def get_outputs(self, camera: Cameras) -> dict[str, Any]:
        """Return splatfacto's outputs, on any device.

        During the compression stage, they are rendered from splats as decoded from the scene file; in the viewer, from
        the panel's choice.
        """
        chosen = self.panel.scene
        if chosen is not None:
            self._substituted = chosen.to_gauss_params(self.config.sh_degree)
        elif self.compression.running:
            self._substituted = self.compression.quantized_params()
        elif self.training and self.config.dropout:
            rate = self.config.dropout * min(1.0, self.step / self._last_step)
            self._substituted = dict(self.gauss_params, opacities=drop(self.gauss_params["opacities"], rate))
        try:
            return super().get_outputs(on_own_device(camera))
        finally:
            self._substituted = None

    def get_loss_dict(self, outputs: Any, batch: Any, metrics_dict: Any = None) -> dict[str, Tensor]:
        """Return splatfacto's losses, and with MCMC the regularisers of opacities and scales (gsplat's defaults).

        A distilled view is weighted by the batch's `loss_weight`, and its pixels by the batch's `mask`.
        """
        losses = super().get_loss_dict(outputs, batch, metrics_dict)
        losses["main_loss"] = batch.get("loss_weight", 1.0) * losses["main_loss"]
        if self.config.strategy == "mcmc" and not self.compression.running:
            losses["opacity_reg"] = 0.01 * torch.sigmoid(self.gauss_params["opacities"]).mean()
            losses["mcmc_scale_reg"] = 0.01 * torch.exp(self.gauss_params["scales"]).mean()
        return losses

    def step_post_backward(self, step: int) -> None:
        """Densify, unless compression has begun."""
        if not self.compression.running:
            super().step_post_backward(step)

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """Return splatfacto's callbacks; the pipeline adds those of the compression stage."""
        if self.device.type == "cpu":
            torch.set_num_threads(1)  # the kernels have their own threads, and torch's would spin idly beside them
        callbacks = super().get_training_callbacks(training_callback_attributes)
        trainer, compression = training_callback_attributes.trainer, self.config.compression
        assert trainer is not None
        self._last_step = compression.start_step if compression.enabled else trainer.config.max_num_iterations
        return callbacks

    def load_state_dict(self, state: dict[str, Any], **kwargs: Any) -> None:  # pyright: ignore
        """Load a checkpoint into the Parameters of the optimisers, and use the config's scene file if there is one."""
        kept = {k.removeprefix("uncompressed."): state[k] for k in state if k.startswith("uncompressed.")}
        state = {
            k: v for k, v in state.items() if not k.startswith(("lpips.", "uncompressed."))
        }  # "lpips." is in checkpoints of stock splatfacto
        super().load_state_dict(state, **kwargs)
        self.uncompressed = _KeptSplats(Splats(**kept)).to(self.device) if kept else None
        if self.config.scene_file is not None:
            self.use_scene(self.config.scene_file)

    def use_scene(self, path: Path) -> None:
        """Replace the model's gaussians by those of a scene file, and keep the current ones as the uncompressed ones.

        Raises:
            NifiError: if there is no such file, or it cannot be decoded.
        """
        from nifi_ns.compress import decode

        if not path.is_file():
            raise NifiError(f"no scene file {path}: run ns-nifi-compress, or correct model.scene_file in config.yml")
        if self.uncompressed is None:
            self.keep_uncompressed()
        self.set_splats(decode(path.read_bytes()))

    # -- what restoration needs --------------------------------------------------------------------------------------

    def extra_outputs(self, view: View, crop: OrientedBox | None) -> dict[str, Callable[[], Tensor]]:
        """Return `rgb_uncompressed`."""
        # read now, while the viewer holds the lock: training may change them before the output is read
        splats, background = self.uncompressed_splats, self._get_background_color().to(self.device)
        return {"rgb_uncompressed": lambda: self.render_view(view, splats, crop, background)[0]}

    def snapshot(self, *, uncompressed: bool = False) -> RenderSnapshot:
        """Return the splats that this thread renders, or the uncompressed ones, over the current background."""
        splats = self.uncompressed_splats if uncompressed else self.panel.scene or self.splats
        background = self._get_background_color().to(self.device)
        draw = partial(self.render_view, splats=splats, background=background)
        return RenderSnapshot(draw, (uncompressed, self.panel.rate, *background.tolist()))

    def expected_depth(self, view: View, outputs: dict[str, Any]) -> Tensor | None:
        """Return splatfacto's expected depth, [H, W, 1], but 0 (not the maximum) where nothing is rendered."""
        depth = outputs["depth"]
        return None if depth is None else torch.where(outputs["accumulation"] > 0, depth, 0.0)

    @property
    def still_training(self) -> bool:
        """Whether this process is training the rendered splats. False once a scene file is in use."""
        return self._in_training and self.config.scene_file is None

    @property
    def scene_file(self) -> Path | None:
        """The scene file in use, if there is one."""
        return self.config.scene_file

    def photo(self, outputs: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        """Return the photo of a batch, [H, W, 3], with the size and background of the outputs."""
        return self.composite_with_background(self.get_gt_img(batch["image"]), outputs["background"])

    @property
    def restorer_folder(self) -> Path | None:
        """The configured restorer, else the one in the run's `nifi` folder if there is one."""
        if self.config.restorer is None and self.config.scene_file is not None:
            folder = self.config.scene_file.parent.parent / "restorer"
            return folder if (folder / "restorer.json").is_file() else None  # training writes it last
        return self.config.restorer

    @torch.no_grad()
    def render_view(
        self, view: View, splats: Splats, crop: OrientedBox | None = None, background: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Render splats as splatfacto does in evaluation.

        Args:
            view: the camera.
            splats: the gaussians.
            crop: gaussians outside are not rendered.
            background: [3] in [0, 1]; default: splatfacto's current one.

        Returns:
            Colour [H, W, 3] in [0, 1], and expected depth [H, W, 1], 0 where nothing is rendered.
        """
        if crop is not None:
            splats = splats[crop.within(splats.means).squeeze(-1)]
        background = self._get_background_color().to(self.device) if background is None else background
        antialiased = self.config.rasterize_mode == "antialiased"
        rendered = render(splats, view, background=background, depth=True, antialiased=antialiased)
        assert rendered.depth is not None
        return rendered.rgb.clamp(0, 1), rendered.depth

    def get_rgba_image(self, outputs: dict[str, Any], output_name: str = "rgb") -> Tensor:
        """Return colour without the background, and opacity, [H, W, 4]. Upstream: nerfstudio PR 3307."""
        alpha, background = outputs["accumulation"], outputs["background"]
        rgb = (outputs[output_name] - (1 - alpha) * background) / alpha.clamp(min=1e-6)
        return torch.cat([rgb.clamp(0, 1), alpha], dim=-1)
