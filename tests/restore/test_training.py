"""The training loop on a miniature SD3 with random weights: outputs, resuming, refusals and bad losses."""

import csv
import json
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch
from pair_folders import write_scene
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nifi_ns import results
from nifi_ns.commands.train import preset
from nifi_ns.diffusion import Backbone
from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.pairs import PairFolder
from nifi_ns.restore import ObjectiveConfig, Restorer, Trainer
from nifi_ns.restore import _training as training
from nifi_ns.restore._evaluation import STRENGTHS
from nifi_ns.restore._updates import Updates

OBJECTIVE = ObjectiveConfig(guidance_scale=1.0)
CONFIG = preset("nifi-tiny").training.with_options(
    steps=6,
    batch_size=2,
    crop=32,
    rank=2,
    log_every=2,
    eval_every=4,
    eval_views=2,
    checkpoint_every=3,
    objective=OBJECTIVE,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[PairFolder]:
    root = tmp_path_factory.mktemp("pairs")
    return [write_scene(root, rate=rate) for rate in ("10KB", "25KB")]


@pytest.fixture
def load(backbone_folders: dict[str, Path]):
    """Function that loads a fresh miniature SD3."""
    return lambda family="sd3": Backbone.from_pretrained(backbone_folders[family], device="cpu")


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise KeyboardInterrupt during step `step`."""
    update = Updates.update

    def interrupted(updates: Updates, batch, number):
        if number == step:
            raise KeyboardInterrupt
        return update(updates, batch, number)

    monkeypatch.setattr(Updates, "update", interrupted)


def test_a_training_writes_a_restorer_and_all_documented_files(load, folders, tmp_path):
    backbone = load()
    Trainer(backbone, folders, tmp_path, CONFIG).train()
    image = torch.rand(40, 56, 3)
    for directory in (tmp_path, tmp_path / "checkpoints" / "last"):
        restorer = Restorer.from_pretrained(directory, device="cpu")
        assert restorer(image).shape == image.shape
        assert restorer.training["settings"]["pairs"] == {"toy/10KB": "10KB", "toy/25KB": "25KB"}
    rows = results.load(tmp_path / "metrics.json")
    assert [(r.scene, r.variant, r.bytes) for r in rows] == [("toy", v, 25_003) for v in ("compressed", "restored")] * 2
    with open(tmp_path / "logs" / "losses.csv") as file:
        table = list(csv.DictReader(file))
    assert [row["step"] for row in table] == ["2", "4", "6"]
    assert all(float(row[name]) > 0 for row in table for name in ("loss", "match", "latent", "perceptual", "critic"))
    assert json.loads((tmp_path / "logs" / "losses.json").read_text())[-1]["step"] == 6
    assert [entry["step"] for entry in json.loads((tmp_path / "logs" / "evaluation.json").read_text())] == [4, 6]
    assert {path.name for path in (tmp_path / "images").iterdir()} == {"step_000004.png", "step_000006.png"}
    with Image.open(tmp_path / "images" / "step_000006.png") as grid:
        assert grid.size == (3 * (56 + 4), 2 * (40 + 4))
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6]


def test_both_adapters_learn_and_the_backbone_stays_frozen(load, folders, tmp_path):
    backbone = load()
    trainer = Trainer(backbone, folders, tmp_path, CONFIG.with_options(lr=0.01, critic_lr=0.01, warmup_steps=1))
    names = ("phi_minus", "phi_plus")
    before = {name: [p.detach().clone() for p in backbone.adapter_parameters(name)] for name in names}
    modules = (backbone.family.network, backbone.vae)
    adapted = {id(p) for name in names for p in backbone.adapter_parameters(name)}
    frozen = [(p, p.detach().clone()) for module in modules for p in module.parameters() if id(p) not in adapted]
    trainer.train()
    for name in names:
        changed = [not torch.equal(a, b) for a, b in zip(before[name], backbone.adapter_parameters(name), strict=True)]
        assert sum(changed) > 0.9 * len(changed)
    assert all(torch.equal(p, value) for p, value in frozen)


def test_a_training_can_start_from_another_restorer(load, folders, tmp_path):
    first, config = tmp_path / "first", CONFIG.with_options(lr=0.01, warmup_steps=1)
    Trainer(load(), folders, first, config).train()
    backbone = load()
    trainer = Trainer(backbone, folders, tmp_path / "second", config, start=first)
    begun, zero = backbone.adapter_state_dict("phi_minus"), load()
    zero.load_adapter(first, "phi_minus")
    assert all(torch.equal(value, begun[key]) for key, value in zero.adapter_state_dict("phi_minus").items())
    assert all(parameter.requires_grad for parameter in backbone.adapter_parameters("phi_minus"))
    trainer.train()
    with pytest.raises(NifiError, match="other settings: resume with its start"):
        Trainer(load(), folders, tmp_path / "second", config, resume=True)
    with pytest.raises(NifiError, match="another backbone or rank"):
        Trainer(load(), folders, tmp_path / "third", config.with_options(rank=4), start=first)


@pytest.mark.parametrize("options", [{}, {"ema": 0.5, "optimizer": "fused", "gradient_checkpointing": True}])
def test_an_interrupted_training_resumes_to_the_same_bits(load, folders, tmp_path, monkeypatch, options):
    config = CONFIG.with_options(lr=0.01, critic_lr=0.01, **options)
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    Trainer(load(), folders, straight, config).train()
    with monkeypatch.context() as patch:
        interrupt_at(5, patch)  # between two rows of the loss table, after an evaluation
        with pytest.raises(KeyboardInterrupt):
            Trainer(load(), folders, resumed, config).train()
    Trainer(load(), folders, resumed, config, resume=True).train()
    a, b = (load_file(folder / "checkpoints" / "last.safetensors") for folder in (straight, resumed))
    assert a.keys() == b.keys() and len(a) > 100
    assert all(torch.equal(a[key], b[key]) for key in a)
    for name in ("logs/losses.csv", "logs/evaluation.json", "metrics.json"):
        assert (straight / name).read_text() == (resumed / name).read_text()
    for directory in ("", "checkpoints/last"):
        assert description(straight / directory) == description(resumed / directory)


@pytest.mark.parametrize("saving", [{"gradient_accumulation": 2}, {"gradient_checkpointing": True}])
def test_memory_saving_options_change_no_result_and_may_change_on_resume(load, folders, tmp_path, saving):
    config = CONFIG.with_options(batch_size=4, steps=4, lr=0.01, critic_lr=0.01, log_every=1, schedule="constant")
    config = config.with_options(grad_clip=1e9)  # so that clipping does not hide a wrong scale of gradients
    Trainer(load(), folders, tmp_path / "plain", config).train()
    Trainer(load(), folders, tmp_path / "saved", config.with_options(steps=2)).train()
    backbone = load()
    trainer = Trainer(backbone, folders, tmp_path / "saved", config.with_options(**saving), resume=True)
    sizes, blocks = set(), []
    network = backbone.family.network
    network.register_forward_hook(lambda _, given, out: sizes.add(len(out[0])))
    network.transformer_blocks[0].register_forward_pre_hook(lambda *_: blocks.append(torch.is_grad_enabled()))
    trainer.train()
    assert max(sizes) == (2 if "gradient_accumulation" in saving else 4)
    assert sum(blocks) == 2 * 2 * 2  # steps, adapters, and parts or recomputations
    plain, saved = (json.loads((tmp_path / n / "logs" / "losses.json").read_text()) for n in ("plain", "saved"))
    for a, b in zip(plain, saved, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-6)
    plain, saved = (load_file(tmp_path / n / "checkpoints" / "last.safetensors") for n in ("plain", "saved"))
    for kind in ("lora_A.weight", "lora_B.weight", "/exp_avg", "/exp_avg_sq"):
        keys = [key for key in plain if key.endswith(kind) and "/best/" not in key]
        difference = sum((plain[key] - saved[key]).square().sum() for key in keys)
        assert difference < 1e-6 * sum(plain[key].square().sum() for key in keys)


def test_the_running_mean_is_evaluated_and_saved(load, folders, tmp_path):
    """The first mean equals the first step's weights. They have weight 2/11 in the second, whatever the decay."""
    config = CONFIG.with_options(lr=0.01, warmup_steps=1, schedule="constant")
    for name, steps, ema in (("first", 1, 0.0), ("plain", 2, 0.0), ("mean", 2, 0.999)):
        Trainer(load(), folders, tmp_path / name, config.with_options(steps=steps, ema=ema)).train()
    last = Path("checkpoints", "last", "pytorch_lora_weights.safetensors")
    first, plain, mean = (load_file(tmp_path / name / last) for name in ("first", "plain", "mean"))
    moved = [key for key in mean if not torch.equal(first[key], plain[key])]
    assert len(moved) > 20
    for key in moved:
        torch.testing.assert_close(first[key] * 2 / 11 + plain[key] * 9 / 11, mean[key], atol=1e-6, rtol=1e-4)
    checkpoints = [load_file(tmp_path / n / "checkpoints" / "last.safetensors") for n in ("plain", "mean")]
    trained = [{k: v for k, v in c.items() if k.startswith("adapter/phi_minus")} for c in checkpoints]
    assert all(torch.equal(trained[0][k], trained[1][k]) for k in trained[0])


def description(restorer: Path) -> dict:
    """Return restorer.json without checksums: safetensors writes the keys of its header in any order."""
    return {k: v for k, v in json.loads((restorer / "restorer.json").read_text()).items() if k != "files"}


def test_options_are_found_in_their_groups_and_have_unique_names():
    changed = CONFIG.with_options(steps=7, lr=0.5, optimizer="fused", choose_by=("ssim",))
    assert (changed.steps, changed.optimization.lr, changed.evaluation.choose_by) == (7, 0.5, ("ssim",))
    differing = {name for name, value in changed.options().items() if value != CONFIG.options()[name]}
    assert differing == {"steps", "lr", "optimizer", "choose_by"}
    groups = [CONFIG, *(value for value in vars(CONFIG).values() if is_dataclass(value))]
    names = [field.name for group in groups for field in fields(group)]
    assert len(groups) == 6 and len(names) == len(set(names))
    with pytest.raises(TypeError, match="no training option 'stesp'"):
        CONFIG.with_options(stesp=3)


def test_the_seed_determines_the_result(load, folders, tmp_path):
    def trained(name: str, seed: int) -> dict[str, torch.Tensor]:
        Trainer(load(), folders, tmp_path / name, CONFIG.with_options(steps=1, seed=seed)).train()
        return load_file(tmp_path / name / "checkpoints" / "last.safetensors")

    torch.rand(3)
    first = trained("a", 0)
    torch.rand(5)
    again, other = trained("b", 0), trained("c", 1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_without_distribution_matching_no_critic_is_trained(load, folders, tmp_path):
    config = CONFIG.with_options(steps=1, alpha=0.0)
    Trainer(load(), folders, tmp_path, config).train()
    keys = load_file(tmp_path / "checkpoints" / "last.safetensors")
    assert not any(key.startswith("optimizer/phi_plus") for key in keys)
    assert any(key.startswith("optimizer/phi_minus") for key in keys)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_trains_float32_adapters(load, folders, tmp_path, precision):
    backbone = load()
    trainer = Trainer(
        backbone, folders, tmp_path, CONFIG.with_options(steps=6, eval_views=1, precision=precision, lr=0.01)
    )
    before = [p.detach().clone() for p in backbone.adapter_parameters("phi_minus")]
    trainer.train()
    after = backbone.adapter_parameters("phi_minus")
    assert all(p.dtype == torch.float32 for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_every_family_trains(load, folders, tmp_path, family):
    trained = Trainer(load(family), folders, tmp_path, CONFIG.with_options(steps=1)).train()
    assert trained.step == 1 and trained.choice.strength in STRENGTHS


def test_a_loss_that_is_not_finite_is_skipped_and_counted(load, folders, tmp_path, monkeypatch):
    poison_decoder(monkeypatch, steps={1})
    backbone = load()
    trainer = Trainer(backbone, folders, tmp_path, CONFIG.with_options(steps=3, log_every=1))
    trainer.train()
    rows = json.loads((tmp_path / "logs" / "losses.json").read_text())
    assert [row["skipped"] for row in rows] == [0, 1, 1]
    assert "loss" not in rows[1] and rows[2]["loss"] > 0
    assert all(torch.isfinite(p).all() for p in backbone.adapter_parameters("phi_minus"))


def test_too_many_skipped_updates_end_the_training_with_one_line(load, folders, tmp_path, monkeypatch):
    poison_decoder(monkeypatch, steps=set(range(10)))
    with pytest.raises(NifiError, match="step 3: 3 losses in a row were not finite"):
        Trainer(load(), folders, tmp_path, CONFIG.with_options(max_bad_steps=3)).train()


def poison_decoder(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the perceptual loss of these steps NaN."""
    calls = iter(range(100))
    monkeypatch.setattr(
        "nifi_ns.restore._training.perceptual_loss",
        lambda metric, device: lambda a, b: (a - b).abs().mean() * (torch.nan if next(calls) in steps else 1),
    )


def test_a_restorer_trained_on_referenced_inputs_records_that(load, folders, tmp_path):
    Trainer(load(), folders, tmp_path, CONFIG.with_options(steps=1), inputs="referenced").train()
    assert Restorer.from_pretrained(tmp_path).input == "referenced"
    assert {row.variant for row in results.load(tmp_path / "metrics.json")} == {"referenced", "restored"}


# -- refused before long work --------------------------------------------------------------------------------------


def test_overwriting_or_resuming_with_other_settings_is_refused(load, folders, tmp_path):
    config = CONFIG.with_options(steps=1)
    with pytest.raises(NifiError, match="nothing to resume"):
        Trainer(load(), folders, tmp_path, config, resume=True)
    Trainer(load(), folders, tmp_path, config).train()
    with pytest.raises(NifiError, match="already holds a training"):
        Trainer(load(), folders, tmp_path, config)
    (tmp_path / "images" / "stale.png").touch()
    Trainer(load(), folders, tmp_path, config.with_options(seed=1), overwrite=True).train()
    assert not (tmp_path / "images" / "stale.png").exists()
    config = config.with_options(seed=1)
    with pytest.raises(NifiError, match="with its lr, alpha"):
        other = config.with_options(lr=1.0, alpha=0.1)
        Trainer(load(), folders, tmp_path, other, resume=True)
    with pytest.raises(NifiError, match="with its pairs"):
        Trainer(load(), folders[:1], tmp_path, config, resume=True)
    path = tmp_path / "checkpoints" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CorruptFileError, match="not a readable checkpoint"):
        Trainer(load(), folders, tmp_path, config, resume=True)


def test_overwriting_leaves_nothing_of_the_old_training(load, folders, tmp_path, monkeypatch):
    config = CONFIG.with_options(steps=1)
    Trainer(load(), folders, tmp_path, config).train()
    written = {path.name for path in tmp_path.iterdir()}
    assert {"restorer.json", "metrics.json", "metrics.csv", "pytorch_lora_weights.safetensors"} < written
    interrupt_at(0, monkeypatch)
    trainer = Trainer(load(), folders, tmp_path, config, overwrite=True)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    with pytest.raises(NifiError, match="no restorer in"):
        Restorer.from_pretrained(tmp_path)


def test_an_older_checkpoint_resumes_on_the_same_weights_only(load, folders, tmp_path, monkeypatch):
    config = CONFIG.with_options(steps=1)
    Trainer(load(), folders, tmp_path, config).train()
    state = training.read_state(tmp_path / "checkpoints" / "last.safetensors")
    monkeypatch.setattr(training, "read_state", lambda _: state)
    del state["settings"]["pixel"], state["settings"]["weights"], state["settings"]["attended_photos"]
    Trainer(load(), folders, tmp_path, config, resume=True)
    state["settings"]["weights"] = "of another nifi-tiny"
    with pytest.raises(NifiError, match="with its weights"):
        Trainer(load(), folders, tmp_path, config, resume=True)


def test_a_crop_that_does_not_fit_is_refused(load, folders, tmp_path):
    with pytest.raises(NifiError, match="needs a multiple of 4"):
        Trainer(load(), folders, tmp_path, CONFIG.with_options(crop=33))
    with pytest.raises(NifiError, match="smaller than a crop of 44"):
        Trainer(load(), folders, tmp_path, CONFIG.with_options(crop=44))


def test_pairs_with_the_same_label_are_refused(load, folders, tmp_path):
    with pytest.raises(NifiError, match="both called toy/10KB"):
        Trainer(load(), [*folders, write_scene(tmp_path, rate="10KB")], tmp_path / "out", CONFIG)


def test_missing_weights_of_a_loss_are_reported_at_the_start(load, folders, tmp_path, monkeypatch):
    monkeypatch.setattr("nifi_ns.metrics.lpips_network", lambda: None)
    config = CONFIG.with_options(perceptual_metric="lpips")
    with pytest.raises(NifiError, match="weights of LPIPS"):
        Trainer(load(), folders, tmp_path, config)


def test_an_unknown_metric_in_choose_by_is_refused(load, folders, tmp_path):
    with pytest.raises(NifiError, match="unknown metric 'beauty'"):
        Trainer(load(), folders, tmp_path, CONFIG.with_options(choose_by=("beauty",)))
