"""Each family's forward process and parameterization, against known answers and diffusers."""

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from miniatures import BETAS
from torch import Tensor, nn

from nifi_ns.diffusion import Backbone, Diffusion, FlowMatching
from nifi_ns.errors import NifiError


def ddpm(backbone: Backbone) -> Any:
    return DDPMScheduler.from_pretrained(backbone.name, subfolder="scheduler")


class Oracle(nn.Module):
    """A network that knows image and noise, and returns the exact output in its family's parameterization."""

    def __init__(self, kind: str, x0: Tensor, noise: Tensor, abar: Tensor) -> None:
        super().__init__()
        self.kind, self.x0, self.noise, self.abar = kind, x0, noise, abar

    def forward(self, sample: Tensor | None = None, timestep: Tensor | None = None, **_: object) -> tuple[Tensor]:
        if self.kind == "sd3":
            return (self.noise - self.x0,)
        if self.kind == "sd-turbo":
            return (self.noise,)
        assert timestep is not None
        abar = self.abar[timestep.long()][:, None, None, None].float()
        return (abar.sqrt() * self.noise - (1 - abar).sqrt() * self.x0,)


@pytest.mark.parametrize("t", [1, 50, 199, 499.6, 950, 999])
def test_one_step_from_any_timestep_returns_the_image(backbone: Backbone, family: str, t: float) -> None:
    x0, noise = torch.randn(2, 3, 4, 6, 6)
    abar = ddpm(backbone).alphas_cumprod if family != "sd3" else torch.zeros(0)
    backbone.family.network = Oracle(family, x0, noise, abar)
    for times in (t, torch.full((3,), float(t))):
        x_t = backbone.add_noise(x0, noise, times)
        out = backbone.predict(x_t, times, None)
        torch.testing.assert_close(backbone.to_x0(x_t, out, times), x0, atol=1e-5, rtol=0)
        torch.testing.assert_close(backbone.to_eps(x_t, out, times), noise, atol=1e-5, rtol=0)


# From scheduler/scheduler_config.json of each model on the hub.
SD = {**BETAS, "num_train_timesteps": 1000, "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False}
CONFIGS: dict[str, dict[str, Any]] = {
    "SD3 and SD3.5": {"num_train_timesteps": 1000, "shift": 3.0},
    "SD1.5": {**SD, "skip_prk_steps": True, "_class_name": "PNDMScheduler"},
    "SD2.1-base": {**SD, "skip_prk_steps": True, "prediction_type": "epsilon", "_class_name": "PNDMScheduler"},
    "SD2.1": {**SD, "skip_prk_steps": True, "prediction_type": "v_prediction", "_class_name": "DDIMScheduler"},
    "SD-Turbo": {**SD, "prediction_type": "epsilon", "timestep_spacing": "trailing"},
}


@pytest.mark.parametrize("model", CONFIGS)
def test_each_model_s_exact_output_gives_the_image_from_every_timestep(model: str) -> None:
    """Coefficients are computed here: `alphas_cumprod`, or `1000 s / (1 + 2 s)` shifted by 3."""
    config, x0, noise = CONFIGS[model], *torch.randn(2, 1000, 4, 2, 2, dtype=torch.float64)
    if "shift" in config:
        schedule = FlowMatching.from_config(config)
        base = torch.arange(1, 1001, dtype=torch.float64) / 1000
        sigma = (3 * base / (1 + 2 * base))[:, None, None, None]
        signal, times = 1 - sigma, 1000 * sigma.flatten()
        truth = noise - x0
    else:
        schedule = Diffusion.from_config(config)
        betas = torch.linspace(BETAS["beta_start"] ** 0.5, BETAS["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
        abar = (1 - betas).cumprod(0)[:, None, None, None]
        signal, sigma, times = abar.sqrt(), (1 - abar).sqrt(), torch.arange(1000.0, dtype=torch.float64)
        truth = signal * noise - sigma * x0 if config.get("prediction_type") == "v_prediction" else noise
    x_t = signal * x0 + sigma * noise
    ours = schedule.add_noise(x0, noise, times)
    torch.testing.assert_close(ours, x_t, atol=1e-5, rtol=1e-4)  # diffusers' tables are float32
    torch.testing.assert_close(schedule.to_x0(ours, truth, times), x0, atol=1e-5, rtol=0)
    torch.testing.assert_close(schedule.to_eps(ours, truth, times), noise, atol=1e-5, rtol=0)


def test_sd3_sigma_at_199_comes_from_the_shifted_table(sd3: Backbone) -> None:
    assert sd3.sigma(199) == pytest.approx(0.198, abs=5e-4)
    assert sd3.schedule.timestep(199) == pytest.approx(1000 * float(sd3.sigma(199)))


def test_flow_matching_adds_noise_like_its_scheduler(sd3: Backbone) -> None:
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(sd3.name, subfolder="scheduler")
    x0, noise = torch.randn(2, 8, 16, 4, 4)
    timesteps = scheduler.timesteps[torch.randint(1000, (8,))]
    expected = scheduler.scale_noise(x0, timesteps, noise)
    torch.testing.assert_close(sd3.add_noise(x0, noise, timesteps), expected)


@pytest.mark.parametrize("family", ["sd-turbo", "sd2-v"], indirect=True)
def test_diffusion_adds_noise_like_its_scheduler(backbone: Backbone) -> None:
    scheduler = ddpm(backbone)
    x0, noise = torch.randn(2, 1000, 4, 2, 2)
    timesteps = torch.arange(1000)
    torch.testing.assert_close(backbone.add_noise(x0, noise, timesteps), scheduler.add_noise(x0, noise, timesteps))


@pytest.mark.parametrize("family", ["sd2-v"], indirect=True)
def test_v_prediction_equals_diffusers_velocity(backbone: Backbone) -> None:
    scheduler = ddpm(backbone)
    x0, noise = torch.randn(2, 5, 4, 2, 2)
    t = torch.tensor([1, 199, 500, 900, 999])
    velocity = scheduler.get_velocity(x0, noise, t)
    torch.testing.assert_close(backbone.to_x0(backbone.add_noise(x0, noise, t), velocity, t), x0, atol=1e-5, rtol=0)


def test_a_batch_may_have_different_timesteps(backbone: Backbone) -> None:
    times = torch.tensor([3.0, 199.0, 700.2])
    sigma = backbone.sigma(times)
    assert isinstance(sigma, Tensor)
    assert sigma.tolist() == pytest.approx([backbone.sigma(t) for t in times.tolist()])
    assert sigma.tolist() == sorted(sigma.tolist())


def test_signal_and_sigma_satisfy_their_family_s_relation(backbone: Backbone, family: str) -> None:
    signal, sigma = float(backbone.signal(321)), float(backbone.sigma(321))
    assert (signal + sigma if family == "sd3" else signal**2 + sigma**2) == pytest.approx(1)


def test_unsupported_schedules_are_refused() -> None:
    with pytest.raises(NifiError, match="use_dynamic_shifting"):
        FlowMatching.from_config(dict(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config))
    with pytest.raises(NifiError, match="'sample': expected epsilon or v_prediction"):
        Diffusion.from_config(dict(DDPMScheduler(prediction_type="sample").config))


def test_timesteps_are_looked_up_on_their_own_device(backbone: Backbone) -> None:
    """A meta tensor has no data: copying it to the CPU raises."""
    times = torch.empty(3, device="meta")
    schedule = backbone.schedule
    for look_up in (schedule.timestep, schedule.signal, schedule.sigma):
        found = look_up(times)
        assert isinstance(found, Tensor) and found.device.type == "meta"
        assert found.shape == (3,) and found.dtype == torch.float32
    noisy = backbone.add_noise(torch.empty(3, 4, 2, 2, device="meta"), torch.empty(3, 4, 2, 2, device="meta"), times)
    assert noisy.device.type == "meta"


def test_float32_tables_give_the_same_values_as_float64(backbone: Backbone) -> None:
    schedule, times = backbone.schedule, torch.arange(1001.0)
    expected = [look_up(times) for look_up in (schedule.timestep, schedule.signal, schedule.sigma)]
    (tables,) = schedule._tables.values()
    schedule._tables[tables.device] = tables.float()  # as on a GPU
    found = [look_up(times) for look_up in (schedule.timestep, schedule.signal, schedule.sigma)]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))  # type: ignore[arg-type]
