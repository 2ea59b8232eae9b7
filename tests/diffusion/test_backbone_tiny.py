"""The packaged weights are small, safe to read, and work on a photo that they were not trained on."""

import json
from pathlib import Path
from typing import Any

import pytest
import skimage.data
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from torch import Tensor

from nifi_ns.diffusion import WEIGHTS, Backbone

FOLDER = WEIGHTS / "nifi-tiny"
T0 = 199


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a.clamp(0, 1) - b).square().mean()))


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return Backbone.from_pretrained("nifi-tiny", device="cpu")


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """Return a held-out photo [1, 3, 256, 384]."""
    assert "coffee.png" in json.loads((FOLDER / "training.json").read_text())["held_out"]
    return torch.from_numpy(skimage.data.coffee()[:256, :384]).permute(2, 0, 1)[None].float() / 255


def denoise(backbone: Backbone, image: Tensor, seed: int = 0) -> tuple[float, float]:
    """Return the PSNR of an image whose latents were noised to T0, and after one step from there."""
    z = backbone.encode(image)
    x_t = backbone.add_noise(z, torch.randn(z.shape, generator=torch.Generator().manual_seed(seed)), T0)
    restored = backbone.to_x0(x_t, backbone.predict(x_t, T0, None), T0)
    return psnr(backbone.decode(x_t / backbone.schedule.signal(T0)), image), psnr(backbone.decode(restored), image)


def test_the_folder_is_small_and_contains_no_pickle() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in files) <= 16e6
    assert max(path.stat().st_size for path in files) <= 4e6


def test_stock_diffusers_reads_the_models() -> None:
    kinds: dict[str, Any] = {"transformer": SD3Transformer2DModel, "vae": AutoencoderKL}
    for part, kind in kinds.items():
        _, found = kind.from_pretrained(FOLDER, subfolder=part, output_loading_info=True)
        assert not any(found.values()), found


def test_latents_have_about_unit_variance(tiny: Backbone, photo: Tensor) -> None:
    with torch.no_grad():
        assert 0.5 < tiny.encode(photo).std() < 1.5


def test_the_autoencoder_preserves_a_held_out_photo(tiny: Backbone, photo: Tensor) -> None:
    with torch.no_grad():
        assert psnr(tiny.decode(tiny.encode(photo)), photo) >= 34


def test_one_step_removes_noise_from_a_held_out_photo(tiny: Backbone, photo: Tensor) -> None:
    with torch.no_grad():
        noisy, restored = denoise(tiny, photo)
    assert restored >= noisy + 0.2


def test_latents_depend_only_on_their_neighbourhood(tiny: Backbone, photo: Tensor) -> None:
    with torch.no_grad():
        whole, part = tiny.encode(photo), tiny.encode(photo[..., 64:192, 64:192])
    inner = (..., slice(8, -8), slice(8, -8))
    torch.testing.assert_close(part[inner], whole[..., 16:48, 16:48][inner], atol=0.02, rtol=0.02)


def test_held_out_photos_reach_the_quality_reported_by_training(real_data: Path, tiny: Backbone) -> None:
    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    training = json.loads((FOLDER / "training.json").read_text())
    reconstructed, restored = [], []
    for i, name in enumerate(training["held_out"]):
        file = next((real_data / "natural").rglob(name))
        image = pil_to_tensor(Image.open(file).convert("RGB"))[None].float() / 255
        image = image[..., : image.shape[-2] // 8 * 8, : image.shape[-1] // 8 * 8]
        with torch.no_grad():
            reconstructed.append(psnr(tiny.decode(tiny.encode(image)), image))
            restored.append(denoise(tiny, image[..., :256, :256], seed=i)[1])
    assert sum(reconstructed) / len(restored) >= 38
    assert sum(restored) / len(restored) >= 36
    # Half-precision storage must not reduce quality visibly.
    assert sum(reconstructed) / len(restored) == pytest.approx(training["autoencoder_psnr"], abs=0.02)
    assert sum(restored) / len(restored) == pytest.approx(training["self_denoising_psnr"], abs=0.02)
