"""Checkpoints in the authors' layouts, written with peft and diffusers for a miniature SD3."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from miniatures import save_text_encoders
from peft import LoraConfig, get_peft_model_state_dict

from nifi_ns.diffusion import Backbone
from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.restore import Restorer
from nifi_ns.restore._layouts import LAYOUTS
from nifi_ns.restore._published import EMBEDDINGS_FILE, PROMPT, read_lora_tensors

TARGETS = ["to_k", "to_q", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "proj", "linear", "proj_out"]
CLOSE = {"rtol": 0, "atol": 5e-3}  # they pass timestep 199, this package that of the nearest sigma, 197.9
IMAGE = torch.rand(16, 24, 3, generator=torch.Generator().manual_seed(1))


class Authors:
    """Reference of the authors' code: models with LoRA layers, their state dicts, one step from timestep 199."""

    def __init__(self, folder: Path):
        torch.manual_seed(0)
        self.vae: Any = AutoencoderKL.from_pretrained(folder, subfolder="vae")
        self.transformer: Any = SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer")
        self.scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
        convolutions = [
            f"encoder.{name}"
            for name, module in self.vae.encoder.named_modules()
            if isinstance(module, torch.nn.Conv2d) or name.endswith(("to_q", "to_k", "to_v", "to_out.0"))
        ]
        for model, rank, targets in ((self.vae, 3, convolutions), (self.transformer, 4, TARGETS)):
            model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), adapter_name="default")
            for key, parameter in model.named_parameters():
                if ".lora_" in key:
                    torch.nn.init.normal_(parameter.data, std=0.2)
        self.prompt = {"prompt_embeds": torch.randn(1, 3, 16), "pooled_prompt_embeds": torch.randn(1, 16)}

    def save(self, folder: Path, layout: str) -> Path:
        np.savez(folder / EMBEDDINGS_FILE, **{k: v.numpy() for k, v in self.prompt.items()})
        if layout == "file":
            states = {"vae": self.vae.state_dict(), "transformer": self.transformer.state_dict()}
            torch.save(states, folder / "restorer.ckpt")
            return folder / "restorer.ckpt"
        for part in ("transformer", "vae"):  # both as "transformer", as in TSD-SR's training code
            layers: dict[str, Any] = get_peft_model_state_dict(getattr(self, part), adapter_name="default")
            name = f"{part}.safetensors"
            StableDiffusion3Pipeline.save_lora_weights(str(folder), transformer_lora_layers=layers, weight_name=name)
        return folder

    @torch.no_grad()
    def restore(self, image: torch.Tensor) -> torch.Tensor:
        z = self.vae.encode(image.movedim(-1, 0)[None] * 2 - 1).latent_dist.mode() * self.vae.config.scaling_factor
        sigma = self.scheduler.sigmas[(self.scheduler.timesteps - 199).abs().argmin()]
        z_t = sigma * torch.randn(z.shape, generator=torch.Generator().manual_seed(0)) + (1 - sigma) * z
        prompt = {
            "encoder_hidden_states": self.prompt["prompt_embeds"],
            "pooled_projections": self.prompt["pooled_prompt_embeds"],
        }
        z_hat = z_t - sigma * self.transformer(z_t, timestep=torch.tensor([199.0]), **prompt).sample
        restored = self.vae.decode(z_hat / self.vae.config.scaling_factor).sample / 2 + 0.5
        return restored[0].movedim(0, -1).clamp(0, 1)


@pytest.fixture
def authors(backbone_folders: dict[str, Path]) -> Authors:
    return Authors(backbone_folders["sd3"])


@pytest.mark.parametrize("layout", ["file", "folder"])
def test_published_checkpoints_restore_like_the_authors_code(authors, backbone_folders, tmp_path: Path, layout):
    (tmp_path / "theirs").mkdir()
    path = authors.save(tmp_path / "theirs", layout)
    restorer = Restorer.from_pretrained(path, device="cpu", backbone=backbone_folders["sd3"])
    restored, expected = restorer(IMAGE), authors.restore(IMAGE)
    torch.testing.assert_close(restored, expected, **CLOSE)
    assert (restored - IMAGE).abs().mean() > 0.05
    restorer.save_pretrained(tmp_path / "ours")
    torch.testing.assert_close(Restorer.from_pretrained(tmp_path / "ours", device="cpu")(IMAGE), restored)


def test_without_embeddings_the_prompt_text_is_embedded(authors, backbone_folders, tmp_path: Path, monkeypatch):
    path = authors.save(tmp_path, "file")
    (tmp_path / EMBEDDINGS_FILE).unlink()
    with pytest.raises(NifiError, match="has no text_encoder/"):  # the miniature SD3 has no text encoders
        Restorer.from_pretrained(path, device="cpu", backbone=backbone_folders["sd3"])(IMAGE)
    asked, folder = [], tmp_path / "with_encoder"
    shutil.copytree(backbone_folders["sd3"], folder)
    save_text_encoders(folder, "sd3")
    monkeypatch.setattr("nifi_ns.diffusion.StableDiffusion3.encode_prompt", lambda *a: asked.append(a[2]))
    with pytest.raises(AttributeError):
        Restorer.from_pretrained(path, device="cpu", backbone=folder)(IMAGE)
    assert asked == [PROMPT]


def test_layers_without_weights_are_not_adapted(authors, backbone_folders, tmp_path: Path):
    path = authors.save(tmp_path, "file")
    states = torch.load(path)
    kept = {k: v for k, v in states["transformer"].items() if "lora" not in k or "blocks.0." in k}
    torch.save({**states, "transformer": kept}, path)
    for key, parameter in authors.transformer.named_parameters():
        if ".lora_" in key and "blocks.0." not in key:
            parameter.data.zero_()
    restored = Restorer.from_pretrained(path, device="cpu", backbone=backbone_folders["sd3"])(IMAGE)
    torch.testing.assert_close(restored, authors.restore(IMAGE), **CLOSE)


def test_files_that_are_not_checkpoints_are_refused(authors, backbone_folders, tmp_path: Path):
    path = authors.save(tmp_path, "file")

    def load(family: str = "sd3") -> None:
        Restorer.from_pretrained(path, device="cpu", backbone=backbone_folders[family])(IMAGE)

    states = torch.load(path)
    torch.save({**states, "transformer": {**states["transformer"], "x.lora_A.default.weight": torch.ones(4, 2)}}, path)
    with pytest.raises(NifiError, match=r"has an unknown transformer\.x\.lora_A\.weight"):
        load()
    torch.save({**states, "transformer": {}}, path)
    with pytest.raises(NifiError, match=r"restorer\.ckpt holds no LoRA adapter of one rank for the transformer"):
        load()
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CorruptFileError, match="expected state dicts of transformer and vae"):
        read_lora_tensors(path)
    path.write_bytes(b"no checkpoint")
    with pytest.raises(CorruptFileError, match="is not a readable checkpoint"):
        Restorer.from_pretrained(path)  # refused before an image or backbone is needed
    torch.save(states, path)
    (tmp_path / EMBEDDINGS_FILE).write_bytes(b"PK")
    with pytest.raises(CorruptFileError, match="does not hold prompt embeddings"):
        load()


def test_embeddings_are_found_in_the_authors_repository(authors, backbone_folders, tmp_path: Path):
    for folder in ("checkpoints", "example"):
        (tmp_path / folder).mkdir()
    path = authors.save(tmp_path / "checkpoints", "file")
    expected = Restorer.from_pretrained(path, device="cpu", backbone=backbone_folders["sd3"])(IMAGE)
    (path.parent / EMBEDDINGS_FILE).rename(tmp_path / "example" / EMBEDDINGS_FILE)
    found = Restorer.from_pretrained(path, device="cpu", backbone=backbone_folders["sd3"])
    assert torch.equal(found(IMAGE), expected) and found.backbone.prompt.text == PROMPT


def test_each_layout_recognises_only_its_own(authors, backbone_folders, difix_folder: Path, tmp_path: Path):
    for name in ("file", "folder", "own", "empty"):
        (tmp_path / name).mkdir()
    paths = [authors.save(tmp_path / name, name) for name in ("file", "folder")]
    tiny = Backbone.from_pretrained("nifi-tiny", device="cpu")
    tiny.add_adapters(2, 2)
    Restorer(tiny).save_pretrained(tmp_path / "own")
    recognized = [
        [layout.recognizes(path) for layout in LAYOUTS]
        for path in (tmp_path / "own", *paths, difix_folder, tmp_path / "empty", backbone_folders["sd3"])
    ]
    assert recognized == [[i == j for j in range(4)] for i in range(4)] + [[False] * 4] * 2
