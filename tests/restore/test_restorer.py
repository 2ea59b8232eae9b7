"""From a degraded image to a restored one: kinds and sizes of images, settings, folders on disk."""

import json
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from miniatures import perturb
from pair_folders import write_scene
from PIL import Image

from nifi_ns.commands.train import preset
from nifi_ns.diffusion import NETWORK_ADAPTER_FILE, PROMPT_FILE, WEIGHTS, Backbone
from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.restore import Restorer, RestorerSettings, Trainer


@pytest.fixture
def adapted(sd3: Backbone) -> Backbone:
    sd3.add_adapters(2, 2)
    perturb(sd3)
    return sd3


@pytest.fixture
def restorer(adapted: Backbone) -> Restorer:
    return Restorer(adapted)


@pytest.fixture
def saved(restorer: Restorer, tmp_path: Path) -> Path:
    restorer.training = {"steps": 3}
    restorer.save_pretrained(tmp_path / "restorer")
    return tmp_path / "restorer"


def test_an_image_comes_back_as_what_it_was(restorer: Restorer) -> None:
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


def test_what_is_no_image_is_refused(restorer: Restorer) -> None:
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
    assert restored.isfinite().all()


def test_the_same_image_is_restored_the_same(restorer: Restorer) -> None:
    image = torch.rand(20, 20, 3)
    assert torch.equal(restorer(image), restorer(image))
    other = Restorer(restorer.backbone, RestorerSettings(seed=1))
    assert not torch.allclose(restorer(image), other(image), atol=1e-3)


def test_strength_blends_from_exactly_the_input(restorer: Restorer) -> None:
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


def test_decoding_the_change_cancels_what_the_autoencoder_loses(sd3: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    image = 0.3 + 0.4 * torch.rand(16, 16, 3)
    monkeypatch.setattr(
        sd3, "to_x0", lambda x_t, out, t: x_t / sd3.signal(t)
    )  # a network that finds nothing to restore
    change = Restorer(sd3, RestorerSettings(noise_scale=0))
    full = Restorer(sd3, RestorerSettings(noise_scale=0, decode="full"))
    torch.testing.assert_close(change(image), image, atol=1e-5, rtol=0)
    autoencoded = sd3.decode(sd3.encode(image.movedim(-1, 0)[None]))[0].movedim(0, -1).clamp(0, 1)
    torch.testing.assert_close(full(image), autoencoded, atol=1e-5, rtol=0)
    assert not torch.allclose(full(image), image, atol=0.05)


def test_tiles_are_joined_without_seams(sd3: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_tiles_get_the_noise_of_their_place(restorer: Restorer, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_references_reach_every_tile_at_its_place(restorer: Restorer, monkeypatch: pytest.MonkeyPatch) -> None:
    image, photos = torch.rand(40, 60, 3), [torch.rand(80, 120, 3), torch.rand(3, 40, 60)]
    with pytest.raises(NifiError, match="not trained to look at photos"):
        restorer(image, attended_photos=photos)
    restorer.settings = replace(restorer.settings, attended_photos=1)
    assert not torch.equal(restorer(image, attended_photos=photos), restorer(image))
    restorer.tile_size, restorer.overlap = 32, 8
    monkeypatch.setattr(restorer, "_restore_tile", lambda tile, noise, y, x, attended_photos: attended_photos[:, 1])
    torch.testing.assert_close(restorer(image, attended_photos=photos), photos[1].movedim(0, -1))


def test_results_can_be_used_in_further_gradients(restorer: Restorer) -> None:
    image = torch.rand(8, 8, 3, requires_grad=True)
    (restorer(image) * image).sum().backward()
    assert image.grad is not None


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


def test_a_saved_restorer_is_the_same_restorer(adapted: Backbone, tmp_path: Path) -> None:
    settings = RestorerSettings(t0=300, noise_scale=0.5, strength=0.7, decode="full", input="referenced", seed=4)
    restorer = Restorer(adapted, settings, training={"steps": 7})
    restorer.save_pretrained(tmp_path)
    loaded = Restorer.from_pretrained(tmp_path, device="cpu")
    assert (loaded.settings, loaded.training, loaded.input) == (settings, {"steps": 7}, "referenced")
    image = torch.rand(16, 20, 3)
    assert torch.equal(loaded(image), restorer(image))
    assert loaded.backbone.prompt.text == "a photo"


def test_saving_again_replaces_and_leaves_other_files_alone(saved: Path, restorer: Restorer) -> None:
    (saved / "metrics.json").write_text("{}")
    restorer.settings = RestorerSettings(strength=0.5)
    restorer.save_pretrained(saved)
    assert Restorer.from_pretrained(saved).settings.strength == 0.5
    assert sorted(path.name for path in saved.iterdir()) == sorted(
        ["metrics.json", PROMPT_FILE, NETWORK_ADAPTER_FILE, "vae_lora_weights.safetensors", "restorer.json"]
    )


def test_saving_without_an_encoder_adapter_removes_a_former_one(saved: Path, backbone_folders: dict[str, Path]) -> None:
    sd3 = Backbone.from_pretrained(backbone_folders["sd3"], device="cpu")
    sd3.add_adapters(2, 2, vae_encoder=False)
    restorer, image = Restorer(sd3), torch.rand(8, 8, 3)
    restorer.save_pretrained(saved)
    assert torch.equal(Restorer.from_pretrained(saved, device="cpu")(image), restorer(image))


def test_the_backbone_is_loaded_with_the_first_image(
    saved: Path, backbone_folders: dict[str, Path], tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(backbone_folders["sd3"], moved)
    about = json.loads((saved / "restorer.json").read_text())
    (saved / "restorer.json").write_text(json.dumps({**about, "backbone": "/gone/sd3"}))
    image = torch.rand(8, 8, 3)
    lost = Restorer.from_pretrained(saved, device="cpu")
    with pytest.raises(NifiError, match="no backbone '/gone/sd3'"):
        lost(image)
    assert Restorer.from_pretrained(saved, device="cpu", backbone=moved)(image).shape == image.shape
    with pytest.raises(NifiError, match=r"is for /gone/sd3 \(sd3\), not .*\(sd\)"):
        Restorer.from_pretrained(saved, device="cpu", backbone=backbone_folders["sd-turbo"])(image)


def test_folders_that_cannot_be_read_say_why(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(NifiError, match=r"no restorer in .*expected a restorer\.json"):
        Restorer.from_pretrained(tmp_path / "nothing")
    about = json.loads((saved / "restorer.json").read_text())

    def rewritten(**changes: object) -> Path:
        (saved / "restorer.json").write_text(json.dumps({**about, **changes}))
        return saved

    with pytest.raises(NifiError, match="has version 9, this program reads 1"):
        Restorer.from_pretrained(rewritten(version=9))
    with pytest.raises(NifiError, match="decode is 'half': expected change or full"):
        Restorer.from_pretrained(rewritten(settings={"decode": "half"}))
    with pytest.raises(CorruptFileError, match=r"restorer.json is damaged"):
        Restorer.from_pretrained(rewritten(settings={"colour": 1}))
    (saved / "restorer.json").write_text("{")
    with pytest.raises(CorruptFileError, match=r"restorer.json is damaged"):
        Restorer.from_pretrained(saved)
    rewritten()
    weights = (saved / NETWORK_ADAPTER_FILE).read_bytes()
    (saved / NETWORK_ADAPTER_FILE).write_bytes(weights[:-1] + b"\1")
    with pytest.raises(CorruptFileError, match="is damaged, or of another training"):
        Restorer.from_pretrained(saved)
    (saved / NETWORK_ADAPTER_FILE).unlink()
    with pytest.raises(NifiError, match=r"is incomplete: pytorch_lora_weights\.safetensors is missing"):
        Restorer.from_pretrained(saved)


def test_another_nifi_tiny_is_refused_and_one_that_was_not_noted_is_not(tmp_path: Path) -> None:
    tiny = Backbone.from_pretrained("nifi-tiny", device="cpu")
    tiny.add_adapters(rank=2, alpha=2)
    Restorer(tiny).save_pretrained(tmp_path)
    path = tmp_path / "restorer.json"
    about = json.loads(path.read_text())
    assert len(about["weights"]) == 64
    Restorer.from_pretrained(tmp_path, device="cpu")
    path.write_text(json.dumps({**about, "weights": "0" * 64}))
    with pytest.raises(NifiError, match="was trained on another nifi-tiny than this version's: train it anew"):
        Restorer.from_pretrained(tmp_path)
    pairs = write_scene(tmp_path / "pairs")
    with pytest.raises(NifiError, match="was trained on another nifi-tiny"):
        Trainer(
            tiny,
            [pairs],
            tmp_path / "next",
            preset("nifi-tiny").training.with_options(steps=1, crop=32),
            start=tmp_path,
        )
    image = torch.rand(16, 24, 3)
    own = Restorer.from_pretrained(tmp_path, device="cpu", backbone=WEIGHTS / "nifi-tiny")  # a folder is anybody's
    path.write_text(json.dumps({key: value for key, value in about.items() if key != "weights"}))
    assert torch.equal(Restorer.from_pretrained(tmp_path, device="cpu")(image), own(image))


def test_a_backbone_from_elsewhere_is_not_noted(saved: Path) -> None:
    assert json.loads((saved / "restorer.json").read_text())["weights"] is None


@pytest.mark.parametrize("values", [{"t0": -1}, {"t0": 1001}, {"noise_scale": -1}, {"strength": 1.5}])
def test_settings_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(NifiError, match=r"expected t0 in \[0, 1000\]"):
        RestorerSettings(**values)  # type: ignore[arg-type]
