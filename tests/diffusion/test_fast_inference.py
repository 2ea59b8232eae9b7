"""Options that make a restorer faster: a small decoder, half precision, compiled networks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from miniatures import perturb, save_tiny_decoder

from nifi_ns.diffusion import Backbone
from nifi_ns.errors import NifiError
from nifi_ns.restore import Restorer, RestorerSettings


@pytest.fixture
def saved(backbone: Backbone, tmp_path: Path) -> Path:
    """Return the folder of a restorer of each family."""
    backbone.add_adapters(2, 2)
    perturb(backbone)
    Restorer(backbone, RestorerSettings(decode="full")).save_pretrained(tmp_path / "restorer")
    return tmp_path / "restorer"


@pytest.fixture
def image() -> torch.Tensor:
    return torch.rand(18, 26, 3, generator=torch.Generator().manual_seed(0))


def test_a_small_decoder_gets_latents_as_from_a_diffusers_pipeline(backbone: Backbone, tmp_path: Path) -> None:
    save_tiny_decoder(tmp_path, backbone.latent_channels, scaling_factor=1.2, shift_factor=0.3)
    tiny: Any = AutoencoderTiny.from_pretrained(tmp_path)
    backbone.vae.register_to_config(shift_factor=0.0609)
    images = torch.rand(2, 3, 16, 24)
    raw = backbone.vae.encode(images * 2 - 1).latent_dist.mode()
    as_pipelines_do = (raw - 0.0609) * backbone.vae.config.scaling_factor
    backbone.use_decoder(tmp_path)
    expected = tiny.decode(as_pipelines_do / 1.2 + 0.3).sample / 2 + 0.5
    torch.testing.assert_close(backbone.decode(backbone.encode(images)), expected)


def test_a_restorer_uses_a_small_decoder(backbone: Backbone, saved: Path, image: torch.Tensor, tmp_path: Path) -> None:
    save_tiny_decoder(tmp_path / "tiny", backbone.latent_channels)
    plain, fast = (Restorer.from_pretrained(saved, "cpu", decoder=d) for d in (None, tmp_path / "tiny"))
    restored = fast(image)
    assert restored.shape == image.shape and not torch.allclose(restored, plain(image), atol=1e-3)
    backbone.use_decoder(tmp_path / "tiny")
    torch.testing.assert_close(restored, Restorer(backbone, plain.settings)(image))


def test_decoders_that_do_not_fit_are_refused(backbone_folders: dict[str, Path], sd3: Backbone, tmp_path: Path):
    save_tiny_decoder(tmp_path / "sd", 4)
    with pytest.raises(NifiError, match=r"is for 4 channels and 2 pixels per latent, the backbone has 16 and 2"):
        sd3.use_decoder(tmp_path / "sd")
    save_tiny_decoder(tmp_path / "far", 16, num_decoder_blocks=(1, 1, 1), decoder_block_out_channels=(8, 8, 8))
    with pytest.raises(NifiError, match="is for 16 channels and 4 pixels per latent"):
        sd3.use_decoder(tmp_path / "far")
    for name in (backbone_folders["sd3"] / "vae", tmp_path, "nifi-tiny"):
        with pytest.raises(NifiError, match="holds no AutoencoderTiny, such as"):
            sd3.use_decoder(name)
    with pytest.raises(NifiError, match="no decoder '/nowhere'"):
        sd3.use_decoder("/nowhere")
    with pytest.raises(NifiError, match="cannot reach the hub for madebyollin/taesd3"):
        sd3.use_decoder("madebyollin/taesd3")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float16, torch.float64])
def test_half_precision_accepts_images_of_any_dtype(saved: Path, image: torch.Tensor, dtype: torch.dtype) -> None:
    full, half = (Restorer.from_pretrained(saved, "cpu", d) for d in (torch.float32, torch.bfloat16))
    scale = 255 if dtype == torch.uint8 else 1
    given = (image * scale).to(dtype)
    restored = half(given)
    assert restored.dtype == dtype and half.backbone.dtype == torch.bfloat16
    expected = full(given.double() / scale)
    assert (restored.double() / scale - expected).abs().mean() < 0.02


def test_compiling_without_a_compiler_is_refused(saved: Path, image: torch.Tensor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NifiError, match=r"needs a C\+\+ compiler: .* or do not compile"):
        Restorer.from_pretrained(saved, "cpu", compile="default")(image)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd3"], indirect=True)
def test_compiled_networks_give_the_same_result(saved: Path, image: torch.Tensor) -> None:
    plain, fast = (Restorer.from_pretrained(saved, "cpu", compile=c) for c in (None, "default"))
    for settings in (plain.settings, RestorerSettings(decode="change")):
        plain.settings = fast.settings = settings
        for picture in (image, image.flip(0)):
            torch.testing.assert_close(fast(picture), plain(picture), atol=1e-4, rtol=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 3
