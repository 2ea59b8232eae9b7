"""`ns-nifi-enhance`: videos, folders and images, interruptions, with and without attended photos."""

import json
from pathlib import Path

import numpy as np
import pytest
from clips import write_clip
from PIL import Image

from nifi_ns.commands.enhance import Enhance
from nifi_ns.errors import NifiError
from nifi_ns.media import Video, read_picture
from nifi_ns.references import NearestPhotos
from nifi_ns.restore import Restorer


def picture(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "views"
    root.mkdir()
    for i in range(4):
        picture(i, (40, 32) if i < 3 else (24, 32)).save(root / f"view{i}.png")
    (root / "notes.txt").write_text("no picture")
    return root


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """Photos 10 to 13 with cameras at x = 0 to 3. The last camera faces the other way."""
    root = tmp_path / "capture"
    (root / "images").mkdir(parents=True)
    frames = []
    for i in range(4):
        picture(10 + i).save(root / "images" / f"photo{i}.png")
        pose = np.diag([1.0, 1, 1, 1] if i < 3 else [-1.0, 1, -1, 1])
        pose[0, 3] = i
        frames.append({"file_path": f"images/photo{i}.png", "transform_matrix": pose.tolist()})
    (root / "transforms.json").write_text(json.dumps({"frames": frames}))
    return root


def test_a_folder_keeps_names_and_sizes_and_is_resumed(
    folder: Path, difix_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Enhance(folder, difix_folder, batch_size=2, device="cpu")
    job.main()
    output = folder.with_name("views_restored")
    restored = {path.name: read_picture(path) for path in output.glob("*.png")}
    restorer = Restorer.from_pretrained(difix_folder, "cpu")
    assert restored.keys() == {f"view{i}.png" for i in range(4)}
    for name, pixels in restored.items():
        assert np.abs(pixels.astype(int) - restorer(read_picture(folder / name))).max() <= 1
    assert "ms per megapixel" in capsys.readouterr().out

    (output / "view2.png").unlink()
    before = (output / "view1.png").stat().st_mtime_ns
    seen = []
    call = Restorer.__call__
    monkeypatch.setattr(Restorer, "__call__", lambda self, image, *a: seen.append(len(image)) or call(self, image, *a))
    Enhance(folder, difix_folder, device="cpu").main()
    assert seen == [1] and (output / "view1.png").stat().st_mtime_ns == before
    assert np.array_equal(read_picture(output / "view2.png"), restored["view2.png"])
    with pytest.raises(NifiError, match=r"holds view0\.png of another command: give --overwrite"):
        Enhance(folder, difix_folder, strength=0.5, device="cpu").main()
    Enhance(folder, difix_folder, strength=0.0, overwrite=True, device="cpu").main()
    assert np.array_equal(read_picture(output / "view1.png"), read_picture(folder / "view1.png"))


def test_an_interrupted_video_is_resumed(tmp_path: Path, difix_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "flight.mp4")
    with monkeypatch.context() as patch:
        frames = Video.frames

        def interrupted(video: Video):
            for i, frame in enumerate(frames(video)):
                if i == 3:
                    raise KeyboardInterrupt
                yield frame

        patch.setattr(Video, "frames", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Enhance(tmp_path / "flight.mp4", difix_folder, device="cpu").main()
    assert len(list((tmp_path / "flight_restored.mp4.frames").glob("*.png"))) == 3 - 1
    seen = []
    call = Restorer.__call__
    monkeypatch.setattr(Restorer, "__call__", lambda self, image, *a: seen.append(len(image)) or call(self, image, *a))
    job = Enhance(tmp_path / "flight.mp4", difix_folder, device="cpu")
    job.main()
    assert seen == [1] * 6
    video = Video(tmp_path / "flight_restored.mp4")
    assert (len(list(video.frames())), video.audio) == (8, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"flight.mp4", "flight_restored.mp4"}
    with pytest.raises(NifiError, match=r"flight_restored\.mp4 already exists"):
        job.main()


def test_an_image_and_a_preview_are_written(tmp_path: Path, folder: Path, difix_folder: Path) -> None:
    Enhance(folder / "view0.png", difix_folder, tmp_path / "better.png", device="cpu").main()
    restored = read_picture(tmp_path / "better.png")
    assert restored.shape == (32, 40, 3)
    Enhance(folder / "view0.png", difix_folder, preview=True, device="cpu").main()
    shown = read_picture(folder / "view0_preview.png")
    assert np.array_equal(shown, np.concatenate([read_picture(folder / "view0.png"), restored], axis=1))
    write_clip(tmp_path / "flight.mp4")
    Enhance(tmp_path / "flight.mp4", difix_folder, preview=True, device="cpu").main()
    assert read_picture(tmp_path / "flight_preview.png").shape == (48, 128, 3)
    assert not (tmp_path / "flight_restored.mp4").exists()


def test_photos_are_chosen_by_camera_or_by_appearance(
    folder: Path, capture: Path, difix_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = NearestPhotos(capture)
    pose = np.eye(4)
    pose[0, 3] = 2.8
    assert [path.stem for path in photos.by_pose(pose, 2)] == ["photo2", "photo3"]
    assert photos.by_appearance(np.asarray(picture(12, (80, 64))), 1)[0].stem == "photo2"

    def photos_beside(**options: object) -> list[list[str]]:
        """Record the photos of each picture."""
        seen = []
        monkeypatch.setattr(
            "nifi_ns.commands.enhance.Enhance._restore",
            lambda self, pending, near: seen.append([path.stem for path in near]) or pending,
        )
        Enhance(folder, difix_folder, overwrite=True, device="cpu", **options).main()  # pyright: ignore
        return seen

    assert photos_beside(photos=capture / "images", num_photos=2) == [
        [path.stem for path in photos.by_appearance(read_picture(folder / f"view{i}.png"), 2)] for i in range(4)
    ]
    frames = [{"file_path": f"elsewhere/view{i}.jpg", "transform_matrix": np.eye(4).tolist()} for i in range(4)]
    for i in range(4):
        frames[i]["transform_matrix"][0][3] = 3 - i  # pyright: ignore
    cameras = folder / "cameras.json"
    cameras.write_text(json.dumps({"frames": frames}))
    assert photos_beside(photos=capture, cameras=cameras) == [["photo2"], ["photo2"], ["photo1"], ["photo0"]]


def test_invalid_input_is_refused(
    tmp_path: Path, folder: Path, capture: Path, difix_folder: Path, backbone_folders: dict[str, Path]
) -> None:
    from nifi_ns.diffusion import Backbone

    own = tmp_path / "own"
    backbone = Backbone.from_pretrained(backbone_folders["sd-turbo"], device="cpu")
    backbone.add_adapters(2, 2)
    Restorer(backbone).save_pretrained(own)
    (tmp_path / "empty").mkdir()
    (capture / "images" / "transforms.json").write_text("[]")
    for options, message in (
        ({"input": tmp_path / "none.mp4"}, r"no such file or folder: .*none\.mp4"),
        ({"input": folder / "notes.txt"}, r"notes\.txt is not a folder, image \(\.png .* or video"),
        ({"input": tmp_path / "empty"}, "no images in .*empty"),
        ({"output": folder}, "--output must be a different folder than the input"),
        ({"strength": 1.5}, r"--strength is 1\.5, expected a value in \[0, 1\]"),
        ({"batch_size": 0}, "--num-photos and --batch-size must be at least 1"),
        ({"restorer": tmp_path / "empty"}, "no restorer in .*empty"),
        ({"restorer": own, "photos": capture}, "was not trained with attended photos: omit --photos"),
        ({"photos": tmp_path / "empty"}, "no photos in .*empty"),
        ({"photos": capture / "images"}, r"transforms\.json holds no cameras"),
        ({"photos": capture, "cameras": tmp_path / "no.json"}, r"no such file: .*no\.json"),
    ):
        with pytest.raises(NifiError, match=message):
            Enhance(**{"input": folder, "restorer": difix_folder, "device": "cpu"} | options).main()  # pyright: ignore
    assert not folder.with_name("views_restored").exists()
