"""Loading, encoding and predicting with each family's miniature."""

import gc
import shutil
import threading
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from miniatures import save_text_encoders
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from nifi_ns.diffusion import Backbone, Prompt
from nifi_ns.diffusion import _sources as sources
from nifi_ns.errors import CorruptFileError, NifiError


def test_latents_have_the_family_s_shape_and_are_deterministic(backbone: Backbone, family: str) -> None:
    images = torch.rand(2, 3, 24, 16)
    latents = backbone.encode(images)
    assert latents.shape == (2, 16 if family == "sd3" else 4, 12, 8)
    assert backbone.latent_channels == latents.shape[1]
    assert backbone.pixel_multiple == (4 if family == "sd3" else 2)
    assert torch.equal(latents, backbone.encode(images))
    assert backbone.decode(latents).shape == images.shape


def test_latents_are_scaled_and_not_shifted(sd3: Backbone) -> None:
    images = torch.rand(1, 3, 8, 8)
    mode = sd3.vae.encode(images * 2 - 1).latent_dist.mode()
    torch.testing.assert_close(sd3.encode(images), 1.5305 * mode)
    torch.testing.assert_close(sd3.decode(1.5305 * mode), sd3.vae.decode(mode).sample / 2 + 0.5)


def test_pixel_patches_become_channels(sd3: Backbone) -> None:
    tiny = Backbone.from_pretrained("nifi-tiny", device="cpu")
    assert (tiny.downsampling, tiny.pixel_multiple, tiny.latent_channels) == (4, 8, 24)
    assert tiny.encode(torch.rand(1, 3, 16, 24)).shape == (1, 24, 4, 6)
    assert (sd3.downsampling, sd3.max_side) == (2, 64)


def test_no_parameter_of_the_backbone_is_trainable(backbone: Backbone) -> None:
    assert not any(p.requires_grad for model in (backbone.family.network, backbone.vae) for p in model.parameters())


def test_guidance_extrapolates_from_the_null_prompt(backbone: Backbone) -> None:
    x_t = backbone.encode(torch.rand(2, 3, 16, 16))
    positive = backbone.predict(x_t, 300, None)
    backbone.prompt = Prompt("null", backbone.prompt.null, backbone.prompt.positive)
    null = backbone.predict(x_t, 300, None)
    backbone.prompt = Prompt("a photo", backbone.prompt.null, backbone.prompt.positive)
    assert not torch.allclose(positive, null)
    torch.testing.assert_close(backbone.predict(x_t, 300, None, 7.5), null + 7.5 * (positive - null))


def test_samples_whose_prompt_is_dropped_get_the_null_prompt(backbone: Backbone) -> None:
    x_t, dropped = backbone.encode(torch.rand(3, 3, 16, 16)), torch.tensor([False, True, False])
    positive, mixed = backbone.predict(x_t, 300, None), backbone.predict(x_t, 300, None, dropped=dropped)
    backbone.prompt = Prompt("", backbone.prompt.null, backbone.prompt.null)
    null = backbone.predict(x_t, 300, None)
    torch.testing.assert_close(mixed, torch.stack([positive[0], null[1], positive[2]]))
    assert not torch.allclose(positive[1], null[1])


@pytest.mark.parametrize("family", ["sd-turbo", "sd2-v"], indirect=True)
def test_a_u_net_takes_sides_that_its_downsampling_does_not_divide(backbone: Backbone) -> None:
    x_t = backbone.encode(torch.rand(1, 3, 14, 22))
    assert backbone.predict(x_t, 199, None).shape == x_t.shape == (1, 4, 7, 11)


def test_bfloat16_weights_give_float32_close_to_full_precision(backbone_folders: dict[str, Path], family: str) -> None:
    folder = backbone_folders[family]
    full = Backbone.from_pretrained(folder, device="cpu")
    half = Backbone.from_pretrained(folder, device="cpu", dtype=torch.bfloat16)
    images = torch.rand(1, 3, 16, 16)
    z = full.encode(images)
    for ours, theirs in (
        (half.encode(images), z),
        (half.decode(z), full.decode(z)),
        (half.predict(z, 199, None), full.predict(z, 199, None)),
    ):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=0.05 * float(theirs.std()) + 0.02, rtol=0.05)


def test_threads_do_not_switch_each_other_s_adapters(sd3: Backbone) -> None:
    sd3.add_adapters(2, 2)
    for parameter in sd3.adapter_parameters("phi_plus"):
        torch.nn.init.normal_(parameter.data)
    x_t = torch.randn(1, 16, 8, 8)
    with torch.no_grad():
        expected = {name: sd3.predict(x_t, 199, name) for name in (None, "phi_plus")}
    wrong = []

    def work(name: str | None) -> None:
        for _ in range(10):
            with torch.no_grad():
                if not torch.equal(sd3.predict(x_t, 199, name), expected[name]):  # type: ignore[arg-type]
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in (None, "phi_plus", None, "phi_plus")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not torch.allclose(expected[None], expected["phi_plus"])
    assert not wrong


@pytest.mark.parametrize("family", ["sd3", "sd-turbo"], indirect=True)
def test_a_text_is_embedded_by_the_folder_s_encoder(
    backbone_folders: dict[str, Path], family: str, tmp_path: Path
) -> None:
    folder = tmp_path / family
    shutil.copytree(backbone_folders[family], folder)
    save_text_encoders(folder, family)
    stored = Backbone.from_pretrained(folder, device="cpu").prompt
    assert stored.text == "a photo"  # from the folder's prompt.safetensors, without the text encoder
    sharp = Backbone.from_pretrained(folder, device="cpu", prompt="sharp").prompt
    blurred = Backbone.from_pretrained(folder, device="cpu", prompt="blurred").prompt
    assert sharp.positive.tokens.shape[2] == stored.positive.tokens.shape[2]
    assert sharp.positive.tokens.shape == sharp.null.tokens.shape
    assert not torch.allclose(sharp.positive.tokens, blurred.positive.tokens)
    assert torch.equal(sharp.null.tokens, blurred.null.tokens)
    empty = Backbone.from_pretrained(folder, device="cpu", prompt="").prompt
    assert empty.text == "" and torch.equal(empty.positive.tokens, empty.null.tokens)
    sharp.save(tmp_path / "prompt.safetensors")
    loaded = Prompt.load(tmp_path / "prompt.safetensors")
    assert loaded.text == "sharp"
    assert torch.equal(loaded.positive.tokens, sharp.positive.tokens)
    assert (loaded.null.pooled is not None) == (family == "sd3")
    with_text = Backbone.from_pretrained(folder, device="cpu", prompt=loaded)
    assert with_text.predict(torch.randn(1, with_text.latent_channels, 4, 4), 199, None, 2.0).isfinite().all()


@pytest.mark.parametrize("family", ["sd3", "sd-turbo"], indirect=True)
def test_text_encoders_are_freed(backbone_folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    folder = tmp_path / family
    shutil.copytree(backbone_folders[family], folder)
    save_text_encoders(folder, family)

    def encoders() -> list[object]:
        return [o for o in gc.get_objects() if type(o) in (CLIPTextModel, CLIPTextModelWithProjection)]

    gc.collect()
    assert not encoders()
    backbone = Backbone.from_pretrained(folder, device="cpu", prompt="sharp")
    assert not encoders()
    backbone.prompt.save(folder / "prompt.safetensors")
    shutil.rmtree(folder / "text_encoder")
    assert Backbone.from_pretrained(folder, device="cpu").prompt.text == "sharp"


@pytest.mark.parametrize("name", ["nifi-tiny", "sd-turbo"])
def test_a_prompt_without_a_text_encoder_is_refused_in_one_line(backbone_folders: dict[str, Path], name: str) -> None:
    with pytest.raises(NifiError, match=rf"{name}\S* has no text_encoder/ .*omit the prompt") as error:
        Backbone.from_pretrained(backbone_folders.get(name, name), device="cpu", prompt="sharp")
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_a_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NifiError, match="expected transformer/ or unet/"):
        Backbone.from_pretrained(tmp_path)
    with pytest.raises(NifiError, match=r"no backbone 'nifi-huge'.*nifi-tiny"):
        Backbone.from_pretrained("nifi-huge")
    with pytest.raises(NifiError, match="no backbone '/nowhere/sd3'"):
        Backbone.from_pretrained("/nowhere/sd3")


def test_an_unsupported_network_is_refused_by_name(backbone_folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "flux"
    shutil.copytree(backbone_folders["sd3"], folder)
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text().replace("SD3Transformer2DModel", "FluxTransformer2DModel"))
    with pytest.raises(NifiError, match="FluxTransformer2DModel: supported are SD3Transformer2DModel, UNet2D"):
        Backbone.from_pretrained(folder)


@pytest.mark.parametrize("part", ["transformer", "vae", "scheduler"])
def test_an_incomplete_or_damaged_folder_is_refused_in_one_line(
    backbone_folders: dict[str, Path], tmp_path: Path, part: str
) -> None:
    folder = tmp_path / "sd3"
    shutil.copytree(backbone_folders["sd3"], folder)
    file = next(f for f in (folder / part).iterdir() if part == "scheduler" or f.suffix == ".safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(NifiError) as error:
        Backbone.from_pretrained(folder, device="cpu")
    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_damaged_prompt_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompt.safetensors").write_bytes(b"\0" * 50)
    with pytest.raises(CorruptFileError, match=r"prompt\.safetensors is damaged"):
        Prompt.load(tmp_path / "prompt.safetensors")


def test_an_unreachable_hub_is_reported_in_one_line() -> None:
    with pytest.raises(NifiError, match="cannot reach the hub for stabilityai/sd-turbo") as error:
        Backbone.from_pretrained("stabilityai/sd-turbo")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (GatedRepoError, "is gated: accept its licence at https://huggingface.co/stabilityai/sd3"),
        (RepositoryNotFoundError, "no folder and no hub repository 'stabilityai/sd3'"),
    ],
)
def test_a_gated_or_missing_repository_is_reported_with_advice(
    monkeypatch: pytest.MonkeyPatch, raised: type[Exception], expected: str
) -> None:
    def fail(*_: object) -> None:
        raise raised.__new__(raised)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(NifiError, match=expected):
        Backbone.from_pretrained("stabilityai/sd3")


def test_a_missing_file_is_not_reported_as_an_unreachable_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    def fail(*_: object) -> None:
        raise EntryNotFoundError.__new__(EntryNotFoundError)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    assert not sources.resolve("stabilityai/sd3").has("unet/config.json")
