"""A new family of backbones needs one file, such as this one: a miniature Sana transformer with a latent shift."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SanaTransformer2DModel
from miniatures import perturb, save_prompt, save_tiny_decoder, save_vae
from torch import Tensor

from nifi_ns.diffusion import (
    NETWORK_ADAPTER_FILE,
    VAE_ADAPTER_FILE,
    WEIGHTS,
    Backbone,
    Embeddings,
    Family,
    FlowMatching,
    Prompt,
    Source,
    StableDiffusion3,
    default_preset,
    register,
)
from nifi_ns.diffusion.families import FAMILIES
from nifi_ns.errors import NifiError
from nifi_ns.presets import preset_names
from nifi_ns.restore import Restorer, RestorerSettings

SHIFT, SCALE = 0.25, 0.8


class Sana(Family):
    """Linear attention without positions, and separate attention to the text."""

    name = "sana"
    component = "transformer"
    model_class = "SanaTransformer2DModel"
    lora_targets = ("to_q", "to_k", "to_v", "to_out.0", "conv_point")
    self_attention = ("attn1",)
    default_preset = "sana"

    @classmethod
    def read_schedule(cls, config: dict[str, Any]) -> FlowMatching:
        return FlowMatching.from_config(config)

    def encode_prompt(self, source: Source, text: str) -> Prompt:
        embeddings = Embeddings(torch.full((1, 3, 8), float(len(text))))
        return Prompt(text, embeddings, embeddings)

    def __call__(self, x_t: Tensor, timestep: Tensor, prompt: Embeddings) -> Tensor:
        return self.network(x_t, prompt.tokens, timestep, return_dict=False)[0]

    @property
    def latent_multiple(self) -> int:
        return 1


def save_sana(folder: Path) -> None:
    sides: dict[str, Any] = {"in_channels": 4, "out_channels": 4, "num_layers": 2, "caption_channels": 8}
    sides |= {"num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16}
    sides |= {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8}
    SanaTransformer2DModel(**sides).save_pretrained(folder / "transformer")
    save_vae(folder, 4, attention=True, scaling_factor=SCALE, shift_factor=SHIFT)
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    save_prompt(folder, 8, pooled=None)


@pytest.fixture
def sana_folder(tmp_path: Path) -> Iterator[Path]:
    register(Sana)
    save_sana(tmp_path / "sana")
    yield tmp_path / "sana"
    del FAMILIES["sana"]


@pytest.fixture
def sana(sana_folder: Path) -> Backbone:
    """Return a backbone with adapters that have an effect."""
    backbone = Backbone.from_pretrained(sana_folder, device="cpu")
    backbone.add_adapters(rank=2, alpha=4)
    perturb(backbone)
    return backbone


@torch.no_grad()
def test_latents_have_the_family_s_scale_and_shift(sana: Backbone, sana_folder: Path, tmp_path: Path) -> None:
    vae: Any = AutoencoderKL.from_pretrained(sana_folder, subfolder="vae")
    images = torch.rand(1, 3, 16, 24)
    mode = vae.encode(images * 2 - 1).latent_dist.mode()
    latents = sana.encode(images)
    torch.testing.assert_close(latents, (mode - SHIFT) * SCALE)
    torch.testing.assert_close(sana.decode(latents), vae.decode(mode).sample / 2 + 0.5)
    save_tiny_decoder(tmp_path / "tiny", 4, scaling_factor=1.2, shift_factor=0.3)
    sana.use_decoder(tmp_path / "tiny")  # it gets latents as in a pipeline: here, unchanged
    tiny = sana._autoencoder._decoder
    assert tiny is not None
    torch.testing.assert_close(sana.decode(latents), tiny._decoder(latents / 1.2 + 0.3) / 2 + 0.5)


def test_adapters_run_train_and_reload(sana: Backbone, sana_folder: Path, tmp_path: Path) -> None:
    x_t, images = torch.randn(2, 4, 8, 8), torch.rand(1, 3, 16, 16)
    outputs = [sana.predict(x_t, 300, name) for name in (None, "phi_minus", "phi_plus")]
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(outputs, outputs[1:] + outputs[:1], strict=True))
    outputs[1].square().sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in sana.adapter_parameters("phi_minus"))
    sana.save_adapter(tmp_path, "phi_minus")
    other = Backbone.from_pretrained(sana_folder, device="cpu")
    other.load_adapter(tmp_path, "phi_minus")
    assert torch.equal(other.predict(x_t, 300, "phi_minus"), outputs[1])
    plain = Backbone.from_pretrained(sana_folder, device="cpu")  # loaded by diffusers, too
    plain.family.network.load_lora_adapter(str(tmp_path), prefix="transformer", weight_name=NETWORK_ADAPTER_FILE)
    plain.vae.load_lora_adapter(str(tmp_path), prefix="vae", weight_name=VAE_ADAPTER_FILE)
    torch.testing.assert_close(plain.predict(x_t, 300, None), outputs[1])
    torch.testing.assert_close(plain.encode(images), sana.encode(images, "phi_minus"))


def test_the_family_restores_with_and_without_photos(sana: Backbone, tmp_path: Path) -> None:
    restorer = Restorer(sana, RestorerSettings(t0=300, attended_photos=1))
    restorer.save_pretrained(tmp_path / "restorer")
    image, photo = torch.rand(2, 18, 26, 3)
    alone, seeing, itself = (restorer(image, attended_photos=seen) for seen in ((), (photo,), (image,)))
    assert (alone - image).abs().mean() > 0.01 and (seeing - alone).abs().mean() > 1e-4
    assert (itself - alone).abs().mean() < (seeing - alone).abs().mean()
    again = Restorer.from_pretrained(tmp_path / "restorer", device="cpu")
    torch.testing.assert_close(again(image, attended_photos=(photo,)), seeing)


def test_recomputed_gradients_attend_to_photos(sana: Backbone) -> None:
    def gradients() -> list[Tensor | None]:
        x_t = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
        loss = sana.predict(x_t, 300, "phi_minus", num_views=2).square().sum()
        parameters = sana._network_adapters.parameters("phi_minus")
        return list(torch.autograd.grad(loss, parameters, allow_unused=True))

    kept = gradients()
    sana.checkpoint_gradients()
    for a, b in zip(kept, gradients(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_family_has_its_own_preset(sana_folder: Path, backbone_folders: dict[str, Path]) -> None:
    assert default_preset(sana_folder) == "sana"
    presets = {"sd3": "sd3", "sd-turbo": "sd-turbo", "sd2-v": "sd"}
    assert {name: default_preset(folder) for name, folder in backbone_folders.items()} == presets
    assert default_preset("nifi-tiny") == default_preset(WEIGHTS / "nifi-tiny") == "nifi-tiny"  # its class is SD3's
    assert {"nifi-tiny", *presets.values()} <= set(preset_names())


def test_the_family_embeds_a_text(sana_folder: Path) -> None:
    (sana_folder / "text_encoder").mkdir()
    (sana_folder / "text_encoder" / "config.json").write_text("{}")
    prompt = Backbone.from_pretrained(sana_folder, device="cpu", prompt="sharp").prompt
    assert prompt.text == "sharp" and float(prompt.positive.tokens.mean()) == 5


def test_two_families_cannot_share_a_name_or_a_network(sana_folder: Path) -> None:
    with pytest.raises(NifiError, match="there is a family 'sana' already"):
        register(Sana)
    twin = type("Twin", (StableDiffusion3,), {"name": "twin"})
    with pytest.raises(NifiError, match="SD3Transformer2DModel in transformer/ is the family 'sd3' already"):
        register(twin)
    assert set(FAMILIES) == {"sd3", "sd", "sana"}
    FAMILIES.pop("sana")
    with pytest.raises(NifiError, match="is a SanaTransformer2DModel: supported are SD3Transformer2DModel, UNet2D"):
        Backbone.from_pretrained(sana_folder)
    register(Sana)


def test_another_autoencoder_is_refused(sana_folder: Path) -> None:
    config = sana_folder / "vae" / "config.json"
    config.write_text(config.read_text().replace("AutoencoderKL", "AutoencoderDC"))
    with pytest.raises(NifiError, match="has a AutoencoderDC in vae/: expected AutoencoderKL"):
        Backbone.from_pretrained(sana_folder, device="cpu")


def test_sdxl_is_refused_before_its_weights_are_read(backbone_folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    config = (backbone_folders["sd-turbo"] / "unet" / "config.json").read_text()
    (tmp_path / "unet" / "config.json").write_text(
        config.replace('"addition_embed_type": null', '"addition_embed_type": "text_time"')
    )
    with pytest.raises(NifiError, match=r"SDXL's U-Net .* is not supported; use SD1.5"):
        Backbone.from_pretrained(tmp_path)
