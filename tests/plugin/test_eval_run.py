"""`ns-nifi-eval` of a run: every variant, every view, and their means."""

from pathlib import Path
from typing import Any

import pytest
from diffusers import AutoencoderTiny

from nifi_ns import results
from nifi_ns.commands.eval import Eval
from nifi_ns.diffusion import Backbone
from nifi_ns.errors import NifiError
from nifi_ns.restore import Restorer, RestorerSettings


def test_every_variant_is_measured_including_flicker(
    run_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "eval.json"
    Eval((run_config,), output, images_dir=tmp_path / "images", consistency=True).main()
    rows = [row.flat() for row in results.load(output)]
    means = {r["variant"]: r for r in rows if r.get("image") is None}
    assert set(means) == {"uncompressed", "compressed", "referenced"}
    assert means["uncompressed"]["bytes"] > means["compressed"]["bytes"] == means["referenced"]["bytes"]
    for variant, mean in means.items():
        views = [r for r in rows if r["variant"] == variant and r.get("image") is not None]
        assert len(views) == len(list((tmp_path / "images").glob(f"*/{variant}/*.png"))) >= 2
        assert mean["psnr"] == pytest.approx(sum(r["psnr"] for r in views) / len(views))
        assert mean["consistency"] > mean["psnr"]
    printed = capsys.readouterr().out
    assert "the next frame" in printed and str(output) in printed


def test_consistency_is_measured_only_with_the_flag(run_config: Path, tmp_path: Path) -> None:
    Eval((run_config,), tmp_path / "eval.json").main()
    assert all(r.more.get("consistency") is None for r in results.load(tmp_path / "eval.json"))


def test_wrong_arguments_are_refused_before_any_work(run_config: Path) -> None:
    with pytest.raises(NifiError, match=r"must end in \.json"):
        Eval((run_config,), output_path=Path("eval.txt")).main()
    with pytest.raises(NifiError, match="no restorer in nowhere"):
        Eval((run_config,), restorer=Path("nowhere")).main()


def test_a_faster_restorer_is_measured(run_config: Path, tmp_path: Path) -> None:
    with pytest.raises(NifiError, match="tiny has none: give --restorer"):
        Eval((run_config,), tmp_path / "eval.json", decoder="taesd").main()
    backbone = Backbone.from_pretrained("nifi-tiny", device="cpu")
    backbone.add_adapters(2, 2)
    Restorer(backbone, RestorerSettings(decode="full")).save_pretrained(tmp_path / "restorer")
    sides: dict[str, Any] = dict(encoder_block_out_channels=(8,) * 3, decoder_block_out_channels=(8,) * 3)
    blocks: dict[str, Any] = dict(num_encoder_blocks=(1,) * 3, num_decoder_blocks=(1,) * 3)
    AutoencoderTiny(latent_channels=backbone.latent_channels, **sides, **blocks).save_pretrained(tmp_path / "taesd")
    psnr = {}
    for decoder in (None, str(tmp_path / "taesd")):
        Eval((run_config,), tmp_path / "eval.json", tmp_path / "restorer", decoder=decoder).main()
        rows = [row.flat() for row in results.load(tmp_path / "eval.json")]
        psnr[decoder] = next(r["psnr"] for r in rows if r["variant"] == "restored" and r.get("image") is None)
    first, second = psnr.values()
    assert abs(first - second) > 0.5
