"""Adapters that attend to photos: the loss, the crops, and whole trainings on every family."""

import json
from pathlib import Path

import pytest
import torch
from miniatures import FAMILIES, perturb
from pair_folders import write_scene
from PIL import Image
from torch import Tensor

from nifi_ns.commands.train import preset
from nifi_ns.diffusion import Backbone, encode_photos, restore_latents
from nifi_ns.errors import NifiError
from nifi_ns.pairs import PairCrops, PairFolder, find_pair_folders, write_shards
from nifi_ns.restore import LossNoise, ObjectiveConfig, Restorer, Trainer, TrainingConfig, restorer_loss

OBJECTIVE = ObjectiveConfig(guidance_scale=1.0, timesteps=(300, 300), prompt_dropout=0.0)
CONFIG = preset("nifi-tiny").training.with_options(
    steps=4, batch_size=2, crop=32, rank=2, eval_every=4, eval_views=2, attended_photos=2, objective=OBJECTIVE
)


@pytest.fixture(params=[*FAMILIES, "nifi-tiny"])
def adapted(request: pytest.FixtureRequest, backbone_folders: dict[str, Path]) -> Backbone:
    """Each family and nifi-tiny, with adapters that change the output."""
    family: str = request.param
    backbone = Backbone.from_pretrained(backbone_folders.get(family, family), device="cpu")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone.add_adapters(rank=2, alpha=2)
        perturb(backbone)
    return backbone


@pytest.fixture
def pairs(tmp_path: Path) -> PairFolder:
    return write_scene(tmp_path / "pairs", attended_photos=3)


def loss(backbone: Backbone, attended_photos: Tensor | None) -> Tensor:
    """Return the loss of two fixed crops."""
    generator = torch.Generator().manual_seed(1)
    degraded, clean = torch.rand(2, 2, 3, 32, 32, generator=generator)
    side = 32 // backbone.downsampling
    draws = LossNoise.sample((2, backbone.latent_channels, side, side), OBJECTIVE, generator)
    return restorer_loss(
        backbone, degraded, clean, draws, OBJECTIVE, lambda a, b: (a - b).abs().mean(), attended_photos
    ).total


def photos(count: int) -> Tensor:
    return torch.rand(2, count, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def gradients(backbone: Backbone, attended_photos: Tensor | None) -> list[Tensor]:
    parameters = backbone.adapter_parameters("phi_minus")
    return [
        g for g in torch.autograd.grad(loss(backbone, attended_photos), parameters, allow_unused=True) if g is not None
    ]


def test_the_loss_depends_on_the_photos_but_not_on_their_order(adapted: Backbone) -> None:
    alone, one, two = (loss(adapted, attended_photos) for attended_photos in (None, photos(2)[:, :1], photos(2)))
    assert abs(one - alone) > 1e-6 and abs(two - one) > 1e-6
    torch.testing.assert_close(loss(adapted, photos(2).flip(1)), two, rtol=1e-4, atol=1e-6)
    # each sample attends to its own photos: the sample with unchanged photos is restored the same
    others = encode_photos(adapted, photos(2))
    z = torch.randn(2, *others.shape[2:], generator=torch.Generator().manual_seed(3))
    noise = torch.zeros_like(z)
    changed = torch.stack([others[0], others[1].flip(-1)])
    before, after = (restore_latents(adapted, z, noise, 199, seen) for seen in (others, changed))
    torch.testing.assert_close(before[0], after[0], rtol=1e-4, atol=1e-5)
    assert (before[1] - after[1]).abs().max() > 1e-5


def test_gradients_flow_through_the_photos(adapted: Backbone) -> None:
    others = encode_photos(adapted, photos(1)).requires_grad_()
    z = torch.randn(2, adapted.latent_channels, *others.shape[-2:])
    restored = restore_latents(adapted, z, torch.zeros_like(z[:1]), 199, others)
    (gradient,) = torch.autograd.grad(restored[0].square().sum(), others)
    assert gradient[0].abs().max() > 0 and gradient[1].abs().max() == 0
    pairs = zip(gradients(adapted, None), gradients(adapted, photos(1)), strict=True)
    assert sum(bool((a - b).abs().max() > 1e-8) for a, b in pairs) > 10


def test_gradient_checkpointing_gives_the_same_gradients_with_photos(adapted: Backbone) -> None:
    kept = gradients(adapted, photos(2))
    adapted.checkpoint_gradients()
    again = gradients(adapted, photos(2))
    for a, b in zip(kept, again, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_folders_and_shards_list_the_same_photos(pairs: PairFolder, tmp_path: Path) -> None:
    opened = PairFolder.open(pairs.root)
    assert opened == pairs and opened.attended_photos["test"]["test0"] == ("train1", "train2", "train3")
    shards = list(write_shards([opened], tmp_path / "shards", 30_000))
    (sharded,) = find_pair_folders(shards)
    assert len(shards) > 1 and sharded.attended_photos == opened.attended_photos
    for found in (opened, sharded):
        seen = found.photos("test", "test1", 2)
        assert [image.tolist() for image in seen] == [
            found.picture("train", "clean", f"train{i}").tolist() for i in (2, 3)
        ]
        assert found.photos("test", "test1", 0) == []
    crops = [PairCrops([f], size=16, seed=3, length=20, attended_photos=2, cache_bytes=1) for f in (opened, sharded)]
    assert all(torch.equal(crops[0][i]["attended_photos"], crops[1][i]["attended_photos"]) for i in range(20))
    (some,) = find_pair_folders(shards[:1])  # photos in the other shards are not available
    assert len(some.splits["train"]) < 6 and some.fingerprint != sharded.fingerprint
    assert all(name in some.splits["train"] for names in some.attended_photos["train"].values() for name in names)


def test_photos_are_cropped_where_the_view_is(pairs: PairFolder) -> None:
    """Each view attends to the photos of the next views. The last photo has another size."""
    for i, name in enumerate(pairs.splits["train"]):
        y, x = torch.meshgrid(torch.arange(40), torch.arange(56), indexing="ij")
        picture = torch.stack([x, y, torch.full_like(x, i)], dim=-1).byte().numpy()
        for kind in ("clean", "degraded"):
            Image.fromarray(picture).save(pairs.path("train", kind, name))
    Image.new("RGB", (28, 20), (0, 0, 5)).save(pairs.path("train", "clean", "train5"))
    crops = PairCrops([pairs], size=16, seed=0, length=60, attended_photos=5, names={"toy": pairs.splits["train"][:5]})
    for i in range(60):
        crop = crops[i]
        number = int(crop["degraded"][2, 0, 0] * 255)
        expected = [(number + k) % 6 for k in (1, 2, 3, 1, 2)]  # three are listed, and repeat
        assert [int(photo[2, 0, 0] * 255) for photo in crop["attended_photos"]] == expected
        assert crop["attended_photos"].shape == (5, 3, 16, 16)
        for photo, other in zip(crop["attended_photos"], expected, strict=True):
            assert other == 5 or torch.equal(photo[:2], crop["degraded"][:2])


def test_a_view_without_photos_attends_to_itself(tmp_path: Path) -> None:
    scenes = [write_scene(tmp_path, "some", attended_photos=2), write_scene(tmp_path, "none")]
    crops = PairCrops(scenes, size=16, seed=0, length=60, attended_photos=2)
    itself = [torch.equal(crops[i]["attended_photos"][0], crops[i]["degraded"]) for i in range(60)]
    assert 15 < sum(itself) < 45
    with pytest.raises(NifiError, match="these pairs list no attended photos, write the pairs again"):
        PairCrops(scenes[1:], size=16, seed=0, length=1, attended_photos=1)


def test_a_photo_that_is_not_another_training_view_is_refused(pairs: PairFolder) -> None:
    path = pairs.root / "pairs.json"
    content = json.loads(path.read_text())
    for split, view, name in (("train", "train0", "train0"), ("test", "test0", "test1")):
        attended_photos = {split: {view: [name]}}
        path.write_text(json.dumps(content | {"attended_photos": attended_photos}))
        with pytest.raises(NifiError, match=f"{view} cannot attend to {name}, which is not another train view"):
            find_pair_folders([pairs.root])


@pytest.mark.parametrize("family", [*FAMILIES, "nifi-tiny"])
def test_every_family_trains_with_attended_photos(
    family: str, backbone_folders: dict[str, Path], pairs: PairFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: list[int] = []
    predict = Backbone.predict

    def counted(self, *given, num_views: int = 1, **more):
        numbers.extend([num_views] if torch.is_grad_enabled() and given[2] == "phi_minus" else [])
        return predict(self, *given, num_views=num_views, **more)

    backbone = Backbone.from_pretrained(backbone_folders.get(family, family), device="cpu")
    trainer = Trainer(backbone, [pairs], tmp_path / "restorer", CONFIG.with_options(steps=8))
    monkeypatch.setattr(Backbone, "predict", counted)
    trainer.train()
    assert set(numbers) == {1, 2, 3} and len(numbers) == 8  # the view and 0 to 2 photos
    restorer = Restorer.from_pretrained(tmp_path / "restorer", device="cpu")
    assert restorer.settings.attended_photos == 2
    image, *others = torch.rand(4, 3, 32, 32)
    shown = [restorer(image, 1.0, seen) for seen in ((), others[:1], others, others[::-1])]
    assert (shown[1] - shown[0]).abs().max() > 1e-5 and (shown[2] - shown[1]).abs().max() > 1e-5
    torch.testing.assert_close(shown[2], shown[3], rtol=1e-4, atol=1e-5)


def test_evaluations_use_attended_photos(sd3: Backbone, pairs: PairFolder, tmp_path: Path, monkeypatch) -> None:
    seen: list[int] = []
    restore = Restorer.__call__
    monkeypatch.setattr(
        Restorer,
        "__call__",
        lambda self, image, strength=None, attended_photos=(): (
            seen.append(len(attended_photos)) or restore(self, image, strength, attended_photos)
        ),
    )
    Trainer(sd3, [pairs], tmp_path / "restorer", CONFIG).train()
    assert set(seen) == {2}


def test_training_without_photos_gives_the_same_bits_as_before(
    backbone_folders: dict[str, Path], tmp_path: Path
) -> None:
    states = []
    for number, attended_photos in enumerate((0, 3)):
        folder = write_scene(tmp_path / f"pairs{number}", attended_photos=attended_photos)
        backbone = Backbone.from_pretrained(backbone_folders["sd3"], device="cpu")
        config = CONFIG.with_options(attended_photos=0, lr=0.01)
        Trainer(backbone, [folder], tmp_path / f"restorer{number}", config).train()
        states.append(backbone.adapter_state_dict("phi_minus"))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert Restorer.from_pretrained(tmp_path / "restorer0").settings.attended_photos == 0


def test_a_checkpoint_without_the_option_can_be_resumed(
    backbone_folders: dict[str, Path], pairs: PairFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "restorer"

    def load() -> Backbone:
        return Backbone.from_pretrained(backbone_folders["sd3"], device="cpu")

    config, options = CONFIG.with_options(attended_photos=0, steps=2), TrainingConfig.options
    with monkeypatch.context() as patch:
        known_then = lambda config: {k: v for k, v in options(config).items() if k != "attended_photos"}  # noqa: E731
        patch.setattr(TrainingConfig, "options", known_then)
        Trainer(load(), [pairs], output, config).train()
    with pytest.raises(NifiError, match="with its attended_photos"):
        Trainer(load(), [pairs], output, config.with_options(attended_photos=1), resume=True)
    assert Trainer(load(), [pairs], output, config.with_options(steps=4), resume=True).train().output == output
