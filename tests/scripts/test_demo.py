import subprocess
import sys
from pathlib import Path

import pytest
from _comparison import save_comparison
from _demo import Steps
from PIL import Image

from nifi_ns import results
from nifi_ns.errors import NifiError

REPOSITORY = Path(__file__).parents[2]


def counting(counter: Path, result: Path, word: str = "") -> list[str]:
    """A command that counts how often it ran and writes `result`."""
    code = f"open({str(counter)!r}, 'a').write('x'); open({str(result)!r}, 'w'); {word!r}"
    return [sys.executable, "-c", code]


def test_a_finished_step_is_not_repeated_even_by_another_process(tmp_path: Path) -> None:
    result, counter = tmp_path / "result", tmp_path / "counter"
    for _ in range(3):
        Steps(tmp_path).run("one", result, *counting(counter, result))
    assert counter.read_text() == "x"


def test_a_step_runs_again_when_its_command_an_earlier_one_or_its_result_changed(tmp_path: Path) -> None:
    first, second, counter = tmp_path / "first", tmp_path / "second", tmp_path / "counter"

    def both(word: str) -> None:
        steps = Steps(tmp_path)
        steps.run("first", first, *counting(tmp_path / "other", first, word))
        steps.run("second", second, *counting(counter, second))

    both("a")
    both("b")
    assert counter.read_text() == "xx", "what it builds on is another"
    second.unlink()
    both("b")
    assert counter.read_text() == "xxx", "its result was removed"


def test_a_failed_step_shows_the_end_of_its_output_and_is_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        with pytest.raises(NifiError, match=r"broken failed with status 3; its output is in .*broken\.log"):
            Steps(tmp_path).run("broken", tmp_path / "x", sys.executable, "-c", "print('the reason'); exit(3)")
        assert "the reason" in capsys.readouterr().out


def test_a_step_that_writes_nothing_has_failed(tmp_path: Path) -> None:
    with pytest.raises(NifiError, match="silent failed"):
        Steps(tmp_path).run("silent", tmp_path / "x", sys.executable, "-c", "pass")


def test_the_comparison_shows_each_variant_of_the_smallest_rate(tmp_path: Path) -> None:
    colours = {"uncompressed": "#101010", "compressed": "#404040", "restored": "#707070", "referenced": "#a0a0a0"}
    rows = []
    for rate, size in (("60KB", 60000), ("20KB", 20000)):
        for variant, colour in colours.items():
            metrics = {"psnr": 25.0, "haarpsi": 0.6}
            folder = tmp_path / f"garden_{rate}" / variant
            folder.mkdir(parents=True)
            for name in ("a", "b"):
                Image.new("RGB", (320, 240), colour if rate == "20KB" else "red").save(folder / f"{name}.png")
                arguments = {"bytes": size, "gaussians": 9, "metrics": metrics, "rate": rate}
                rows.append(results.Row("garden", variant, **arguments, image=name))  # pyright: ignore
            rows.append(results.Row("garden", variant, **arguments))  # pyright: ignore
    (tmp_path / "photos").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (320, 240), "#d0d0d0").save(tmp_path / "photos" / f"{name}.png")
    save_comparison(tmp_path / "comparison.png", rows, tmp_path, tmp_path / "photos")
    sheet = Image.open(tmp_path / "comparison.png").convert("L")
    seen = [sheet.getpixel((round((column + 0.5) * sheet.width / 5), sheet.height - 20)) for column in range(5)]
    assert seen == [0xD0, 0x10, 0x40, 0x70, 0xA0]


def test_data_that_is_no_capture_is_refused_before_anything_runs(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/_demo.py", "--data", str(tmp_path), "--output", str(tmp_path / "out")]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert "no transforms.json" in finished.stderr and "Traceback" not in finished.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_quick_demo_makes_all_it_promises(tmp_path: Path) -> None:
    command = [sys.executable, "scripts/_demo.py", "--quick", "--output", str(tmp_path)]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    rows = [row.flat() for row in results.load(tmp_path / "results.json")]
    assert {r["variant"] for r in rows} == {"uncompressed", "compressed", "restored", "referenced"}
    assert {r["rate"] for r in rows} == {"60KB", "20KB"}
    assert all(0.98 * size <= r["bytes"] <= size for r in rows for size in [int(r["rate"][:2]) * 1000]
               if r["variant"] != "uncompressed")  # fmt: skip
    assert Image.open(tmp_path / "comparison.png").width > 600
    assert (tmp_path / "before_after.mp4").stat().st_size > 10_000
