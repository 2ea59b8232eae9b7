"""Difix in miniature: a folder of its layout, against its autoencoder run with peft and hooks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from miniatures import save_sd, save_text_encoders
from peft import LoraConfig
from safetensors.torch import save_file
from torch import nn

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.restore.difix import Difix, is_difix
from nifi_ns.restore.views import across_views

CHANNELS = (8, 8, 16, 16)
# by what layers of the decoder have LoRA weights, according to public descriptions
TARGETS = r"decoder\.(.*\.)?(conv1|conv2|conv_in|conv_shortcut|conv|conv_out|skip_conv_\d|to_k|to_q|to_v|to_out\.0)"


def autoencoder() -> Any:
    """Difix's, as its training left it: skip convolutions and LoRA weights that say something."""
    blocks = len(CHANNELS)
    config: dict[str, Any] = {"layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 2}
    config |= {"down_block_types": ("DownEncoderBlock2D",) * blocks, "up_block_types": ("UpDecoderBlock2D",) * blocks}
    config["block_out_channels"] = CHANNELS
    vae: Any = AutoencoderKL(**config)
    sides = [(CHANNELS[-1], 16), (8, 16), (8, 16), (8, 8)]  # in the real one 512-512, 256-512, 128-512, 128-256
    for i, (seen, wanted) in enumerate(sides):
        setattr(vae.decoder, f"skip_conv_{i + 1}", nn.Conv2d(seen, wanted, 1, bias=False))
    vae.add_adapter(LoraConfig(r=4, init_lora_weights="gaussian", target_modules=TARGETS), "vae_skip")
    for name, parameter in vae.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(parameter.data, std=0.1)
    return vae.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("difix")
    save_sd(root, "sd-turbo")
    (root / "prompt.safetensors").unlink()
    save_text_encoders(root, "sd-turbo")
    (root / "model_index.json").write_text(json.dumps({"_class_name": "DifixPipeline"}))
    vae = autoencoder()
    config = {k: v for k, v in vae.config.items() if not k.startswith("_")}
    (root / "vae" / "config.json").write_text(json.dumps(config))
    save_file(vae.state_dict(), root / "vae" / "diffusion_pytorch_model.safetensors")
    return root


@pytest.fixture
def difix(folder: Path) -> Difix:
    return Difix.from_pretrained(folder, device="cpu")


NONE = torch.zeros(1, 1, 1, 1)  # noise, that Difix does without


@torch.no_grad()
def test_is_what_peft_and_hooks_make_of_the_same_weights(difix: Difix, folder: Path) -> None:
    torch.manual_seed(0)
    vae = autoencoder()
    from safetensors.torch import load_file

    vae.load_state_dict(load_file(folder / "vae" / "diffusion_pytorch_model.safetensors"))
    seen: list[torch.Tensor] = []
    for block in vae.encoder.down_blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for i, block in enumerate(vae.decoder.up_blocks):
        skip = getattr(vae.decoder, f"skip_conv_{i + 1}")
        block.register_forward_pre_hook(lambda _, inputs, i=i, skip=skip: (inputs[0] + skip(seen[-1 - i]), *inputs[1:]))
    image = torch.rand(1, 3, 32, 48)
    z = vae.encode(image * 2 - 1).latent_dist.mode() * vae.config.scaling_factor
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha = float((1 - betas).cumprod(0)[199])
    eps = difix.family.network(z, 199, difix.prompt.positive.tokens).sample
    x_0 = (z - (1 - alpha) ** 0.5 * eps) / alpha**0.5  # of the latents as they are: neither noise nor scale
    expected = vae.decode(x_0 / vae.config.scaling_factor).sample / 2 + 0.5
    assert torch.allclose(difix.restore(image, NONE), expected, atol=1e-4)
    assert difix.prompt.text == "remove degradation"


@torch.no_grad()
def test_references_are_looked_at(difix: Difix) -> None:
    image, photo = torch.rand(2, 3, 32, 48), torch.rand(2, 1, 3, 32, 48)
    alone, with_photo = difix.restore(image, NONE), difix.restore(image, NONE, references=photo)
    assert with_photo.shape == image.shape and (with_photo - alone).abs().mean() > 1e-5
    # a view that sees itself twice sees nothing new
    assert torch.allclose(difix.restore(image, NONE, references=image[:, None]), alone, atol=1e-5)
    # nor does one sample of a batch see the other's photo
    assert torch.allclose(difix.restore(image[:1], NONE, references=photo[:1]), with_photo[:1], atol=1e-5)
    order = torch.rand(2, 2, 3, 32, 48)
    assert torch.allclose(
        difix.restore(image, NONE, references=order), difix.restore(image, NONE, references=order.flip(1)), atol=1e-5
    )


@torch.no_grad()
def test_views_are_joined_in_every_family(backbone) -> None:
    x, channels = torch.rand(2, backbone.latent_channels, 8, 8), backbone.family.network
    alone = backbone.predict(x, 199, None)
    with across_views(channels, 2):
        joined = backbone.predict(x, 199, None)
        same = backbone.predict(x[[0, 0]], 199, None)
    assert (joined - alone).abs().max() > 1e-5
    assert torch.allclose(same[0], alone[0], atol=1e-5)
    assert torch.equal(backbone.predict(x, 199, None), alone)


def test_is_told_from_other_folders(folder: Path, backbone_folders: dict[str, Path]) -> None:
    assert is_difix(folder)
    assert not any(map(is_difix, (*backbone_folders.values(), "nifi-tiny", folder / "nothing")))


def test_another_autoencoder_is_one_line(folder: Path, backbone_folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = "vae/diffusion_pytorch_model.safetensors"
    shutil.copy(backbone_folders["sd-turbo"] / weights, broken / weights)
    with pytest.raises(CorruptFileError, match=r"is not Difix's autoencoder: 'decoder\.skip_conv_1 to 4'"):
        Difix.from_pretrained(broken, device="cpu")
    (broken / weights).write_bytes(b"nothing")
    with pytest.raises(NifiError, match="cannot load the backbone"):
        Difix.from_pretrained(broken, device="cpu")
