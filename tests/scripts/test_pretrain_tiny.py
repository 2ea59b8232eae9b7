"""The pre-training of nifi-tiny: it runs, it resumes, and it begins where it says it begins."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from nifi_ns.diffusion import Backbone, StableDiffusion3

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five small images of smooth random colours."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(5):
        coarse = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(i))
        pixels = F.interpolate(coarse, (128, 128), mode="bicubic")[0].clamp(0, 1).permute(1, 2, 0).numpy()
        Image.fromarray((pixels * 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("_tiny_models")


def pretrain(photos: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "pretrain_tiny.py"), "--smoke", "--data", str(photos)]
    command += ["--output", str(folder / "tiny"), "--progress", str(folder / "progress"), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_the_autoencoder_begins_as_the_patches_principal_components(models, photos: Path) -> None:
    images = [torch.from_numpy(np.asarray(Image.open(f)).copy()).permute(2, 0, 1) / 255 for f in photos.iterdir()]
    vae = models.build_autoencoder(images)
    patches = F.pixel_unshuffle(torch.stack(images) * 2 - 1, 4)
    with torch.no_grad():
        decoded = vae.decode(vae.encode(patches).latent_dist.mode()).sample
    flat = patches.movedim(1, -1).reshape(-1, 48).double()
    centred = flat - flat.mean(0)
    basis = torch.linalg.eigh(centred.T @ centred)[1][:, -models.LATENT_CHANNELS :]
    expected = (centred @ basis @ basis.T + flat.mean(0)).reshape(5, 32, 32, 48).movedim(-1, 1).float()
    torch.testing.assert_close(decoded, expected, atol=0.01, rtol=0)


def test_the_transformer_begins_without_a_velocity(models) -> None:
    transformer = models.build_transformer(128, 2)
    prompt = models.fixed_prompt().positive
    family = StableDiffusion3(transformer, None)  # type: ignore[arg-type]  # no schedule is needed to call it
    with torch.no_grad():
        velocity = family(torch.randn(1, models.LATENT_CHANNELS, 8, 8), torch.tensor([199.0]), prompt)
    assert velocity.abs().max() < 1e-5


@pytest.mark.slow
def test_it_writes_a_backbone_and_resumes_to_the_same_weights(photos: Path, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert pretrain(photos, whole).returncode == 0
    backbone = Backbone.from_pretrained(whole / "tiny", device="cpu")
    assert backbone.decode(backbone.encode(torch.rand(1, 3, 16, 16))).shape == (1, 3, 16, 16)
    # as if stopped after the first stage: the others begin from what is on disk
    shutil.copytree(whole / "progress", halves / "progress")
    for later in ("transformer", "decoder"):
        (halves / "progress" / f"{later}.safetensors").unlink()
    resumed = pretrain(photos, halves)
    assert resumed.returncode == 0, resumed.stderr
    assert "autoencoder 4/4" not in resumed.stdout
    for part in ("vae", "transformer"):
        file = f"tiny/{part}/diffusion_pytorch_model.safetensors"
        first, second = load_file(whole / file), load_file(halves / file)
        assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_too_few_photos_are_refused_in_one_line(tmp_path: Path) -> None:
    refused = pretrain(tmp_path, tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: 0 images in")
