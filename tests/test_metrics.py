import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nifi_ns import metrics


def photo(size: int = 192) -> Tensor:
    """[size, size, 3] smooth but detailed."""
    noise = torch.rand(1, 3, size, size)
    return (0.5 + torch.nn.functional.avg_pool2d(noise - 0.5, 5, 1, 2) * 2).clamp(0, 1)[0].movedim(0, -1)


@pytest.fixture(autouse=True)
def _no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for function in (metrics.weights_available, metrics.lpips_network, metrics.dists_network):
        function.cache_clear()


def test_a_worse_image_is_worse_by_every_weight_free_metric() -> None:
    truth = photo()
    names = metrics.REFERENCE_METRICS
    good, bad = (metrics.compute(truth + s * torch.randn_like(truth), truth, names=names) for s in (0.02, 0.1))
    for name in names:
        better, worse = good[name], bad[name]
        assert better is not None and worse is not None
        assert better < worse if name in metrics.LOWER_IS_BETTER else better > worse, name


def test_the_photo_itself_scores_perfectly_and_finitely() -> None:
    truth = photo()
    expected = {"psnr": 100.0, "ssim": 1.0, "ms_ssim": 1.0, "haarpsi": 1.0, "gmsd": 0.0}
    assert metrics.compute(truth, truth, names=metrics.REFERENCE_METRICS) == pytest.approx(expected, abs=1e-5)


def test_psnr_is_that_of_a_known_error() -> None:
    truth = torch.full((32, 32, 3), 0.5)
    assert metrics.compute(truth + 0.1, truth, names=["psnr"])["psnr"] == pytest.approx(20.0, abs=1e-4)


def test_ssim_is_the_one_ns_eval_reports() -> None:
    from pytorch_msssim import SSIM

    truth = photo()
    image = (truth + 0.05 * torch.randn_like(truth)).clamp(0, 1)
    splatfacto = SSIM(data_range=1.0, size_average=True, channel=3)
    expected = splatfacto(image.movedim(-1, 0)[None], truth.movedim(-1, 0)[None]).item()
    assert metrics.compute(image, truth, names=["ssim"])["ssim"] == pytest.approx(expected, abs=1e-6)


def test_values_outside_the_range_are_clamped() -> None:
    truth = torch.zeros(32, 32, 3)
    assert metrics.compute(truth - 1, truth, names=["psnr"])["psnr"] == pytest.approx(100)


@pytest.mark.parametrize(("size", "absent"), [(160, {"ms_ssim"}), (15, {"ms_ssim", "haarpsi", "gmsd"})])
def test_a_small_image_lacks_what_is_not_defined_there(size: int, absent: set[str]) -> None:
    truth = photo(size)
    values = metrics.compute(truth, truth, names=metrics.REFERENCE_METRICS)
    assert {name for name, value in values.items() if value is None} == absent


def test_without_weights_the_learned_metrics_are_none_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    truth = photo(64)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            values = metrics.compute(truth, truth)
            assert values["lpips"] is None and values["dists"] is None
    assert [record.message.split()[0] for record in caplog.records] == ["LPIPS", "DISTS"]


def test_an_unreachable_server_is_asked_once_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked = []
    monkeypatch.setattr(metrics, "_reachable", lambda url: bool(asked.append(url)))
    truth = photo(64)
    for _ in range(3):
        assert metrics.compute(truth, truth, names=["lpips"]) == {"lpips": None}
    assert len(asked) == 1


def test_a_name_that_does_not_resolve_is_unreachable() -> None:
    assert not metrics._reachable("https://weights.invalid/alexnet.pth")


def test_lpips_uses_weights_that_lie_in_the_cache(tmp_path: Path) -> None:
    from torchvision.models import alexnet

    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(alexnet(weights=None).state_dict(), folder / "alexnet-owt-7be5be79.pth")
    truth = photo(64)
    same, noisy = (metrics.compute(truth + s * torch.randn_like(truth), truth, names=["lpips"]) for s in (0, 0.2))
    assert same["lpips"] == pytest.approx(0, abs=1e-6)
    assert noisy["lpips"] is not None and noisy["lpips"] > 1e-4


def test_bad_input_is_refused() -> None:
    truth = photo(32)
    with pytest.raises(ValueError, match="two \\[H, W, 3\\] images"):
        metrics.compute(truth[:16], truth)
    with pytest.raises(ValueError, match="not finite"):
        metrics.compute(truth * float("nan"), truth)
    with pytest.raises(ValueError, match="unknown metrics \\['fid'\\]"):
        metrics.compute(truth, truth, names=["fid"])


def test_a_mean_covers_all_images_or_is_none() -> None:
    rows = [{"psnr": 20.0, "lpips": None}, {"psnr": 30.0, "lpips": 0.2}]
    assert metrics.mean(rows) == {"psnr": 25.0, "lpips": None}
