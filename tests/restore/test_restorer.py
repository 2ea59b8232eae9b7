"""Restoring images: types and sizes of images, tiles, settings, threads."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import perturb
from PIL import Image

from nifi_ns.diffusion import Backbone
from nifi_ns.errors import NifiError
from nifi_ns.restore import Restorer, RestorerSettings


def test_the_result_has_the_type_shape_and_range_of_the_input(restorer: Restorer) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (18, 26, 3), dtype=np.uint8)
    restored = restorer(pixels)
    assert restored.dtype == np.uint8
    assert restored.shape == pixels.shape
    assert not np.array_equal(restored, pixels)
    picture = restorer(Image.fromarray(pixels))
    assert isinstance(picture, Image.Image)
    assert np.array_equal(np.asarray(picture), restored)
    floats = torch.from_numpy(pixels).double() / 255
    as_floats = restorer(floats)
    assert as_floats.dtype == torch.float64
    assert as_floats.min() >= 0
    assert as_floats.max() <= 1
    assert np.array_equal((as_floats * 255).round().numpy(), restored)
    torch.testing.assert_close(restorer(floats.movedim(-1, 0)), as_floats.movedim(-1, 0), atol=1e-5, rtol=0)
    batch = restorer(torch.stack([floats, floats.flip(0)]))
    torch.testing.assert_close(batch[0], as_floats, atol=1e-5, rtol=0)


def test_values_that_are_not_images_are_refused(restorer: Restorer) -> None:
    with pytest.raises(NifiError, match=r"shape \(8, 8\): expected \[H, W, 3\]"):
        restorer(torch.rand(8, 8))
    with pytest.raises(NifiError, match=r"torch.int64: expected uint8"):
        restorer(torch.zeros(8, 8, 3, dtype=torch.long))
    with pytest.raises(NifiError, match="cannot restore a str"):
        restorer("photo.png")


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (17, 40), (90, 70)])
def test_any_size_is_restored(restorer: Restorer, size: tuple[int, int]) -> None:
    image = torch.rand(*size, 3)
    restored = restorer(image)
    assert restored.shape == image.shape
    assert restored.isfinite().all() and not torch.equal(restored, image)


def test_restoring_is_repeatable(restorer: Restorer) -> None:
    image = torch.rand(20, 20, 3)
    assert torch.equal(restorer(image), restorer(image))
    other = Restorer(restorer.backbone, RestorerSettings(seed=1))
    assert not torch.allclose(restorer(image), other(image), atol=1e-3)
    restorer.settings = other.settings  # after the noise was drawn
    assert torch.equal(restorer(image), other(image))


def test_strength_zero_is_exactly_the_input_and_others_blend(restorer: Restorer) -> None:
    image = torch.rand(20, 20, 3)
    full = restorer(image)
    assert torch.equal(restorer(image, strength=0), image)
    torch.testing.assert_close(restorer(image, strength=0.25), image + 0.25 * (full - image))
    quarter = Restorer(restorer.backbone, RestorerSettings(strength=0.25))
    torch.testing.assert_close(quarter(image), image + 0.25 * (full - image))


def test_noise_scale_zero_adds_no_noise(adapted: Backbone) -> None:
    image = torch.rand(20, 20, 3)
    seeds = [Restorer(adapted, RestorerSettings(noise_scale=0, seed=seed))(image) for seed in (0, 1)]
    assert torch.equal(*seeds)


def test_decoding_the_change_cancels_the_loss_of_the_autoencoder(
    sd3: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = 0.3 + 0.4 * torch.rand(16, 16, 3)
    monkeypatch.setattr(sd3, "to_x0", lambda x_t, out, t: x_t / sd3.signal(t))  # a network that changes nothing
    change = Restorer(sd3, RestorerSettings(noise_scale=0))
    full = Restorer(sd3, RestorerSettings(noise_scale=0, decode="full"))
    torch.testing.assert_close(change(image), image, atol=1e-5, rtol=0)
    autoencoded = sd3.decode(sd3.encode(image.movedim(-1, 0)[None]))[0].movedim(0, -1).clamp(0, 1)
    torch.testing.assert_close(full(image), autoencoded, atol=1e-5, rtol=0)
    assert not torch.allclose(full(image), image, atol=0.05)


def test_tiles_are_blended_without_seams(sd3: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 7), (60, 100), mode="bicubic")[0].clamp(0, 1)
    seen = []

    def local(tile: torch.Tensor, *_: object) -> torch.Tensor:
        seen.append(tuple(tile.shape[-2:]))
        return tile * 0.5

    restorer = Restorer(sd3)
    restorer.tile_size, restorer.overlap = 40, 8
    monkeypatch.setattr(restorer, "_restore_tile", local)
    torch.testing.assert_close(restorer(image), image * 0.5)
    assert len(seen) == 6
    assert len(set(seen)) == 1
    assert max(seen[0]) <= 40


def test_tiles_get_their_part_of_the_noise(restorer: Restorer, monkeypatch: pytest.MonkeyPatch) -> None:
    image, noises = torch.rand(3, 40, 60), {}
    restorer.tile_size, restorer.overlap = 32, 8
    backbone = restorer.backbone
    full = restorer._noise_like(image[None])
    original = restorer._restore_tile

    def spy(tile: torch.Tensor, noise: torch.Tensor, top: int, left: int, *more: torch.Tensor | None) -> torch.Tensor:
        noises[top, left] = noise
        return original(tile, noise, top, left, *more)

    monkeypatch.setattr(restorer, "_restore_tile", spy)
    added = []
    monkeypatch.setattr(backbone, "add_noise", lambda z, noise, t: added.append(noise) or z)
    restorer(image)
    for (top, left), noise in zip(noises, added, strict=True):
        height, width = noise.shape[-2:]
        assert torch.equal(noise, full[..., top // 2 : top // 2 + height, left // 2 : left // 2 + width])


def test_tiles_get_their_part_of_the_attended_photos(restorer: Restorer, monkeypatch: pytest.MonkeyPatch) -> None:
    image, photos = torch.rand(40, 60, 3), [torch.rand(80, 120, 3), torch.rand(3, 40, 60)]
    with pytest.raises(NifiError, match="not trained with attended photos"):
        restorer(image, attended_photos=photos)
    restorer.settings = replace(restorer.settings, attended_photos=1)
    assert not torch.equal(restorer(image, attended_photos=photos), restorer(image))
    restorer.tile_size, restorer.overlap = 32, 8
    monkeypatch.setattr(restorer, "_restore_tile", lambda tile, noise, y, x, attended_photos: attended_photos[:, 1])
    torch.testing.assert_close(restorer(image, attended_photos=photos), photos[1].movedim(0, -1))


def test_any_one_step_network_can_restore(tmp_path: Path) -> None:
    class Brightens:
        """A minimal `OneStepNetwork` without diffusion."""

        device, latent_channels, downsampling, pixel_multiple, max_side = torch.device("cpu"), 1, 4, 8, 16

        def restore(self, images, noise, t0, attended_photos=None):
            assert images.shape[-1] <= 16 and noise.shape[-2:] == tuple(side // 4 for side in images.shape[-2:])
            return images + 0.25

        def autoencode(self, images):
            return images + 0.05

        def compile(self, mode):
            raise NotImplementedError

    image = torch.rand(20, 30, 3) / 2
    torch.testing.assert_close(Restorer(Brightens())(image), image + 0.2)
    torch.testing.assert_close(Restorer(Brightens(), RestorerSettings(decode="full"))(image), image + 0.25)
    with pytest.raises(NifiError, match="Brightens has no adapters"):
        Restorer(Brightens()).save_pretrained(tmp_path)


def test_results_can_be_used_in_gradient_computations(restorer: Restorer) -> None:
    image = torch.rand(8, 8, 3, requires_grad=True)
    (restorer(image) * image).sum().backward()
    assert image.grad is not None
    torch.testing.assert_close(image.grad, restorer(image))  # the restored view has no gradient


def test_threads_share_one_restorer(restorer: Restorer) -> None:
    images = [torch.rand(8 + 4 * i, 8, 3) for i in range(4)]
    expected = [restorer(image) for image in images]
    results: dict[int, torch.Tensor] = {}
    threads = [threading.Thread(target=lambda i=i: results.update({i: restorer(images[i])})) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(results[i], expected[i]) for i in range(4))


@pytest.mark.parametrize("family", ["sd2-v"], indirect=True)
def test_a_u_net_restores_and_reloads(backbone: Backbone, tmp_path: Path) -> None:
    backbone.add_adapters(2, 2)
    perturb(backbone)
    image = torch.rand(14, 22, 3)
    restorer = Restorer(backbone)
    restorer.save_pretrained(tmp_path)
    assert torch.equal(Restorer.from_pretrained(tmp_path, device="cpu")(image), restorer(image))


@pytest.mark.parametrize("values", [{"t0": -1}, {"t0": 1001}, {"noise_scale": -1}, {"strength": 1.5}])
def test_settings_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(NifiError, match=r"expected t0 in \[0, 1000\]"):
        RestorerSettings(**values)  # type: ignore[arg-type]
