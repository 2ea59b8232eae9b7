"""Datasets from a server that drops connections, refuses ranges, or serves what must not be unpacked."""

import base64
import hashlib
import io
import json
import re
import stat
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import _fetch
import numpy as np
import pytest
from _fetch import check_members, download, extract, open_zip
from download_data import ARCHIVES, DownloadData
from PIL import Image

from nifi_ns.errors import CorruptFileError, NifiError

IMAGES = 10


class Server(ThreadingHTTPServer):
    """Serves `data` under any name, as badly as told."""

    data = b""
    ranges = True
    drop_after: int | None = None
    """Bytes after which each connection is dropped, of bodies longer than that."""
    tag: str | None = '"1"'
    md5: str | None = None
    requests: int
    sent: int

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = self.sent = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/archive.zip"

    def handle_error(self, request: object, client_address: object) -> None:  # a dropped connection is no news
        del request, client_address


class Handler(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        server = self.server
        server.requests += 1
        if "absent" in self.path:
            return self.send_error(404)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match and server.ranges and self.headers.get("If-Range", server.tag) == server.tag:
            first, last = int(match[1]), min(int(match[2] or len(server.data)), len(server.data) - 1)
            if first > last:
                return self.send_error(416)
            body = server.data[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(server.data)}")
        else:
            body = server.data
            self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        if server.tag:
            self.send_header("ETag", server.tag)
        if server.md5:
            self.send_header("x-goog-hash", f"crc32c=AAAAAA==, md5={server.md5}")
        self.end_headers()
        kept = body if server.drop_after is None else body[: server.drop_after]
        server.sent += len(kept)
        self.wfile.write(kept)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        del format, args


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(_fetch, "_pause", lambda _: 0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two scenes as Mip-NeRF 360's archive has them: images at two sizes, and a COLMAP reconstruction."""
    from nerfstudio.data.utils import colmap_parsing_utils as colmap

    folder = tmp_path_factory.mktemp("colmap")
    random = np.random.default_rng(0)
    cameras = {1: colmap.Camera(1, "PINHOLE", 64, 48, np.array([60.0, 61.0, 32.0, 24.0]))}
    names = [f"IMG_{i:02d}.JPG" for i in range(IMAGES)]
    none = np.zeros((0, 2)), np.zeros(0, int)
    images = {
        i + 1: colmap.Image(i + 1, np.array([1.0, 0, 0, 0]), np.array([0.1 * i, 0, 3.0]), 1, name, *none)
        for i, name in enumerate(names)
    }
    points = {
        i: colmap.Point3D(i, random.normal(size=3), np.array([9, 8, 7]), 0.5, np.array([1]), np.array([0]))
        for i in range(1, 21)
    }
    colmap.write_cameras_binary(cameras, folder / "cameras.bin")
    colmap.write_images_binary(images, folder / "images.bin")
    colmap.write_points3D_binary(points, folder / "points3D.bin")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as zipped:
        for scene in ("garden", "bonsai"):
            for sub, size in (("images", (64, 48)), ("images_4", (16, 12)), ("images_2", (32, 24))):
                for name in names:
                    encoded = io.BytesIO()
                    Image.fromarray(random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(encoded, "PNG")
                    zipped.writestr(f"{scene}/{sub}/{name}", encoded.getvalue())
            for file in sorted(folder.iterdir()):
                zipped.write(file, f"{scene}/sparse/0/{file.name}")
        zipped.writestr("large.bin", random.bytes(1 << 19))
    return packed.getvalue()


def evil_zip(name: str, *, mode: int = 0, content: bytes = b"x") -> io.BytesIO:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        member = zipfile.ZipInfo(name)
        member.filename = name
        member.external_attr = mode << 16
        zipped.writestr(member, content)
    return packed


# -- whole files -----------------------------------------------------------------------------------------------------


def test_dropped_connections_are_continued(server: Server, tmp_path: Path) -> None:
    server.data = bytes(range(256)) * 4000
    server.drop_after = 300_000
    counts: list[int] = []
    download(server.url, tmp_path / "file", counts.append)
    assert (tmp_path / "file").read_bytes() == server.data
    assert server.requests == 4 and sum(counts) == len(server.data) == server.sent
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_interrupted_download_goes_on_in_another_process_unless_the_file_has_changed(
    server: Server, tmp_path: Path
) -> None:
    server.data = b"a" * 1000
    (tmp_path / "file.part").write_bytes(b"a" * 600)
    (tmp_path / "file.part.etag").write_text('"1"')
    download(server.url, tmp_path / "file")
    assert server.sent == 400 and (tmp_path / "file").read_bytes() == server.data
    (tmp_path / "new.part").write_bytes(b"old" * 100)
    (tmp_path / "new.part.etag").write_text('"0"')
    download(server.url, tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == server.data


@pytest.mark.parametrize(("ranges", "tag"), [(False, '"1"'), (True, None), (True, 'W/"1"')])
def test_what_cannot_be_continued_begins_again_and_is_given_up_at_last(
    ranges: bool, tag: str | None, server: Server, tmp_path: Path
) -> None:
    server.data, server.ranges, server.tag, server.drop_after = b"b" * 1000, ranges, tag, 600
    with pytest.raises(NifiError, match=r"none that lasts .*; what arrived is kept"):
        download(server.url, tmp_path / "file")
    assert server.requests == _fetch.ATTEMPTS + 1
    server.drop_after = None
    download(server.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == server.data


def test_a_file_of_another_md5_is_refused(server: Server, tmp_path: Path) -> None:
    server.data = b"c" * 1000
    server.md5 = base64.b64encode(hashlib.md5(b"d").digest()).decode()
    with pytest.raises(CorruptFileError, match="another MD5"):
        download(server.url, tmp_path / "file")
    assert not (tmp_path / "file").exists() and not (tmp_path / "file.part").exists()
    server.md5 = base64.b64encode(hashlib.md5(server.data).digest()).decode()
    download(server.url, tmp_path / "file")


def test_a_file_that_is_not_there_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    with pytest.raises(NifiError, match="404"):
        download(server.url.replace("archive", "absent"), tmp_path / "file")
    assert server.requests == 1


def test_a_server_that_cannot_be_reached_is_told_from_one_that_breaks_off(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/archive.zip"
    with pytest.raises(NifiError, match="Connection refused"):
        download(url, tmp_path / "file")
    with pytest.raises(NifiError, match="Connection refused"), open_zip(url, tmp_path):
        pass


def test_official_archives_come_from_servers_that_prove_who_they_are() -> None:
    assert all(url.startswith("https://") for url in ARCHIVES)


# -- scenes ----------------------------------------------------------------------------------------------------------


def fetch(server: Server, folder: Path, **options: object) -> dict:
    DownloadData(source=server.url, scenes=("garden",), output_dir=folder, **options).main()  # type: ignore[arg-type]
    return json.loads((folder / "garden" / "transforms.json").read_text())


def test_only_what_is_asked_for_is_fetched_though_connections_drop(
    server: Server, archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fetch, "_READ_AHEAD", 4096)
    server.data, server.drop_after = archive, 3000
    document = fetch(server, tmp_path, max_images=4)
    assert server.sent < len(archive) / 4
    scene = tmp_path / "garden"
    assert len(list((scene / "images").iterdir())) == len(document["frames"]) == 4
    assert (document["w"], document["h"], document["fl_x"], document["cy"]) == (16, 12, 15.0, 6.0)
    assert document["test_filenames"] == ["images/IMG_00.JPG"] and len(document["train_filenames"]) == 3
    assert not (tmp_path / "archives").exists()
    # more of them later: what is there is not fetched again
    before, there = server.sent, {p: p.stat().st_mtime_ns for p in (scene / "images").iterdir()}
    assert len(fetch(server, tmp_path)["frames"]) == IMAGES
    assert server.sent > before and all(p.stat().st_mtime_ns == time for p, time in there.items())


def test_ns_train_reads_a_fetched_scene(server: Server, archive: bytes, tmp_path: Path) -> None:
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    from nifi_ns.plugin.repairs import seed_points

    seed_points.install()  # as ns-train does, to read the points without open3d
    server.data = archive
    fetch(server, tmp_path, downscale=1)
    parser = NerfstudioDataParserConfig(data=tmp_path / "garden", load_3D_points=True).setup()
    outputs = parser.get_dataparser_outputs("train")
    assert len(outputs.image_filenames) == 8 and len(outputs.metadata["points3D_xyz"]) == 20
    assert float(outputs.cameras.fx[0]) == 60 and int(outputs.cameras.width[0]) == 64
    assert len(parser.get_dataparser_outputs("test").image_filenames) == 2


def test_a_server_without_ranges_gets_its_archive_downloaded(server: Server, archive: bytes, tmp_path: Path) -> None:
    server.data, server.ranges = archive, False
    fetch(server, tmp_path)
    assert (tmp_path / "archives" / "archive.zip").read_bytes() == archive
    requests = server.requests
    fetch(server, tmp_path, max_images=3)
    assert server.requests == requests + 1, "asked whether it has ranges now, and no more"


def test_what_is_damaged_on_disk_is_fetched_again(server: Server, archive: bytes, tmp_path: Path) -> None:
    server.data = archive
    fetch(server, tmp_path)
    image = tmp_path / "garden" / "images" / "IMG_03.JPG"
    good = image.read_bytes()
    image.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    fetch(server, tmp_path)
    assert image.read_bytes() == good


def test_a_damaged_archive_is_one_line(server: Server, archive: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
        start = zipped.getinfo("garden/images_4/IMG_00.JPG").header_offset + 80
    server.data = archive[:start] + bytes(60) + archive[start + 60 :]
    with pytest.raises(CorruptFileError, match=r"IMG_00\.JPG' is damaged"):
        fetch(server, tmp_path)
    server.data = b"no zip" * 100
    with pytest.raises(CorruptFileError, match="is not a zip file"):
        fetch(server, tmp_path)


@pytest.mark.parametrize(
    ("name", "mode", "message"),
    [
        ("../../outside", 0, "would leave the folder"),
        ("/etc/outside", 0, "would leave the folder"),
        ("a\\..\\outside", 0, "would leave the folder"),
        ("C:outside", 0, "would leave the folder"),
        ("link", stat.S_IFLNK | 0o777, "is no plain file"),
        ("pipe", stat.S_IFIFO | 0o644, "is no plain file"),
    ],
)
def test_members_that_would_escape_are_refused(name: str, mode: int, message: str) -> None:
    with zipfile.ZipFile(evil_zip(name, mode=mode)) as zipped, pytest.raises(CorruptFileError, match=message):
        check_members(zipped.infolist(), 1e9)


def test_a_scene_that_would_escape_is_refused_before_anything_is_written(server: Server, tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        for name in ("images/a.png", *(f"sparse/0/{part}.bin" for part in ("cameras", "images", "points3D"))):
            zipped.writestr(f"x/../../outside/{name}", b"x")
    server.data = packed.getvalue()
    with pytest.raises(CorruptFileError, match="would leave the folder"):
        DownloadData(source=server.url, output_dir=tmp_path / "data").main()
    assert not list(tmp_path.rglob("*.*"))


def test_more_than_the_limit_is_refused() -> None:
    with zipfile.ZipFile(evil_zip("a", content=bytes(2000))) as zipped, pytest.raises(CorruptFileError, match="GB"):
        check_members(zipped.infolist(), 1000)


def test_a_member_that_is_larger_than_it_says_is_damaged(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("a", bytes(1_000_000))
        zipped.infolist()[0].file_size = 10  # what the directory at the end will say
    with zipfile.ZipFile(packed) as zipped, pytest.raises(CorruptFileError, match="damaged"):
        extract(zipped, zipped.infolist()[0], tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_zip_on_disk_does_as_well(archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.zip").write_bytes(archive)
    DownloadData(source=str(tmp_path / "mine.zip"), output_dir=tmp_path, max_images=2).main()
    assert {p.parent.name for p in tmp_path.glob("*/transforms.json")} == {"garden", "bonsai"}
    with pytest.raises(NifiError, match="no such file"), open_zip(str(tmp_path / "absent.zip"), tmp_path):
        pass


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give --scenes"),
        ({"scenes": ("gardn",)}, "no scene 'gardn'"),
        ({"scenes": ("garden",), "max_images": 1}, "--max-images is 1"),
        ({"dl3dv": Path("x"), "downscale": 2}, "are for archives"),
        ({"dl3dv": Path("/absent")}, "no such folder"),
    ],
)
def test_mistakes_are_one_line(options: dict, message: str) -> None:
    with pytest.raises(NifiError, match=message):
        DownloadData(**options).main()


def test_every_scene_is_in_one_archive() -> None:
    known = [scene for scenes in ARCHIVES.values() for scene in scenes]
    assert len(known) == len(set(known)) == 13
    assert set(DownloadData(scenes=("treehill", "truck"))._sources().values()) == {("treehill",), ("truck",)}
    assert DownloadData(scenes=("all",))._sources() == ARCHIVES


# -- DL3DV -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def dl3dv(tmp_path: Path) -> Callable[..., Path]:
    def make(scene: str) -> Path:
        folder = tmp_path / "DL3DV" / scene
        (folder / "images_4").mkdir(parents=True)
        frames = []
        for i in range(5):
            Image.new("RGB", (96, 54), "red").save(folder / "images_4" / f"frame_{i:05d}.png")
            frames.append({"file_path": f"images/frame_{i:05d}.png", "transform_matrix": np.eye(4).tolist()})
        camera = {"w": 384, "h": 216, "fl_x": 400.0, "fl_y": 400.0, "cx": 192.0, "cy": 108.0, "camera_model": "OPENCV"}
        (folder / "transforms.json").write_text(json.dumps({**camera, "frames": frames}))
        return folder

    return make


def test_dl3dv_is_linked_at_the_size_that_is_there(dl3dv: Callable[..., Path], tmp_path: Path) -> None:
    source = dl3dv("1K/abc123")
    dl3dv("def/nerfstudio")
    DownloadData(dl3dv=tmp_path / "DL3DV", output_dir=tmp_path / "out", max_images=3).main()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"abc123", "def"}
    document = json.loads((tmp_path / "out" / "abc123" / "transforms.json").read_text())
    assert (document["w"], document["fl_x"], document["cy"]) == (96, 100.0, 27.0) and len(document["frames"]) == 3
    linked = tmp_path / "out" / "abc123" / document["frames"][0]["file_path"]
    assert linked.samefile(source / "images_4" / linked.name)
    DownloadData(dl3dv=tmp_path / "DL3DV", scenes=("abc123",), output_dir=tmp_path / "out").main()
    with pytest.raises(NifiError, match="has no scene xyz"):
        DownloadData(dl3dv=tmp_path / "DL3DV", scenes=("xyz",), output_dir=tmp_path / "out").main()
    document = json.loads((source / "transforms.json").read_text())
    for change, message in (({"w": None}, "lacks its size"), ({"ply_file_path": "a.ply"}, "a.ply, which is not there")):
        (source / "transforms.json").write_text(json.dumps({**document, **change}))
        with pytest.raises(NifiError, match=message):
            DownloadData(dl3dv=source, output_dir=tmp_path / "out").main()
    (source / "transforms.json").write_text("{")
    with pytest.raises(CorruptFileError, match="not nerfstudio's format"):
        DownloadData(dl3dv=source, output_dir=tmp_path / "out").main()
