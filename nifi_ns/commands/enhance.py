"""`ns-nifi-enhance`: restore a video, a folder of images or an image from any renderer."""

import json
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nifi_ns.commands._cli import run
from nifi_ns.diffusion import CompileMode
from nifi_ns.errors import NifiError

if TYPE_CHECKING:
    from nifi_ns.media import Video
    from nifi_ns.references import NearestPhotos
    from nifi_ns.restore import Restorer

_JOB_FILE = ".nifi-enhance.json"


@dataclass
class Enhance:
    """Restore rendered pictures of any splats or NeRF: a video, a folder of images or an image.

    Names, sizes, transparency, colour profiles, frame times and sound are kept. An interrupted command continues when
    it is started again.
    """

    input: Path
    """A video, a folder of images, or an image."""
    restorer: Path
    """A folder written by ns-nifi-train, a checkpoint of the paper's authors, or a folder or hub id of Difix, such as
    nvidia/difix."""
    output: Path | None = None
    """The video, folder or image to write; by default beside the input, with `_restored` appended to its name."""
    photos: Path | None = None
    """A folder of photos for a restorer with attended photos (nvidia/difix_ref). Each picture attends to the photos of
    the nearest cameras, if --cameras and a transforms.json in this folder give both cameras, otherwise to the most
    similar photos."""
    cameras: Path | None = None
    """A transforms.json with the cameras of the input's images, or of the video's frames in order; by default the one
    in the input's folder, if there is one."""
    num_photos: int | None = None
    """Number of attended photos; by default the number used in training."""
    strength: float | None = None
    """Share of the restorer's change to apply, from 0 to 1; by default the best share found in training."""
    batch_size: int = 1
    """Pictures to restore at once."""
    preview: bool = False
    """Restore only the middle picture, and write it before and after, side by side, as a PNG."""
    overwrite: bool = False
    """Replace the existing --output."""
    device: str | None = None
    """Device to use, such as cuda:1; by default the GPU if there is one, otherwise the CPU."""
    compile: CompileMode | None = None
    """Compile the networks with this mode of torch.compile: faster after a slow first picture."""

    def main(self) -> None:
        """Check the options, then restore and print the speed."""
        from nifi_ns.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Video

        if not self.input.exists():
            raise NifiError(f"no such file or folder: {self.input}")
        if (self.num_photos is not None and self.num_photos < 1) or self.batch_size < 1:
            raise NifiError("--num-photos and --batch-size must be at least 1")
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise NifiError(f"--strength is {self.strength}, expected a value in [0, 1]")
        suffix = self.input.suffix.lower()
        if not self.input.is_dir() and suffix not in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
            raise NifiError(f"{self.input} is not a folder, image ({' '.join(IMAGE_SUFFIXES)}) or video")
        restorer = self._restorer  # may raise
        if self.photos is not None and not restorer.settings.attended_photos:
            raise NifiError(f"the restorer in {self.restorer} was not trained with attended photos: omit --photos")
        assert self._photos is None or self._poses is not None  # read both before long work, because they may raise
        if self.preview:
            self._preview()
        elif self.input.is_dir():
            self._images(self._sources, self._target(self.input.name + "_restored"))
        elif suffix in VIDEO_SUFFIXES:
            self._video(Video(self.input), self._target(f"{self.input.stem}_restored{self.input.suffix}"))
        else:
            self._image(self._target(f"{self.input.stem}_restored{self.input.suffix}"))

    @cached_property
    def _restorer(self) -> "Restorer":
        from nifi_ns.restore import Restorer

        return Restorer.from_pretrained(self.restorer, self.device, compile=self.compile)

    @cached_property
    def _photos(self) -> "NearestPhotos | None":
        from nifi_ns.references import NearestPhotos

        return None if self.photos is None else NearestPhotos(self.photos)

    @property
    def _count(self) -> int:
        return self.num_photos or self._restorer.settings.attended_photos

    @cached_property
    def _poses(self) -> dict[int | str, np.ndarray]:
        """Cameras of the input by image name and by frame number."""
        from nifi_ns.references import TRANSFORMS_FILE, read_poses

        beside = (self.input if self.input.is_dir() else self.input.parent) / TRANSFORMS_FILE
        if self.cameras is not None and not self.cameras.is_file():
            raise NifiError(f"no such file: {self.cameras}")
        poses = read_poses(self.cameras or beside) if self.cameras or beside.is_file() else {}
        return {**dict(enumerate(poses.values())), **{path.stem: pose for path, pose in poses.items()}}

    @property
    def _sources(self) -> list[Path]:
        from nifi_ns.media import images_in

        if not (sources := images_in(self.input)):
            raise NifiError(f"no images in {self.input}")
        return sources

    def _target(self, name: str) -> Path:
        return self.output or self.input.with_name(name)

    def _restored(self, pictures: Iterable[tuple[str, int, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (name, restored) for (name, number, [H, W, 3] uint8). Batches share sizes and attended photos."""
        pending: list[tuple[str, np.ndarray]] = []
        shared: list[Path] = []
        for name, number, picture in pictures:
            near = self._nearest(name, number, picture)
            if pending and (len(pending) == self.batch_size or picture.shape != pending[0][1].shape or near != shared):
                yield from self._restore(pending, shared)
                pending = []
            shared = near
            pending.append((name, picture))
        if pending:
            yield from self._restore(pending, shared)

    def _restore(self, pending: list[tuple[str, np.ndarray]], near: list[Path]) -> Iterator[tuple[str, np.ndarray]]:
        batch = np.stack([picture for _, picture in pending])
        restored = self._restorer(batch, self.strength, [_photo(path) for path in near])
        yield from zip((name for name, _ in pending), restored, strict=True)

    def _nearest(self, name: str, number: int, picture: np.ndarray) -> list[Path]:
        """Return the attended photos of a picture."""
        if self._photos is None:
            return []
        pose = self._poses.get(number, self._poses.get(Path(name).stem))
        if pose is not None and len(self._photos.cameras):
            return self._photos.by_pose(pose, self._count)
        return self._photos.by_appearance(picture, self._count)

    def _preview(self) -> None:
        from nifi_ns.media import VIDEO_SUFFIXES, Video, read_picture, write_picture

        source = self.input
        if self.input.suffix.lower() in VIDEO_SUFFIXES:
            video = Video(self.input)
            number = video.approximate_frames // 2
            picture = next(islice(video.frames(), number, None), None)
            if picture is None:
                raise NifiError(f"{self.input} has fewer frames than its header says: nothing to preview")
        else:
            sources = self._sources if self.input.is_dir() else [self.input]
            source, number = sources[len(sources) // 2], -1
            picture = read_picture(source)
        ((_, restored),) = self._restored([(source.name, number, picture)])
        target = (self.output or self.input).with_name(f"{source.stem}_preview.png")
        write_picture(target, np.concatenate([picture, restored], axis=1))
        print(f"before | after: {target}")

    def _image(self, target: Path) -> None:
        from nifi_ns.media import read_picture, write_picture

        if target.exists() and not self.overwrite:
            raise NifiError(f"{target} already exists: give --overwrite or another --output")
        ((_, restored),) = self._restored([(self.input.name, -1, read_picture(self.input))])
        write_picture(target, restored, self.input)
        print(f"written to {target}")

    def _images(self, sources: list[Path], folder: Path) -> None:
        from nifi_ns.media import read_picture, write_picture

        if folder.resolve() == self.input.resolve():
            raise NifiError("--output must be a different folder than the input, because pictures keep their names")
        by_name = {source.name: source for source in sources}
        if self.overwrite:
            for name in by_name:
                (folder / name).unlink(missing_ok=True)
        self._begin(folder, [name for name in by_name if (folder / name).is_file()])
        left = [source for source in sources if not (folder / source.name).is_file()]
        pictures = ((source.name, -1, read_picture(source)) for source in left)
        for name, restored in self._with_progress(self._restored(pictures), len(left), len(sources)):
            write_picture(folder / name, restored, by_name[name])
        print(f"{len(sources)} pictures in {folder}")

    def _video(self, video: "Video", target: Path) -> None:
        """Restore a video. Frames are saved as pictures until all are done, so that it can be resumed."""
        from nifi_ns.media import images_in, read_picture, write_picture

        folder = target.with_name(f"{target.name}.frames")
        if target.exists() and not self.overwrite:
            raise NifiError(f"{target} already exists: give --overwrite or another --output")
        if self.overwrite:
            shutil.rmtree(folder, ignore_errors=True)
        done = {path.name for path in images_in(folder)} if folder.is_dir() else set()
        self._begin(folder, sorted(done))
        numbered = ((f"{number:06d}.png", number, frame) for number, frame in enumerate(video.frames()))
        left = (item for item in numbered if item[0] not in done)
        total = video.approximate_frames
        for name, restored in self._with_progress(self._restored(left), max(total - len(done), 0), total):
            write_picture(folder / name, restored)
        frames = images_in(folder)
        video.write(target, map(read_picture, frames))
        shutil.rmtree(folder)
        print(f"{len(frames)} frames and {video.audio} sound tracks in {target}")

    def _begin(self, folder: Path, done: list[str]) -> None:
        """Record this command's options in `folder`, and refuse `done` pictures of other options."""
        from nifi_ns.files import write_text

        job = {"input": str(self.input.resolve()), "restorer": str(self.restorer), "strength": self.strength}
        if self.photos is not None:
            job |= {"photos": str(self.photos.resolve()), "num_photos": self._count}
        text, path = json.dumps(job, indent=1) + "\n", folder / _JOB_FILE
        if done and (not path.is_file() or path.read_text() != text):
            raise NifiError(f"{folder} holds {done[0]} of another command: give --overwrite or another --output")
        write_text(path, text)

    def _with_progress(
        self, restored: Iterator[tuple[str, np.ndarray]], left: int, total: int
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the pictures with a progress bar, then print the speed."""
        from rich.progress import track

        started, count, pixels = time.perf_counter(), 0, 0
        if left < total:
            print(f"{total - left} of {total} are already done")
        for name, picture in track(restored, "restoring", total=left):
            count, pixels = count + 1, pixels + picture.shape[0] * picture.shape[1]
            yield name, picture
        if count:
            seconds = time.perf_counter() - started
            print(f"{count / seconds:.2f} pictures per second, {1e9 * seconds / pixels:.0f} ms per megapixel")


@lru_cache(maxsize=8)
def _photo(path: Path) -> np.ndarray:
    """Read a photo. Cached, because consecutive frames share photos."""
    from nifi_ns.media import read_picture

    return read_picture(path)


def entrypoint() -> None:
    """Run `ns-nifi-enhance`."""
    run(Enhance)
