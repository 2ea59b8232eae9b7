"""The training objective of Fix: one-step restoration by distribution matching (NiFi, arXiv 2602.04549; TSD-SR).

One frozen diffusion backbone has three roles, depending on the active adapter: `phi_minus` restores, `phi_plus` (the
critic) models the distribution of restored latents, and the backbone without an adapter gives the real score. With the
forward process `x_t = a_t x + s_t eps` (flow matching: `a = 1 - s`) the two losses are

    z     = E_phi-(I_degraded)            z_gt = E(I_clean)           (frozen, no adapter)
    z_hat = x0 estimate of phi- from a_t0 z + s_t0 eps0               (one step)
    g_kl  = w(t) (eps_real(x_t(z_hat)) - eps_critic(x_t(z_hat)))      toward the real score, away from the critic's
    g_gt  = w(t) (eps_real(x_t(z_hat)) - eps_real(x_t(z_gt)))         the same noise in both
    L_phi- = match * 1/2 |z_hat - sg(z_hat - alpha g_kl - (1 - alpha) g_gt)|^2 + latent * |z_hat - z_gt|^2
             + pixel * |I_hat - I_clean|^2 + perceptual * P(I_hat, I_clean)
    L_phi+ = 1/2 |v_critic(x_t(sg z_hat)) - (eps - sg z_hat)|^2

where norms are means, not sums, and I_hat is the restored view: D(z_hat), or I_degraded + D(z_hat) - D(E(I_degraded)).
The pixel term is not in the paper. All network outputs pass through the backbone's `to_x0` and `to_eps`, so the same
code works for velocity, epsilon and v-prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from nifi_ns.diffusion import AdapterName, Denoiser, LatentBackbone, encode_photos, restore_latents
from nifi_ns.errors import NifiError
from nifi_ns.restore._description import Decode
from nifi_ns.restore._perceptual import Perceptual, PerceptualMetric


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights and switches of the two losses. A term of weight zero is not computed."""

    t0: int = 199
    """Timestep that restoration starts from, in [0, 1000]."""
    noise_scale: float = 1.0
    """Scale of the noise added at t0. The paper uses 1; 0 adds none."""
    match: float = 1.0
    """Weight of L_match, the sum of both guidance terms."""
    alpha: float = 0.7
    """Share of distribution matching (KL) in L_match. The rest is ground-truth guidance. 0 trains no critic."""
    gt_space: Literal["eps", "velocity"] = "eps"
    """Space of ground-truth guidance: a difference of noises (true scores, attracts at every noise level), or of
    velocities as in TSD-SR's code (repels where sigma < 1/2)."""
    weighting: Literal["sigma2", "uniform"] = "sigma2"
    """w(t): TSD-SR's sigma^2 on velocities (sigma^2 / a on noises, the same for g_kl), or 1."""
    timesteps: tuple[int, int] = (50, 950)
    """Range of the random timestep t, in [0, 1000], both ends included."""
    guidance_scale: float = 7.5
    """Classifier-free guidance scale of the three scores. Use 1 for a backbone without a prompt, such as nifi-tiny."""
    prompt_dropout: float = 0.1
    """Share of samples that train the critic with the null prompt, because guidance also needs that score."""
    latent: float = 1.0
    """Weight of |z_hat - z_gt|^2."""
    pixel: float = 0.0
    """Weight of the squared error of restored views, colours in [0, 1]. Useful where errors in latents do not match
    errors in images."""
    perceptual: float = 1.0
    """Weight of the perceptual loss."""
    perceptual_metric: PerceptualMetric = "ms_ssim"
    """Perceptual loss P. The paper uses LPIPS. LPIPS and DISTS download weights once; the others need none."""

    def __post_init__(self) -> None:
        low, high = self.timesteps
        if not 0 < low <= high < 1000:
            raise NifiError(f"timesteps: expected 0 < low <= high < 1000, got {self.timesteps}")
        if not 0 <= self.alpha <= 1:
            raise NifiError(f"alpha: expected a value in [0, 1], got {self.alpha}")
        if not 0 <= self.prompt_dropout <= 1:
            raise NifiError(f"prompt_dropout: expected a value in [0, 1], got {self.prompt_dropout}")

    @property
    def needs_critic(self) -> bool:
        """Whether distribution matching is on."""
        return self.match > 0 and self.alpha > 0


@dataclass(frozen=True)
class LossNoise:
    """The random numbers of one loss."""

    start_noise: Tensor
    """[B, C, h, w] noise at t0."""
    timestep: Tensor
    """[B] t, integers in [0, 1000] as floats."""
    noise: Tensor
    """[B, C, h, w] noise at t."""
    dropped: Tensor
    """[B] whether the prompt is dropped."""

    @classmethod
    def sample(cls, shape: Sequence[int], config: ObjectiveConfig, generator: torch.Generator) -> "LossNoise":
        """Sample noise for latents of this shape, on the CPU so that all devices get the same numbers."""
        low, high = config.timesteps
        start_noise = torch.randn(*shape, generator=generator)
        timestep = torch.randint(low, high + 1, shape[:1], generator=generator).float()
        noise = torch.randn(*shape, generator=generator)
        return cls(start_noise, timestep, noise, torch.rand(shape[:1], generator=generator) < config.prompt_dropout)

    def part(self, samples: slice, device: torch.device) -> "LossNoise":
        """Return the noise of some samples of the batch on `device`."""
        return LossNoise(*(x[samples].to(device) for x in (self.start_noise, self.timestep, self.noise, self.dropped)))


@torch.no_grad()
def matching_gradient(
    backbone: Denoiser, restored: Tensor, clean: Tensor, timestep: Tensor, noise: Tensor, config: ObjectiveConfig
) -> Tensor:
    """Return `alpha g_kl + (1 - alpha) g_gt`, the gradient of L_match in `restored` (z_hat).

    All tensors are [B, C, h, w] except `timestep`, which is [B].
    """

    def score(latents: Tensor, adapter: AdapterName | None = None) -> tuple[Tensor, Tensor]:
        """Return the noise and velocity that the network predicts for the noised latents."""
        x_t = backbone.add_noise(latents, noise, timestep)
        output = backbone.predict(x_t, timestep, adapter, config.guidance_scale)
        eps = backbone.to_eps(x_t, output, timestep)
        return eps, eps - backbone.to_x0(x_t, output, timestep)

    signal, sigma = (_per_sample(values, restored) for values in (backbone.signal(timestep), backbone.sigma(timestep)))
    weight = sigma**2 if config.weighting == "sigma2" else torch.ones_like(sigma)
    eps_weight = weight / signal if config.weighting == "sigma2" else weight
    eps_real, velocity_real = score(restored)
    gradient = torch.zeros_like(restored)
    if config.alpha > 0:
        gradient += config.alpha * eps_weight * (eps_real - score(restored, "phi_plus")[0])
    if config.alpha < 1:
        eps_clean, velocity_clean = score(clean)
        in_eps = config.gt_space == "eps"
        difference = eps_weight * (eps_real - eps_clean) if in_eps else weight * (velocity_real - velocity_clean)
        gradient += (1 - config.alpha) * difference
    return gradient


def matching_loss(restored: Tensor, gradient: Tensor) -> Tensor:
    """Return `1/2 mean |z_hat - sg(z_hat - g)|^2`. Its gradient in z_hat is `g` / number of elements."""
    return 0.5 * (restored - (restored - gradient).detach()).square().mean()


def critic_loss(
    backbone: Denoiser, restored: Tensor, timestep: Tensor, noise: Tensor, dropped: Tensor | None = None
) -> Tensor:
    """Return L_phi+: the velocity error of the critic on restored latents, weighted as in flow matching."""
    restored = restored.detach()
    x_t = backbone.add_noise(restored, noise, timestep)
    output = backbone.predict(x_t, timestep, "phi_plus", dropped=dropped)
    velocity = backbone.to_eps(x_t, output, timestep) - backbone.to_x0(x_t, output, timestep)
    return 0.5 * (velocity - (noise - restored)).square().mean()


@dataclass
class RestorerLoss:
    """L_phi- and its terms."""

    total: Tensor
    restored: Tensor
    """[B, C, h, w] z_hat, detached. Input of the critic's loss."""
    terms: dict[str, Tensor] = field(default_factory=dict)
    """Unweighted value of each active term, detached."""


def restorer_loss(
    backbone: LatentBackbone,
    degraded: Tensor,
    clean: Tensor,
    noise: LossNoise,
    config: ObjectiveConfig,
    perceptual: Perceptual,
    attended_photos: Tensor | None = None,
    decode: Decode = "full",
) -> RestorerLoss:
    """Return L_phi- of a batch of `degraded` and `clean` images, both [B, 3, H, W] in [0, 1].

    Only phi- attends to `attended_photos` [B, R, 3, H, W] of other cameras; the scores do not. `decode` says how
    restored latents become the views that the pixel and perceptual losses compare.
    """
    with torch.no_grad():
        z_gt = backbone.encode(clean).float()
        others = None if attended_photos is None else encode_photos(backbone, attended_photos)
    z = backbone.encode(degraded, adapter="phi_minus").float()
    z_hat = restore_latents(backbone, z, config.noise_scale * noise.start_noise, config.t0, others).float()
    terms: dict[str, Tensor] = {}
    if config.match > 0:
        gradient = matching_gradient(backbone, z_hat, z_gt, noise.timestep, noise.noise, config)
        terms["match"] = matching_loss(z_hat, gradient)
    if config.latent > 0:
        terms["latent"] = (z_hat - z_gt).square().mean()
    if config.pixel > 0 or config.perceptual > 0:
        kept = torch.zeros_like(degraded)
        if decode == "change":
            with torch.no_grad():
                kept = degraded - backbone.decode(backbone.encode(degraded)).float()
        shown = kept + backbone.decode(z_hat).float()
        if config.pixel > 0:
            terms["pixel"] = (shown - clean).square().mean()
        if config.perceptual > 0:
            terms["perceptual"] = perceptual(shown, clean)
    total = sum((getattr(config, name) * term for name, term in terms.items()), z_hat.new_zeros(()))
    return RestorerLoss(total, z_hat.detach(), {name: term.detach() for name, term in terms.items()})


def _per_sample(values: float | Tensor, like: Tensor) -> Tensor:
    """Reshape [B] to [B, 1, ...] to broadcast with `like`."""
    return torch.as_tensor(values).to(like).view(-1, *[1] * (like.ndim - 1))
