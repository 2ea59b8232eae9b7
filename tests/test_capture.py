import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plyfile import PlyData

from nifi_ns.capture import CaptureSettings, make_capture
from nifi_ns.capture._shapes import BOX, ELLIPSOID, FRUSTUM, TORUS
from nifi_ns.capture._trace import Scene, trace
from nifi_ns.errors import NifiError

TINY = CaptureSettings(views=4, width=32, height=24, samples=1, points=60)


def photos(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in sorted((folder / "images").iterdir())])


def single_object(shape: int, size: tuple[float, float, float], turn: np.ndarray | None = None) -> Scene:
    """Return a scene of one object at the origin, in a world frame turned by `turn`."""
    one = np.ones(1)
    frame = np.eye(3) if turn is None else turn
    return Scene(
        shapes=np.array([shape]),
        materials=np.array([7]),
        centres=np.zeros((1, 3)),
        sizes=np.array([size], float),
        frames=frame[None].copy(),
        bounds=2.0 * one,
        groups=np.array([[0, 1]]),
        spheres=np.array([[0.0, 0.0, 0.0, 2.0]]),
        lattice=np.zeros((64, 64, 64), np.float32),
        sun=np.array([0.0, 0.0, 1.0]),
    )


def test_nerfstudio_reads_a_capture(tmp_path: Path) -> None:
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    folder = make_capture(tmp_path / "capture", CaptureSettings(views=10, width=32, height=24, samples=1, points=60))
    parser = NerfstudioDataParserConfig(data=folder, load_3D_points=False).setup()
    train, test = parser.get_dataparser_outputs("train"), parser.get_dataparser_outputs("test")
    assert [path.name for path in test.image_filenames] == ["0001.jpg", "0009.jpg"]
    assert len(train.image_filenames) == 8
    assert (int(train.cameras.width[0]), int(train.cameras.height[0])) == (32, 24)
    assert all(Image.open(path).size == (32, 24) for path in train.image_filenames)


def test_the_same_seed_makes_the_same_capture_with_any_number_of_workers(tmp_path: Path) -> None:
    one, two = make_capture(tmp_path / "one", TINY), make_capture(tmp_path / "two", TINY, workers=3)
    for name in ("transforms.json", "sparse_pc.ply", "images/0001.jpg", "images/0004.jpg"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_another_seed_makes_another_capture(tmp_path: Path) -> None:
    other = CaptureSettings(**{**vars(TINY), "seed": 1})
    assert (photos(make_capture(tmp_path / "a", TINY)) != photos(make_capture(tmp_path / "b", other))).mean() > 0.5


def test_photos_are_well_exposed_and_detailed(tmp_path: Path) -> None:
    pictures = photos(make_capture(tmp_path, TINY)) / 255.0
    assert 0.2 < pictures.mean() < 0.6
    assert (pictures > 0.99).mean() < 0.02 and pictures.std() > 0.1
    assert abs(np.diff(pictures, axis=2)).mean() > 0.02


def test_seed_points_have_the_colours_of_the_photos(tmp_path: Path) -> None:
    """Project the points into the photos: poses, focal length and points must match."""
    settings = CaptureSettings(views=6, width=96, height=72, samples=4, points=2000)
    folder = make_capture(tmp_path, settings)
    document = json.loads((folder / "transforms.json").read_text())
    vertex = PlyData.read(str(folder / "sparse_pc.ply"))["vertex"].data
    points = np.stack([vertex[k] for k in "xyz"], axis=1)
    colours = np.stack([vertex[k] for k in ("red", "green", "blue")], axis=1) / 255.0
    assert np.linalg.norm(points, axis=1).max() > 20, "some points lie in the background"
    errors = []
    for frame in document["frames"][1:]:
        photo = np.asarray(Image.open(folder / frame["file_path"])) / 255.0
        pose = np.array(frame["transform_matrix"])
        camera = (points - pose[:3, 3]) @ pose[:3, :3] * [1, -1, -1]
        x = (document["fl_x"] * camera[:, 0] / camera[:, 2] + document["cx"]).astype(int)
        y = (document["fl_y"] * camera[:, 1] / camera[:, 2] + document["cy"]).astype(int)
        seen = (camera[:, 2] > 0) & (x >= 0) & (x < 96) & (y >= 0) & (y < 72)
        errors.append(np.abs(photo[y[seen], x[seen]] - colours[seen]).mean(axis=1))
    typical = np.median(np.concatenate(errors))
    assert typical < 0.07, f"median difference {typical:.3f}"


@pytest.mark.parametrize(
    ("shape", "size", "expected", "normal"),
    [
        (ELLIPSOID, (0.5, 1.0, 1.0), 2.5, (1, 0, 0)),
        (BOX, (0.25, 1.0, 1.0), 2.75, (1, 0, 0)),
        (FRUSTUM, (0.6, 0.6, 1.0), 2.4, (1, 0, 0)),
        (TORUS, (0.7, 0.2, 0.0), 2.1, (1, 0, 0)),
    ],
)
def test_rays_hit_shapes_at_the_exact_distance(
    shape: int, size: tuple[float, float, float], expected: float, normal: tuple[float, float, float]
) -> None:
    distance, which, n = trace(single_object(shape, size), (3.0, 0.0, 0.0), (-1.0, 0.0, 0.0), 1e9)
    assert which == 0 and distance == pytest.approx(expected, abs=2e-3)
    assert n == pytest.approx(normal, abs=1e-6)
    assert trace(single_object(shape, size), (3.0, 1.5, 0.0), (-1.0, 0.0, 0.0), 1e9)[1] == -1, "it misses the object"
    assert trace(single_object(shape, size), (3.0, 0.0, 0.0), (1.0, 0.0, 0.0), 1e9)[1] == -1, "it points away"


def test_rays_hit_a_turned_object() -> None:

    quarter = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    distance, _, normal = trace(single_object(BOX, (0.25, 1.0, 1.0), quarter), (3.0, 0.0, 0.0), (-1.0, 0.0, 0.0), 1e9)
    assert distance == pytest.approx(2.0) and normal == pytest.approx((1, 0, 0))


def test_a_capture_too_small_to_train_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NifiError, match="at least 2 views"):
        make_capture(tmp_path, CaptureSettings(views=1))
    assert not list(tmp_path.iterdir())
