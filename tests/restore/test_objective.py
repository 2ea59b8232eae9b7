"""The objective on a toy with closed-form scores: one-dimensional Gaussian data without a network."""

from dataclasses import dataclass, replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from nifi_ns.diffusion import Denoiser, restore_latents
from nifi_ns.errors import NifiError
from nifi_ns.restore import Decode, LossNoise, ObjectiveConfig, critic_loss, restorer_loss
from nifi_ns.restore._objective import matching_gradient, matching_loss

UNIFORM = ObjectiveConfig(guidance_scale=1.0, weighting="uniform")
PAPER = ObjectiveConfig(guidance_scale=1.0)


@dataclass
class Gaussian:
    """Ideal denoiser of N(mean, std^2) data, for each kind of prediction. The critic's data is N(*critic)."""

    mean: float = 0.0
    std: float = 1.0
    critic: tuple[float, float] = (0.0, 1.0)
    kind: str = "velocity"

    def sigma(self, t: Tensor) -> Tensor:
        return t / 1000

    def signal(self, t: Tensor) -> Tensor:
        return 1 - self.sigma(t) if self.kind == "velocity" else (1 - self.sigma(t) ** 2).sqrt()

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.signal(t)[:, None], self.sigma(t)[:, None]

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        a, s = self._scales(t)
        return a * x0 + s * noise

    def predict(self, x_t, t, adapter=None, guidance_scale=1.0, num_views=1, dropped=None) -> Tensor:
        a, s = self._scales(t)
        mean, std = self.critic if adapter == "phi_plus" else (self.mean, self.std)
        eps = s * (x_t - a * mean) / (a**2 * std**2 + s**2)
        x0 = (x_t - s * eps) / a
        return {"velocity": eps - x0, "epsilon": eps, "v_prediction": a * eps - s * x0}[self.kind]

    def to_x0(self, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
        a, s = self._scales(t)
        if self.kind == "epsilon":
            return (x_t - s * out) / a
        return x_t - s * out if self.kind == "velocity" else a * x_t - s * out

    def to_eps(self, x_t: Tensor, out: Tensor, t: Tensor) -> Tensor:
        return (x_t - self.signal(t)[:, None] * self.to_x0(x_t, out, t)) / self._scales(t)[1]


def offset_gradient(s: float, offset: float, config: ObjectiveConfig, kind: str = "velocity") -> float:
    """Return the gradient of L_match for a z_hat `offset` above its z_gt, for unit Gaussian data."""
    clean = torch.randn(64, 1, generator=torch.Generator().manual_seed(0))
    t = torch.full((64,), 1000 * s)
    g = matching_gradient(Gaussian(kind=kind), clean + offset, clean, t, torch.randn(64, 1), config)
    assert torch.allclose(g, g[:1].expand_as(g), atol=1e-5)  # linear score: the same for all
    return -float(g.mean())


@pytest.mark.parametrize("offset", [0.5, -0.5])
def test_ground_truth_guidance_in_noise_space_attracts_at_every_noise_level(offset: float):
    config = replace(UNIFORM, alpha=0.0)
    moves = [offset_gradient(s, offset, config) * 0.5 / offset for s in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert moves == pytest.approx([-0.055, -0.181, -0.25, -0.181, -0.055], abs=1e-3)


@pytest.mark.parametrize("offset", [0.5, -0.5])
def test_ground_truth_guidance_in_velocity_space_repels_below_half(offset: float):
    config = replace(UNIFORM, alpha=0.0, gt_space="velocity")
    moves = [offset_gradient(s, offset, config) * 0.5 / offset for s in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert moves == pytest.approx([0.439, 0.241, 0.0, -0.103, -0.049], abs=1e-3)


@pytest.mark.parametrize("s", [0.05, 0.2, 0.5, 0.8, 0.95])
def test_the_tsd_sr_weight_is_sigma_squared_on_velocities(s: float):
    backbone = Gaussian(critic=(1.0, 0.7))
    z, noise = torch.randn(8, 1), torch.randn(8, 1)
    t = torch.full((8,), 1000 * s)
    x_t = backbone.add_noise(z, noise, t)
    expected = s**2 * (backbone.predict(x_t, t) - backbone.predict(x_t, t, adapter="phi_plus"))
    found = matching_gradient(backbone, z, z, t, noise, replace(PAPER, alpha=1.0))
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "weighting"),
    [("velocity", "sigma2"), ("velocity", "uniform"), ("epsilon", "sigma2"), ("v_prediction", "sigma2")],
)
@pytest.mark.parametrize("s", [0.05, 0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("start", [(-3.0, 0.8), (3.0, 0.8), (1.0, 0.3), (1.0, 2.0)])
def test_matching_alone_moves_restored_samples_onto_the_data(start, alpha: float, s: float, weighting, kind: str):
    """The data is N(1, 0.8^2). z_hat starts below, above, narrower or wider. The critic is exact."""
    generator = torch.Generator().manual_seed(1)
    unit, data = torch.randn(2, 256, 1, generator=generator, dtype=torch.float64)  # s = .95 cancels digits
    z_hat = start[0] + start[1] * (unit - unit.mean()) / unit.std()
    data = 1 + 0.8 * (data - data.mean()) / data.std()
    config = replace(PAPER, alpha=alpha, weighting=weighting)
    t = torch.full((256,), 1000 * s, dtype=torch.float64)

    def pull() -> Tensor:
        """Return L_match's gradient averaged over a noise and its negative: the exact mean, since scores are linear."""
        backbone = Gaussian(1.0, 0.8, (float(z_hat.mean()), float(z_hat.std())), kind)
        leaf = z_hat.clone().requires_grad_()
        noise = torch.randn(256, 1, generator=generator, dtype=torch.float64)
        losses = [matching_loss(leaf, matching_gradient(backbone, leaf, data, t, n, config)) for n in (noise, -noise)]
        return torch.autograd.grad(sum(losses, torch.zeros(())), leaf)[0] * 256 / 2

    def distance() -> float:
        return abs(float(z_hat.mean()) - 1) + abs(float(z_hat.std()) - 0.8)

    first = distance()
    for _ in range(15):
        gradient = pull()
        # normalised, because the weights of noise levels differ a hundredfold
        z_hat = z_hat - 0.3 * distance() / gradient.abs().mean() * gradient
    assert distance() < 0.1 * first


def test_the_gradient_vanishes_where_restored_and_data_agree():
    z, noise, t = torch.randn(64, 1), torch.randn(64, 1), torch.full((64,), 300.0)
    assert matching_gradient(Gaussian(), z, z, t, noise, PAPER).abs().max() < 1e-5


@pytest.mark.parametrize("kind", ["velocity", "epsilon", "v_prediction"])
def test_one_step_of_an_ideal_denoiser_restores_exactly(kind: str):
    """For data of zero variance, the ideal denoiser returns the mean from any start."""
    z = torch.randn(16, 1)
    z_hat = restore_latents(Gaussian(mean=0.3, std=0.0, kind=kind), z, torch.randn(16, 1), 199)
    assert torch.allclose(z_hat, torch.full_like(z, 0.3), atol=1e-5)


def test_without_noise_the_step_is_deterministic():
    z = torch.randn(16, 1)
    steps = [restore_latents(Gaussian(), z, torch.zeros(16, 1), 199) for _ in range(2)]
    assert torch.equal(*steps)


def test_the_critic_loss_is_lowest_at_the_restored_distribution():
    generator = torch.Generator().manual_seed(2)
    z_hat = 2 + 0.5 * torch.randn(4096, 1, generator=generator)
    noise, t = torch.randn(4096, 1, generator=generator), torch.full((4096,), 400.0)
    critics = [(2.0, 0.5), (1.7, 0.5), (2.3, 0.5), (2.0, 0.2), (2.0, 1.0)]
    losses = [float(critic_loss(Gaussian(critic=critic), z_hat, t, noise)) for critic in critics]
    assert min(losses) == losses[0]


class Recorder(Gaussian):
    """Identity autoencoder that records the adapters of all calls."""

    def __init__(self):
        super().__init__()
        self.asked: list[tuple[str, str | None]] = []

    def encode(self, images: Tensor, adapter=None) -> Tensor:
        self.asked.append(("encode", adapter))
        return images.flatten(1)

    def decode(self, latents: Tensor) -> Tensor:
        self.asked.append(("decode", None))
        return latents.view(-1, 3, 4, 4)

    def predict(self, x_t, t, adapter=None, guidance_scale=1.0, num_views=1, dropped=None) -> Tensor:
        self.asked.append(("predict", adapter))
        assert torch.is_grad_enabled() == (adapter == "phi_minus")
        return super().predict(x_t, t, adapter, guidance_scale)


def _asked(config: ObjectiveConfig) -> list[tuple[str, str | None]]:
    recorder = Recorder()
    images = torch.rand(2, 2, 3, 4, 4)
    restorer_loss(recorder, images[0], images[1], drawn(config), config, torch.nn.functional.l1_loss)
    return recorder.asked


def drawn(config: ObjectiveConfig) -> LossNoise:
    return LossNoise.sample((2, 48), config, torch.Generator().manual_seed(0))


def test_every_role_uses_its_adapter():
    encode = [("encode", None), ("encode", "phi_minus"), ("predict", "phi_minus")]
    scores = [("predict", None), ("predict", "phi_plus"), ("predict", None)]
    assert _asked(PAPER) == [*encode, *scores, ("decode", None)]


@pytest.mark.parametrize(
    ("config", "unasked"),
    [
        (replace(PAPER, alpha=0.0), ("predict", "phi_plus")),
        (replace(PAPER, match=0.0), ("predict", None)),
        (replace(PAPER, perceptual=0.0), ("decode", None)),
    ],
)
def test_a_term_of_weight_zero_is_not_computed(config: ObjectiveConfig, unasked):
    assert unasked not in _asked(config)


def test_the_loss_is_the_weighted_sum_of_its_terms():
    config = replace(PAPER, match=0.3, latent=2.0, pixel=3.0, perceptual=0.5)
    images = torch.rand(2, 2, 3, 4, 4)
    loss = restorer_loss(Recorder(), images[0], images[1], drawn(config), config, torch.nn.functional.l1_loss)
    weights = {"match": 0.3, "latent": 2.0, "pixel": 3.0, "perceptual": 0.5}
    expected = sum(weight * loss.terms[name].item() for name, weight in weights.items())
    assert loss.total.item() == pytest.approx(expected)
    assert all(term > 0 for term in loss.terms.values())


def test_image_losses_compare_the_final_views():
    class Lossy(Recorder):
        def decode(self, latents: Tensor) -> Tensor:
            return 0.5 * super().decode(latents)

    seen: dict[Decode, Tensor] = {}
    degraded, clean = torch.rand(2, 2, 3, 4, 4)
    for decode in get_args(Decode):
        keep = lambda shown, _, decode=decode: seen.setdefault(decode, shown).sum()  # noqa: E731
        config = replace(PAPER, pixel=1.0)
        loss = restorer_loss(Lossy(), degraded, clean, drawn(config), config, keep, decode=decode)
        torch.testing.assert_close(loss.terms["pixel"], (seen[decode] - clean).square().mean())
    torch.testing.assert_close(seen["change"] - seen["full"], 0.5 * degraded)


def test_noise_depends_on_the_seed_alone_and_stays_in_range():
    config = replace(PAPER, timesteps=(50, 52))
    a, b, c = (LossNoise.sample((99, 1), config, torch.Generator().manual_seed(n)) for n in (0, 0, 1))
    assert torch.equal(a.noise, b.noise) and torch.equal(a.timestep, b.timestep)
    assert not torch.equal(a.noise, c.noise)
    assert set(a.timestep.tolist()) == {50.0, 51.0, 52.0}


def test_only_the_critic_drops_the_prompt_sometimes(monkeypatch: pytest.MonkeyPatch):
    draws = LossNoise.sample((4000, 1), replace(PAPER, prompt_dropout=0.1), torch.Generator().manual_seed(0))
    assert draws.dropped.float().mean().item() == pytest.approx(0.1, abs=0.02)
    seen = []
    predict = Gaussian.predict
    monkeypatch.setattr(Gaussian, "predict", lambda *a, dropped=None, **_: seen.append(dropped) or predict(*a))
    critic_loss(Gaussian(), draws.noise, draws.timestep, draws.noise, draws.dropped)
    restore_latents(Gaussian(), draws.noise, draws.noise, 199)
    matching_gradient(Gaussian(), draws.noise, draws.noise, draws.timestep, draws.noise, PAPER)
    assert seen[0] is draws.dropped and seen[1:] == [None] * 4


@pytest.mark.parametrize(
    "wrong", [{"timesteps": (900, 100)}, {"timesteps": (0, 900)}, {"alpha": 1.5}, {"prompt_dropout": -0.1}]
)
def test_invalid_configurations_are_refused(wrong: dict):
    with pytest.raises(NifiError, match=next(iter(wrong))):
        replace(PAPER, **wrong)


def test_the_toy_denoises():
    backbone: Denoiser = Gaussian()
    assert backbone.sigma(torch.tensor([199.0])).item() == pytest.approx(0.199)
