"""A miniature Difix folder, compared with the same autoencoder run with peft and hooks."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from miniatures import difix_autoencoder
from PIL import Image
from safetensors.torch import load_file

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.restore import Restorer
from nifi_ns.restore._difix import Difix, is_difix


@pytest.fixture
def difix(difix_folder: Path) -> Difix:
    return Difix.from_pretrained(difix_folder, device="cpu")


NONE = torch.zeros(1, 1, 1, 1)  # Difix adds no noise


@torch.no_grad()
def test_results_match_peft_and_hooks_with_the_same_weights(difix: Difix, difix_folder: Path) -> None:
    torch.manual_seed(0)
    vae = difix_autoencoder()
    vae.load_state_dict(load_file(difix_folder / "vae" / "diffusion_pytorch_model.safetensors"))
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
    x_0 = (z - (1 - alpha) ** 0.5 * eps) / alpha**0.5  # the latents have no noise and no scale
    expected = vae.decode(x_0 / vae.config.scaling_factor).sample / 2 + 0.5
    assert torch.allclose(difix.restore(image, NONE, 199), expected, atol=1e-4)
    assert difix.prompt.text == "remove degradation"


@torch.no_grad()
def test_photos_are_attended_to(difix: Difix) -> None:
    image, photo = torch.rand(2, 3, 32, 48), torch.rand(2, 1, 3, 32, 48)
    alone, with_photo = difix.restore(image, NONE, 199), difix.restore(image, NONE, 199, attended_photos=photo)
    assert with_photo.shape == image.shape and (with_photo - alone).abs().mean() > 1e-5
    # attending to a copy of the view changes nothing
    assert torch.allclose(difix.restore(image, NONE, 199, attended_photos=image[:, None]), alone, atol=1e-5)
    # a sample of a batch does not attend to the photos of another
    assert torch.allclose(difix.restore(image[:1], NONE, 199, attended_photos=photo[:1]), with_photo[:1], atol=1e-5)
    order = torch.rand(2, 2, 3, 32, 48)
    assert torch.allclose(
        difix.restore(image, NONE, 199, attended_photos=order),
        difix.restore(image, NONE, 199, attended_photos=order.flip(1)),
        atol=1e-5,
    )


def test_difix_folders_are_recognised(difix_folder: Path, backbone_folders: dict[str, Path]) -> None:
    assert is_difix(difix_folder)
    assert not any(map(is_difix, (*backbone_folders.values(), Path("nifi-tiny"), difix_folder / "nothing")))


def test_another_autoencoder_is_refused_in_one_line(
    difix_folder: Path, backbone_folders: dict[str, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(difix_folder, broken)
    weights = "vae/diffusion_pytorch_model.safetensors"
    shutil.copy(backbone_folders["sd-turbo"] / weights, broken / weights)
    with pytest.raises(CorruptFileError, match=r"is not Difix's autoencoder: 'decoder\.skip_conv_1 to 4'"):
        Difix.from_pretrained(broken, device="cpu")
    (broken / weights).write_bytes(b"nothing")
    with pytest.raises(NifiError, match="cannot load the restorer"):
        Difix.from_pretrained(broken, device="cpu")


def test_difix_loads_as_a_restorer_with_attended_photos(difix_folder: Path) -> None:
    restorer = Restorer.from_pretrained(difix_folder, device="cpu")
    assert (restorer.settings.t0, restorer.settings.noise_scale, restorer.settings.decode) == (199, 0, "full")
    image, photo = (Image.effect_noise((44, 30), sigma).convert("RGB") for sigma in (20, 60))
    restored = [restorer(image, attended_photos=photos) for photos in ((), (photo,))]
    assert restored[0].size == restored[1].size == image.size and restored[0].tobytes() != restored[1].tobytes()


def test_every_part_that_runs_is_compiled(difix: Difix, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, ran = [], []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, mode: compiled.append((self, mode)))
    difix.compile("default")
    for part in [difix.family.network, *vars(difix).values()]:
        if isinstance(part, torch.nn.Module):
            part.register_forward_hook(lambda module, *_: ran.append(module))
    difix.restore(torch.rand(1, 3, 16, 16), NONE, 199)
    assert len(ran) == 3 and {id(part) for part, _ in compiled} == {id(part) for part in ran}
    assert {mode for _, mode in compiled} == {"default"}


def test_difix_cannot_be_trained_saved_or_given_another_decoder(difix_folder: Path, tmp_path: Path) -> None:
    restorer = Restorer.from_pretrained(difix_folder, device="cpu")
    with pytest.raises(NifiError, match="Difix has no adapters"):
        restorer.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())
    for option in ("backbone", "decoder"):
        with pytest.raises(NifiError, match="give no backbone or decoder"):
            Restorer.from_pretrained(difix_folder, device="cpu", **{option: "nifi-tiny"})  # type: ignore[arg-type]


def test_the_change_is_decoded_with_the_skips(difix_folder: Path) -> None:
    restorer, image = Restorer.from_pretrained(difix_folder, device="cpu"), torch.rand(16, 24, 3)
    full, autoencoded = restorer(image), restorer.network.autoencode(image.movedim(-1, 0)[None])[0].movedim(0, -1)
    restorer.settings = replace(restorer.settings, decode="change")
    inside = ((image + full - autoencoded - 0.5).abs() < 0.5) & ((full - 0.5).abs() < 0.5)
    torch.testing.assert_close(restorer(image)[inside], (image + full - autoencoded)[inside], atol=1e-5, rtol=0)
    assert inside.float().mean() > 0.3
