"""Restorers on disk: saving, loading, and refused folders."""

import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from pair_folders import write_scene

from nifi_ns.commands.train import preset
from nifi_ns.diffusion import NETWORK_ADAPTER_FILE, PROMPT_FILE, WEIGHTS, Backbone
from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.restore import Restorer, RestorerSettings, Trainer


def test_a_saved_restorer_is_the_same_restorer(adapted: Backbone, tmp_path: Path) -> None:
    settings = RestorerSettings(t0=300, noise_scale=0.5, strength=0.7, decode="full", input="referenced", seed=4)
    restorer = Restorer(adapted, settings, training={"steps": 7})
    restorer.save_pretrained(tmp_path)
    loaded = Restorer.from_pretrained(tmp_path, device="cpu")
    assert (loaded.settings, loaded.training, loaded.input) == (settings, {"steps": 7}, "referenced")
    image = torch.rand(16, 20, 3)
    assert torch.equal(loaded(image), restorer(image))
    assert loaded.backbone.prompt.text == "a photo"


def test_saving_again_replaces_the_restorer_and_keeps_other_files(saved: Path, restorer: Restorer) -> None:
    (saved / "metrics.json").write_text("{}")
    restorer.settings = RestorerSettings(strength=0.5)
    restorer.save_pretrained(saved)
    assert Restorer.from_pretrained(saved).settings.strength == 0.5
    assert sorted(path.name for path in saved.iterdir()) == sorted(
        ["metrics.json", PROMPT_FILE, NETWORK_ADAPTER_FILE, "vae_lora_weights.safetensors", "restorer.json"]
    )


def test_saving_without_an_encoder_adapter_removes_an_old_one(saved: Path, backbone_folders: dict[str, Path]) -> None:
    sd3 = Backbone.from_pretrained(backbone_folders["sd3"], device="cpu")
    sd3.add_adapters(2, 2, vae_encoder=False)
    restorer, image = Restorer(sd3), torch.rand(8, 8, 3)
    restorer.save_pretrained(saved)
    assert torch.equal(Restorer.from_pretrained(saved, device="cpu")(image), restorer(image))


def test_the_backbone_is_loaded_with_the_first_image(
    saved: Path, backbone_folders: dict[str, Path], tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(backbone_folders["sd3"], moved)
    about = json.loads((saved / "restorer.json").read_text())
    (saved / "restorer.json").write_text(json.dumps({**about, "backbone": "/gone/sd3"}))
    image = torch.rand(8, 8, 3)
    lost = Restorer.from_pretrained(saved, device="cpu")
    with pytest.raises(NifiError, match="no backbone '/gone/sd3'"):
        lost(image)
    assert Restorer.from_pretrained(saved, device="cpu", backbone=moved)(image).shape == image.shape
    with pytest.raises(NifiError, match=r"is for /gone/sd3 \(sd3\), not .*\(sd\)"):
        Restorer.from_pretrained(saved, device="cpu", backbone=backbone_folders["sd-turbo"])(image)


def test_unreadable_folders_are_refused_with_the_reason(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(NifiError, match=r"no restorer in .*expected a restorer\.json"):
        Restorer.from_pretrained(tmp_path / "nothing")
    about = json.loads((saved / "restorer.json").read_text())

    def rewritten(**changes: object) -> Path:
        (saved / "restorer.json").write_text(json.dumps({**about, **changes}))
        return saved

    with pytest.raises(NifiError, match="has version 9, this program reads 1"):
        Restorer.from_pretrained(rewritten(version=9))
    with pytest.raises(NifiError, match="decode is 'half': expected change or full"):
        Restorer.from_pretrained(rewritten(settings={"decode": "half"}))
    with pytest.raises(CorruptFileError, match=r"restorer.json is damaged"):
        Restorer.from_pretrained(rewritten(settings={"colour": 1}))
    (saved / "restorer.json").write_text("{")
    with pytest.raises(CorruptFileError, match=r"restorer.json is damaged"):
        Restorer.from_pretrained(saved)
    rewritten()
    weights = (saved / NETWORK_ADAPTER_FILE).read_bytes()
    (saved / NETWORK_ADAPTER_FILE).write_bytes(weights[:-1] + b"\1")
    with pytest.raises(CorruptFileError, match="is damaged or belongs to another training"):
        Restorer.from_pretrained(saved)
    (saved / NETWORK_ADAPTER_FILE).unlink()
    with pytest.raises(NifiError, match=r"is incomplete: pytorch_lora_weights\.safetensors is missing"):
        Restorer.from_pretrained(saved)


def test_another_nifi_tiny_is_refused_if_its_weights_were_recorded(tmp_path: Path) -> None:
    tiny = Backbone.from_pretrained("nifi-tiny", device="cpu")
    tiny.add_adapters(rank=2, alpha=2)
    Restorer(tiny).save_pretrained(tmp_path)
    path = tmp_path / "restorer.json"
    about = json.loads(path.read_text())
    assert len(about["weights"]) == 64
    Restorer.from_pretrained(tmp_path, device="cpu")
    path.write_text(json.dumps({**about, "weights": "0" * 64}))
    with pytest.raises(NifiError, match="was trained on another nifi-tiny than this version's: train it again"):
        Restorer.from_pretrained(tmp_path)
    pairs = write_scene(tmp_path / "pairs")
    with pytest.raises(NifiError, match="was trained on another nifi-tiny"):
        config = preset("nifi-tiny").training.with_options(steps=1, crop=32)
        Trainer(tiny, [pairs], tmp_path / "next", config, start=tmp_path)
    image = torch.rand(16, 24, 3)
    own = Restorer.from_pretrained(
        tmp_path, device="cpu", backbone=WEIGHTS / "nifi-tiny"
    )  # the weights of a folder are not checked
    path.write_text(json.dumps({key: value for key, value in about.items() if key != "weights"}))
    assert torch.equal(Restorer.from_pretrained(tmp_path, device="cpu")(image), own(image))


def test_weights_of_other_backbones_are_not_recorded(saved: Path) -> None:
    assert json.loads((saved / "restorer.json").read_text())["weights"] is None


def test_the_network_is_loaded_once_on_first_use(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    load = Backbone.from_pretrained
    monkeypatch.setattr(Backbone, "from_pretrained", lambda *a, **k: loaded.append(a) or load(*a, **k))
    restorer = Restorer.from_pretrained(saved, device="cpu")
    assert not loaded
    threads = [threading.Thread(target=restorer.load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loaded) == 1 and restorer.load() is restorer and len(loaded) == 1
