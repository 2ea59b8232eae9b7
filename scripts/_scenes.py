"""Write scenes for `ns-train --data DIR`: `images/`, `transforms.json`, and `sparse_pc.ply` if points are known."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.files import atomic_path, write_text
from nifi_ns.views import evenly_spaced

TEST_EVERY = 8
"""Every 8th image by name is held out, as in papers on these datasets."""


def chosen(names: list[str], count: int | None) -> list[str]:
    """Return at most `count` of `names`, sorted and evenly spaced; all if `count` is None."""
    names = sorted(names)
    return names if count is None else [names[i] for i in evenly_spaced(count, len(names))]


def from_colmap(folder: Path) -> None:
    """Write `transforms.json` from `folder`/sparse/0 for the images that exist.

    Raises:
        CorruptFileError: if the reconstruction cannot be read.
    """
    from nerfstudio.process_data.colmap_utils import colmap_to_json

    with tempfile.TemporaryDirectory(dir=folder) as made:
        try:
            colmap_to_json(folder / "sparse" / "0", Path(made))
        except Exception as error:  # the reader checks nothing, so any error is possible
            raise CorruptFileError(f"{folder / 'sparse' / '0'} is not a COLMAP reconstruction: {error!r}") from error
        document = json.loads((Path(made) / "transforms.json").read_text())
        with atomic_path(folder / document["ply_file_path"]) as temporary:
            shutil.copyfile(Path(made) / document["ply_file_path"], temporary)
    _finish(folder, document)


def from_transforms(source: Path, folder: Path, max_images: int | None) -> None:
    """Link (or copy) a scene in nerfstudio's format, whose images may exist only at a reduced size.

    In DL3DV's scenes, `transforms.json` names `images/`, but only `images_4/` or another exists.

    Raises:
        CorruptFileError: if it is not in nerfstudio's format.
        NifiError: if images are missing.
    """
    try:
        document = json.loads((source / "transforms.json").read_text())
        files = {Path(frame["file_path"]).name: frame for frame in document["frames"]}
        if len(files) != len(document["frames"]):
            raise KeyError("images of the same name")
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{source / 'transforms.json'} is not nerfstudio's format: {error!r}") from error
    for name in chosen(list(files), max_images):
        there = (source / size / name for size in ("images", "images_2", "images_4", "images_8"))
        image = next((path for path in there if path.is_file()), None)
        if image is None:
            raise NifiError(f"{source}: no image {name} in images, images_2, images_4 or images_8")
        _link(image, folder / "images" / name)
        files[name]["file_path"] = f"images/{name}"
    if points := document.pop("ply_file_path", None):
        if not (source / Path(points).name).is_file():
            raise NifiError(f"{source}: transforms.json names {points}, which is not there")
        _link(source / Path(points).name, folder / "sparse_pc.ply")
        document["ply_file_path"] = "sparse_pc.ply"
    _finish(folder, document)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # on another disk
        with atomic_path(target) as temporary:
            shutil.copyfile(source, temporary)


def _finish(folder: Path, document: dict[str, Any]) -> None:
    """Write `transforms.json` as the last file, for the frames whose images exist, at the sizes of these images."""
    from PIL import Image

    frames = sorted(document["frames"], key=lambda frame: frame["file_path"])
    frames = [frame for frame in frames if (folder / frame["file_path"]).is_file()]
    if len(frames) < 2:
        raise NifiError(f"{folder}: {len(frames)} of its {len(document['frames'])} images exist, expected at least 2")
    sizes = set()
    for frame in frames:
        with Image.open(folder / frame["file_path"]) as image:
            sizes.add(image.size)
            if "fl_x" in frame:
                _rescale(frame, *image.size)
    if "fl_x" in document:
        if len(sizes) > 1:
            raise NifiError(f"{folder}: images have {len(sizes)} sizes, expected one, because they share a camera")
        _rescale(document, *sizes.pop())
    names = [frame["file_path"] for frame in frames]
    held_out = names[::TEST_EVERY]
    document |= {"frames": frames, "train_filenames": [name for name in names if name not in held_out]}
    document |= {"val_filenames": held_out, "test_filenames": held_out}
    write_text(folder / "transforms.json", json.dumps(document, indent=1) + "\n")


def _rescale(camera: dict[str, Any], width: int, height: int) -> None:
    """Rescale a camera's intrinsics to another image size."""
    try:
        across, down = width / camera["w"], height / camera["h"]
        for name, factor in (("fl_x", across), ("cx", across), ("fl_y", down), ("cy", down)):
            camera[name] *= factor
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise CorruptFileError(f"a camera in transforms.json lacks its size or intrinsics: {error!r}") from error
    camera |= {"w": width, "h": height}
