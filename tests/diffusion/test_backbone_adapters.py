"""Two adapters on one frozen network: which runs, which trains, and that diffusers can read both."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
from diffusers.models.attention import JointTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from miniatures import perturb
from torch import Tensor

from nifi_ns.diffusion import NETWORK_ADAPTER_FILE, VAE_ADAPTER_FILE, Backbone
from nifi_ns.errors import CorruptFileError, NifiError


@pytest.fixture(params=["sd3", "sd-turbo"])
def family(request: pytest.FixtureRequest) -> str:
    """Return each family once."""
    return request.param


@pytest.fixture
def x_t(backbone: Backbone) -> Tensor:
    return torch.randn(1, backbone.latent_channels, 8, 8)


def test_new_adapters_have_no_effect(backbone: Backbone, x_t: Tensor) -> None:
    images = torch.rand(1, 3, 16, 16)
    before, latents = backbone.predict(x_t, 199, None), backbone.encode(images)
    backbone.add_adapters(4, 4)
    for name in ("phi_minus", "phi_plus", None):
        torch.testing.assert_close(backbone.predict(x_t, 199, name), before)
    torch.testing.assert_close(backbone.encode(images, "phi_minus"), latents)


def test_adapters_are_independent_and_off_is_the_frozen_network(backbone: Backbone, x_t: Tensor) -> None:
    before = backbone.predict(x_t, 199, None)
    backbone.add_adapters(4, 8)
    perturb(backbone)
    minus, plus = backbone.predict(x_t, 199, "phi_minus"), backbone.predict(x_t, 199, "phi_plus")
    assert torch.equal(backbone.predict(x_t, 199, None), before)
    assert torch.equal(backbone.predict(x_t, 199, "phi_minus"), minus)
    for a, b in ((minus, before), (plus, before), (minus, plus)):
        assert not torch.allclose(a, b, atol=1e-3)


def test_only_the_autoencoder_s_encoder_is_adapted(backbone: Backbone, family: str) -> None:
    images, latents = torch.rand(1, 3, 16, 16), torch.randn(1, backbone.latent_channels, 8, 8)
    decoded, encoded = backbone.decode(latents), backbone.encode(images)
    backbone.add_adapters(4, 4)
    perturb(backbone)
    assert not torch.allclose(backbone.encode(images, "phi_minus"), encoded, atol=1e-3)
    assert torch.equal(backbone.encode(images), encoded)
    assert torch.equal(backbone.encode(images, "phi_plus"), encoded)
    assert torch.equal(backbone.decode(latents), decoded)
    layers = {k.rsplit(".lora_", 1)[0] for k in backbone.adapter_state_dict("phi_minus") if k.startswith("vae.")}
    convolutions = {
        f"vae.{name}"
        for name, module in backbone.vae.encoder.named_modules(prefix="encoder")
        if isinstance(module, torch.nn.Conv2d) and "lora" not in name
    }
    assert {c.removesuffix(".base_layer") for c in convolutions} <= layers
    assert any(".attentions.0.to_q" in layer for layer in layers)
    assert ("vae.quant_conv" in layers) == (family != "sd3")


def test_without_an_encoder_adapter_the_encoder_is_the_frozen_one(sd3: Backbone) -> None:
    images = torch.rand(1, 3, 16, 16)
    sd3.add_adapters(2, 2, vae_encoder=False)
    assert torch.equal(sd3.encode(images, "phi_minus"), sd3.encode(images))
    assert not any(key.startswith("vae.") for key in sd3.adapter_state_dict("phi_minus"))


def test_gradients_reach_the_adapter_that_ran_even_if_another_runs_later(backbone: Backbone) -> None:
    backbone.add_adapters(2, 2)
    perturb(backbone)
    z = backbone.encode(torch.rand(1, 3, 16, 16), "phi_minus")
    loss = backbone.predict(z, 199, "phi_minus").square().sum()
    with torch.no_grad():
        backbone.predict(z, 500, None)
        backbone.predict(z, 500, "phi_plus")
    loss.backward()
    minus, plus = backbone.adapter_parameters("phi_minus"), backbone.adapter_parameters("phi_plus")
    unused = {id(p) for p in minus if p.grad is None or not p.grad.any()}
    # The text stream of SD3's last block is unused, so its queries get no gradient.
    queries = {id(p) for k, p in backbone.family.network.named_parameters() if "blocks.1.attn.add_q_proj.lora" in k}
    assert unused <= queries
    assert all(p.grad is None and p.requires_grad for p in plus)


def test_gradient_checkpointing_does_not_change_gradients(backbone_folders: dict[str, Path], family: str) -> None:
    images = torch.rand(1, 3, 16, 16)

    def gradients(checkpointed: bool) -> tuple[list[Tensor | None], int]:
        torch.manual_seed(0)
        backbone = Backbone.from_pretrained(backbone_folders[family], device="cpu")
        backbone.add_adapters(2, 2)
        perturb(backbone)
        if checkpointed:
            backbone.checkpoint_gradients()
        calls = []
        for part in (backbone.family.network, backbone.vae.encoder, backbone.vae.decoder):
            block = next(m for m in part.modules() if isinstance(m, JointTransformerBlock | ResnetBlock2D))
            block.register_forward_pre_hook(lambda module, *_: calls.append(module))
        z = backbone.encode(images, "phi_minus")
        decoded = backbone.decode(backbone.predict(z, 199, "phi_minus"))
        with torch.no_grad():
            backbone.predict(z, 500, None)
            backbone.predict(z, 500, "phi_plus")
        calls.clear()
        decoded.square().sum().backward()
        return [p.grad for p in backbone.adapter_parameters("phi_minus")], len(calls)

    kept, before = gradients(checkpointed=False)
    computed, again = gradients(checkpointed=True)
    assert (before, again) == (0, 3)
    assert sum(g is not None and bool(g.any()) for g in kept) > 0.9 * len(kept)
    for a, b in zip(kept, computed, strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_adapters_stay_frozen_when_switched(sd3: Backbone) -> None:
    sd3.add_adapters(2, 2)
    for parameter in sd3.adapter_parameters("phi_minus"):
        parameter.requires_grad_(False)
    sd3.predict(torch.randn(1, 16, 4, 4), 199, "phi_minus")
    assert not any(p.requires_grad for p in sd3.adapter_parameters("phi_minus"))
    assert all(p.requires_grad for p in sd3.adapter_parameters("phi_plus"))


def test_adapters_train_in_float32_on_a_half_precision_backbone(backbone_folders: dict[str, Path]) -> None:
    sd3 = Backbone.from_pretrained(backbone_folders["sd3"], device="cpu", dtype=torch.bfloat16)
    sd3.add_adapters(2, 2)
    sd3.predict(sd3.encode(torch.rand(1, 3, 16, 16), "phi_minus"), 199, "phi_minus").sum().backward()
    assert {p.dtype for p in sd3.adapter_parameters("phi_minus")} == {torch.float32}
    assert any(p.grad is not None and p.grad.any() for p in sd3.adapter_parameters("phi_minus"))


def test_one_network_is_shared_by_both_adapters(sd3: Backbone) -> None:
    before = sum(p.numel() for p in sd3.family.network.parameters())
    sd3.add_adapters(2, 2, vae_encoder=False)
    added = sum(p.numel() for name in ("phi_minus", "phi_plus") for p in sd3.adapter_parameters(name))
    assert sum(p.numel() for p in sd3.family.network.parameters()) == before + added


def test_a_saved_adapter_is_loaded_with_rank_alpha_and_weights(
    backbone: Backbone, backbone_folders: dict[str, Path], family: str, x_t: Tensor, tmp_path: Path
) -> None:
    images = torch.rand(1, 3, 16, 16)
    backbone.add_adapters(3, 6)
    perturb(backbone)
    backbone.save_adapter(tmp_path, "phi_minus")
    other = Backbone.from_pretrained(backbone_folders[family], device="cpu")
    other.load_adapter(tmp_path, "phi_minus")
    assert torch.equal(other.predict(x_t, 199, "phi_minus"), backbone.predict(x_t, 199, "phi_minus"))
    assert torch.equal(other.encode(images, "phi_minus"), backbone.encode(images, "phi_minus"))


def test_diffusers_reads_a_saved_adapter(
    backbone: Backbone, backbone_folders: dict[str, Path], family: str, x_t: Tensor, tmp_path: Path
) -> None:
    backbone.add_adapters(3, 6)
    perturb(backbone)
    backbone.save_adapter(tmp_path, "phi_minus")
    plain = Backbone.from_pretrained(backbone_folders[family], device="cpu")
    parts = {"scheduler": None, "vae": plain.vae, "text_encoder": None, "tokenizer": None}
    if family == "sd3":
        parts |= {"text_encoder_2": None, "tokenizer_2": None, "text_encoder_3": None, "tokenizer_3": None}
        StableDiffusion3Pipeline(transformer=plain.family.network, **parts).load_lora_weights(str(tmp_path))  # type: ignore[arg-type]
    else:
        parts |= {"safety_checker": None, "feature_extractor": None}
        pipeline = StableDiffusionPipeline(unet=plain.family.network, **parts, requires_safety_checker=False)  # type: ignore[arg-type]
        pipeline.load_lora_weights(str(tmp_path))
    plain.vae.load_lora_adapter(str(tmp_path), prefix="vae", weight_name=VAE_ADAPTER_FILE)
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(plain.predict(x_t, 199, None), backbone.predict(x_t, 199, "phi_minus"))
        torch.testing.assert_close(plain.encode(images), backbone.encode(images, "phi_minus"))


def test_a_state_dict_moves_from_one_adapter_to_another(sd3: Backbone) -> None:
    x_t = torch.randn(1, 16, 4, 4)
    sd3.add_adapters(2, 2, vae_encoder=False)
    perturb(sd3)
    sd3.load_adapter_state_dict("phi_plus", sd3.adapter_state_dict("phi_minus"))
    assert torch.equal(sd3.predict(x_t, 199, "phi_plus"), sd3.predict(x_t, 199, "phi_minus"))


def test_an_adapter_of_another_backbone_or_rank_is_refused(
    backbone_folders: dict[str, Path], sd3: Backbone, tmp_path: Path
) -> None:
    sd = Backbone.from_pretrained(backbone_folders["sd-turbo"], device="cpu")
    sd.add_adapters(2, 2)
    sd.save_adapter(tmp_path, "phi_minus")
    with pytest.raises(NifiError, match="no LoRA adapter of one rank for the transformer"):
        sd3.load_adapter(tmp_path, "phi_minus")
    sd3.add_adapters(2, 2)
    state = sd3.adapter_state_dict("phi_minus")
    first = next(iter(state))
    with pytest.raises(NifiError, match=f"lacks {first}"):
        sd3.load_adapter_state_dict("phi_minus", {k: v for k, v in state.items() if k != first})
    with pytest.raises(NifiError, match="expected"):
        sd3.load_adapter_state_dict("phi_minus", {k: v[..., :1] for k, v in state.items()})
    with pytest.raises(NifiError, match="already has an adapter 'phi_minus'"):
        sd3.add_adapters(2, 2)


def test_a_missing_or_truncated_adapter_is_refused(sd3: Backbone, tmp_path: Path) -> None:
    with pytest.raises(NifiError, match="no adapter at"):
        sd3.load_adapter(tmp_path, "phi_minus")
    sd3.add_adapters(2, 2)
    sd3.save_adapter(tmp_path, "phi_minus")
    file = tmp_path / NETWORK_ADAPTER_FILE
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(CorruptFileError, match="is damaged"):
        sd3.load_adapter(tmp_path, "phi_minus")
