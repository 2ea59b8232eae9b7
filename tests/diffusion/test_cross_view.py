"""Self-attention across several views, in every family."""

from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from miniatures import SCHEDULERS, save_prompt, save_vae

from nifi_ns.diffusion import Backbone
from nifi_ns.errors import NifiError


@torch.no_grad()
def test_views_attend_to_each_other_in_every_family(backbone: Backbone) -> None:
    x = torch.rand(2, backbone.latent_channels, 8, 8)
    alone, joined = backbone.predict(x, 199, None), backbone.predict(x, 199, None, num_views=2)
    same = backbone.predict(x[[0, 0]], 199, None, num_views=2)
    assert (joined - alone).abs().max() > 1e-5
    assert torch.allclose(same[0], alone[0], atol=1e-5)  # attending to a copy of itself changes nothing
    assert torch.equal(backbone.predict(x, 199, None), alone)


def test_contexts_nest_and_restore_the_previous_state(sd3: Backbone) -> None:
    family, layer = sd3.family, sd3.family.network.transformer_blocks[0].attn
    own, seen = layer.processor, []
    with pytest.raises(RuntimeError), family.attend_across(2):
        with family.attend_across(3):
            seen.append((family.num_views, layer.processor.num_views, layer.processor.processor is own))
        seen.append((family.num_views, layer.processor.num_views, layer.processor.processor is own))
        raise RuntimeError
    assert seen == [(3, 3, True), (2, 2, True)]
    assert family.num_views == 1 and layer.processor is own


def test_both_attentions_of_sd35_medium_attend_to_photos(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sides = {"attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 16, "caption_projection_dim": 16}
    sides |= {"sample_size": 16, "num_layers": 2, "pooled_projection_dim": 16, "pos_embed_max_size": 16}
    SD3Transformer2DModel(**sides, dual_attention_layers=(0,), qk_norm="rms_norm").save_pretrained(
        tmp_path / "transformer"
    )
    save_vae(tmp_path, 16, attention=True, scaling_factor=1.5305)
    SCHEDULERS["sd3"].save_pretrained(tmp_path / "scheduler")
    save_prompt(tmp_path, 16, pooled=16)
    network = Backbone.from_pretrained(tmp_path, device="cpu").family
    with network.attend_across(2):
        seeing = [
            name for name, m in network.network.named_modules() if hasattr(getattr(m, "processor", 0), "num_views")
        ]
    assert seeing == [f"transformer_blocks.{name}" for name in ("0.attn", "0.attn2", "1.attn")]


def test_a_network_without_such_layers_is_refused(sd3: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(sd3.family), "self_attention", ("attention",))
    other = type(sd3.family)(sd3.family.network, sd3.schedule)
    with other.attend_across(1):
        pass
    with pytest.raises(NifiError, match="cannot attend to photos"), other.attend_across(2):
        pass
