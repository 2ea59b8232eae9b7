"""`ns-nifi-train`: command lines, presets and one-line errors."""

import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from tiny_runs import copy_run

from nifi_ns import results
from nifi_ns.commands import train
from nifi_ns.commands.train import Train
from nifi_ns.diffusion import PROMPT_FILE, Backbone, Prompt
from nifi_ns.errors import NifiError
from nifi_ns.pairs import PairFolder, PairWriter, find_pair_folders
from nifi_ns.presets import preset_names, read_preset
from nifi_ns.restore import ObjectiveConfig, Restorer


@pytest.fixture
def pairs(tmp_path: Path) -> PairFolder:
    writer = PairWriter(
        tmp_path / "pairs" / "toy" / "rate_9KB", scene="toy", rate="9KB", bytes=9_000, gaussians=99, fingerprint="x"
    )
    generator = torch.Generator().manual_seed(0)
    for i in range(6):
        photo = torch.rand(96, 104, 3, generator=generator)
        writer.add("test" if i > 4 else "train", str(i), photo, photo.roll(1, 0))
    return writer.finish()


def typed(*words: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["ns-nifi-train", *map(str, words)])
    train.entrypoint()


@pytest.fixture
def refused(monkeypatch, capsys):
    """Function that runs a command line and returns its one-line error."""

    def call(*words: object) -> str:
        monkeypatch.setattr(Backbone, "from_pretrained", lambda *_, **__: pytest.fail("the backbone was loaded"))
        with pytest.raises(SystemExit) as exit_:
            typed(*words, monkeypatch=monkeypatch)
        assert isinstance(exit_.value.code, str) and "\n" not in exit_.value.code
        return exit_.value.code

    return call


def test_a_smoke_training_writes_a_restorer(pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "300")  # otherwise the table is cut and lines wrap at 80 columns
    output = tmp_path / "restorer"
    words = ("--pairs", tmp_path / "pairs", "--output-dir", output, "--device", "cpu", "--smoke", "--crop", 48)
    typed(*words, monkeypatch=monkeypatch)
    image = torch.rand(50, 70, 3)
    assert Restorer.from_pretrained(output, device="cpu")(image).shape == image.shape
    printed = capsys.readouterr().out
    assert "restored" in printed and "step 10, strength" in printed


def test_mistakes_are_refused_in_one_line_before_loading(pairs, tmp_path, refused):
    assert "give --pairs" in refused()
    assert "give --output-dir" in refused("--pairs", pairs.root)
    assert "no such folder" in refused("--pairs", tmp_path / "absent", "--output-dir", tmp_path)
    assert "missing" in refused("--pairs", pairs.root, "--inputs", "referenced", "--output-dir", tmp_path)
    assert "nothing to resume" in refused("--pairs", pairs.root, "--output-dir", tmp_path, "--resume")
    assert "steps: expected at least 1" in refused("--pairs", pairs.root, "--steps", 0)
    assert "no such preset file" in refused("--preset", tmp_path / "absent.yaml")
    assert "no preset 'sd4', expected one of laptop, " in refused("--preset", "sd4")
    assert "no such config" in refused("--load-config", tmp_path / "config.yml")


def test_the_default_output_is_where_the_viewer_looks(tmp_path):
    run = tmp_path / "run"
    scene = run / "nifi" / "9KB"
    scene.mkdir(parents=True)
    (scene / "scene.nifi").touch()
    for config in (run / "config.yml", scene / "config.yml"):
        assert Train(load_config=(config,))._output() == run / "nifi" / "restorer"


def test_pairs_of_runs_are_written_and_joined_with_given_pairs(run_config, pairs, tmp_path, monkeypatch, capsys):
    config = copy_run(run_config, tmp_path / "runs")
    words = ("--pairs", pairs.root, "--load-config", config, "--device", "cpu", "--smoke", "--crop", 16)
    typed(*words, monkeypatch=monkeypatch)
    (made,) = find_pair_folders([config.parent / "nifi" / "pairs"])
    restorer = Restorer.from_pretrained(config.parent / "nifi" / "restorer", device="cpu")
    assert restorer.training["settings"]["pairs"] == {f.label: f.fingerprint for f in (pairs, made)}
    assert len(made.splits["train"]) > 4 and made.bytes == (config.parent / "nifi/4KB/scene.nifi").stat().st_size
    rows = results.load(config.parent / "nifi" / "restorer" / "metrics.json")
    assert [(row.scene, row.variant) for row in rows] == [
        (scene, variant) for scene in ("toy", made.scene) for variant in ("compressed", "restored")
    ]
    image = torch.rand(40, 48, 3)
    assert restorer(image, strength=1.0).shape == image.shape
    stamp = (made.root / "pairs.json").stat().st_mtime_ns
    typed(*words, "--resume", monkeypatch=monkeypatch)  # the pairs are kept, so the settings are the same
    assert (made.root / "pairs.json").stat().st_mtime_ns == stamp


def test_the_prompt_reaches_the_backbone_and_is_embedded_once(pairs, tmp_path, monkeypatch):
    output = tmp_path / "restorer"
    words = ("--pairs", tmp_path / "pairs", "--output-dir", output, "--device", "cpu", "--smoke", "--crop", 48)
    typed(*words, monkeypatch=monkeypatch)
    stored = Prompt.load(output / PROMPT_FILE)
    given = []

    def note(*_, prompt=None, **__):
        given.append(prompt)
        raise NifiError("far enough")

    monkeypatch.setattr(Backbone, "from_pretrained", note)
    for more in (("--overwrite", "--prompt", ""), ("--resume",), ("--resume", "--prompt", stored.text)):
        with pytest.raises(SystemExit, match="far enough"):
            typed(*words, *more, monkeypatch=monkeypatch)
    with pytest.raises(SystemExit, match="far enough"):
        typed(*words, "--resume", "--prompt", "another", monkeypatch=monkeypatch)
    assert given[0] == "" and given[3] == "another"
    assert all(isinstance(p, Prompt) and torch.equal(p.null.tokens, stored.null.tokens) for p in given[1:3])


# -- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", preset_names())
def test_every_packaged_preset_loads_and_names_its_backbone(name):
    tiny = name in ("laptop", "nifi-tiny")
    assert (train.preset(name).backbone == "nifi-tiny") is tiny
    assert {"base", "backbone"} & read_preset(name).keys()
    assert train.preset(name).training != Train().training


@pytest.mark.parametrize("name", [name for name in preset_names() if name.startswith("sd")])
def test_presets_of_large_backbones_inherit_nothing_from_nifi_tiny(name):
    objective = train.preset(name).training.objective
    its_own = {"guidance_scale", "prompt_dropout"}
    assert {k: v for k, v in asdict(objective).items() if k not in its_own} == {
        k: v for k, v in asdict(ObjectiveConfig(perceptual_metric="lpips")).items() if k not in its_own
    }


def test_presets_for_less_memory_give_the_same_result():
    for small, large in (("sd3-24gb", "sd3"), ("sd-turbo-12gb", "sd-turbo")):
        less_memory = {"gradient_accumulation": 4, "gradient_checkpointing": True}
        expected = train.preset(large)
        assert train.preset(small) == replace(expected, training=replace(expected.training, **less_memory))


@pytest.fixture
def parsed(monkeypatch):
    """Function that parses a command line and returns the command without running it."""

    def call(*words: object) -> Train:
        seen: list[Train] = []

        def note(command: Train) -> None:
            seen.append(command)

        monkeypatch.setattr(Train, "main", note)
        typed(*words, monkeypatch=monkeypatch)
        return seen[0]

    return call


def test_a_preset_alone_sets_the_backbone(parsed):
    assert parsed("--preset", "sd-turbo").backbone == "stabilityai/sd-turbo"
    assert parsed("--preset", "laptop").backbone == parsed().backbone == "nifi-tiny"


def test_a_backbone_alone_selects_the_preset_of_its_family(parsed, backbone_folders):
    assert parsed().training == parsed("--backbone", "nifi-tiny").training == train.preset("nifi-tiny").training
    folder = backbone_folders["sd3"]
    command = parsed("--backbone", folder, "--steps", 9)
    assert command.backbone == str(folder)
    assert command.training == replace(train.preset("sd3").training, steps=9)
    assert command.prompt == train.preset("sd3").prompt


def test_a_preset_and_a_backbone_must_match(parsed, refused, backbone_folders):
    """Works without a network, because backbones named in presets need no look-up."""
    sd3, turbo = backbone_folders["sd3"], backbone_folders["sd-turbo"]
    assert parsed("--preset", "sd3-24gb", "--backbone", sd3).training == train.preset("sd3-24gb").training
    error = refused("--preset", "sd-turbo", "--backbone", "nifi-tiny")
    assert error.endswith("does not match --backbone nifi-tiny: omit --preset, or give --preset nifi-tiny")
    assert "--preset sd3 is for stabilityai/" in refused("--preset", "sd3", "--backbone", turbo)
    assert "--preset laptop is for nifi-tiny" in refused("--preset", "laptop", "--backbone", sd3)


def test_a_preset_file_extends_its_base_or_its_backbones_preset(parsed, refused, tmp_path, backbone_folders):
    mine = tmp_path / "mine.yaml"

    def trained(text: str, *words: object):
        mine.write_text(text)
        return parsed("--preset", mine, *words).training

    assert trained("training: {steps: 7}") == train.preset("nifi-tiny").training.with_options(steps=7)
    for text, words in (
        ("{base: sd3, training: {steps: 7}}", ()),
        (f"{{backbone: '{backbone_folders['sd3']}', training: {{steps: 7}}}}", ()),
        ("training: {steps: 7}", ("--backbone", backbone_folders["sd3"])),
    ):
        assert trained(text, *words) == train.preset("sd3").training.with_options(steps=7)
    mine.write_text("base: mine.yaml")
    assert "base is 'mine.yaml', expected one of laptop, " in refused("--preset", mine)


def test_options_override_presets_and_presets_override_defaults(tmp_path, parsed):
    training = "{steps: 7, optimization: {lr: 5e-6}, objective: {alpha: 0.5, t0: 99}}"
    (tmp_path / "p.yaml").write_text(f"base: nifi-tiny\nbackbone: mine\ntraining: {training}\n")
    command = parsed("--preset", tmp_path / "p.yaml", "--steps", 8, "--t0", 50)
    assert command.backbone == "mine" and command.training.steps == 8 and command.training.optimization.lr == 5e-6
    assert command.training.objective.alpha == 0.5 and command.training.objective.t0 == 50
    assert command.training.data.crop == 96


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not valid YAML"),
        ("3", "expected names and values"),
        ("trainign: 3", "unknown option 'trainign'; did you mean 'training'"),
        ("xyz: 3", "unknown option 'xyz'; expected one of backbone, prompt"),
        ("training: {objective: {aplha: 3}}", "objective: unknown option 'aplha'; did you mean 'alpha'"),
        ("training: {steps: many}", "training: steps is 'many', expected a whole number"),
        ("training: {steps: 10.5}", "training: steps is 10.5, expected a whole number"),
        ("training: {steps: true}", "training: steps is True, expected a whole number"),
        ("training: {optimization: {lr: fast}}", "optimization: lr is 'fast', expected a number"),
        ("training: {optimization: {lr: true}}", "optimization: lr is True, expected a number"),
        ("training: {optimization: {schedule: cosin}}", "optimization: schedule is 'cosin'; did you mean 'cosine'"),
        ("training: {adapters: {vae_encoder: 1}}", "vae_encoder is 1, expected true or false"),
        ("training: {evaluation: {choose_by: psnr}}", "choose_by is 'psnr', expected tuple"),
        ("training: {evaluation: {choose_by: [1]}}", r"choose_by\[0\] is 1, expected a string"),
        ("training: {data: {rate_weights: {25KB: often}}}", "rate_weights: 25KB is 'often', expected a number"),
        ("training: {objective: {timesteps: [1]}}", "timesteps is .1., expected tuple"),
        ("training: 3", "training: expected names and values"),
        ("prompt: 3", "prompt is 3, expected a string"),
        ("training: {objective: {alpha: 2}}", "alpha: expected a value"),
        ("pairs: [x]", "unknown option 'pairs'"),
    ],
)
def test_an_invalid_preset_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(NifiError, match=message):
        train.preset(str(tmp_path / "p.yaml"))
