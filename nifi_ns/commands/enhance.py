"""`ns-nifi-enhance`: restore a video, a folder of images or an image, whatever rendered them."""

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
    """Restore pictures that have been rendered already, from any splats or NeRF: a video, a folder or one image.

    Names, sizes, transparency, colour profiles, the times of a video's frames and its sound are kept. An interrupted
    command continues where it stopped when it is started again.
    """

    input: Path
    """A video, a folder of images, or an image."""
    restorer: Path
    """A folder that ns-nifi-train wrote, a checkpoint of the paper's authors, or a folder or hub id of Difix, such as
    nvidia/difix."""
    output: Path | None = None
    """The video, folder or image to write; by default beside the input, with `_restored` after its name."""
    photos: Path | None = None
    """A folder of photos for a restorer that attends to some (nvidia/difix_ref): for each picture the nearest ones by
    camera, where --cameras and a transforms.json in this folder have both, otherwise the most similar ones."""
    cameras: Path | None = None
    """A transforms.json with the cameras of the input's images, or of the video's frames in their order; by default
    the one in the input's folder, if it has one."""
    num_photos: int | None = None
    """How many photos to attend to; by default as many as the restorer was trained with."""
    strength: float | None = None
    """Share of the restorer's change to apply, 0 to 1; by default the share that served best in its training."""
    batch_size: int = 1
    """Pictures to restore at once."""
    preview: bool = False
    """Only restore the middle picture, and write it before and after, side by side, as a PNG."""
    overwrite: bool = False
    """Replace what is at --output."""
    device: str | None = None
    """Where to compute, such as cuda:1; by default the GPU if there is one, otherwise the CPU."""
    compile: CompileMode | None = None
    """Compile the networks in this mode of torch.compile: faster, after a slow first picture."""

    def main(self) -> None:
        """Check what was given, then restore and tell how fast."""
        from nifi_ns.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Video

        if not self.input.exists():
            raise NifiError(f"no such file or folder: {self.input}")
        if (self.num_photos is not None and self.num_photos < 1) or self.batch_size < 1:
            raise NifiError("--num-photos and --batch-size must be 1 or more")
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise NifiError(f"--strength is {self.strength}, expected 0 to 1")
        suffix = self.input.suffix.lower()
        if not self.input.is_dir() and suffix not in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
            raise NifiError(f"{self.input} is no folder, image ({' '.join(IMAGE_SUFFIXES)}) or video")
        restorer = self._restorer  # which may raise
        if self.photos is not None and not restorer.settings.attended_photos:
            raise NifiError(f"the restorer in {self.restorer} was not trained to attend to photos: leave out --photos")
        assert self._photos is None or self._poses is not None  # both are read, and may raise, before long work
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
        """Cameras of the input, by an image's name and by a frame's number."""
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
        """(name, restored) of (name, number, [H, W, 3] uint8), batched where sizes and references allow it."""
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
        """The reference photos of a picture."""
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
            number = video.about // 2
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
            raise NifiError(f"{target} is there already: give --overwrite or another --output")
        ((_, restored),) = self._restored([(self.input.name, -1, read_picture(self.input))])
        write_picture(target, restored, self.input)
        print(f"written to {target}")

    def _images(self, sources: list[Path], folder: Path) -> None:
        from nifi_ns.media import read_picture, write_picture

        if folder.resolve() == self.input.resolve():
            raise NifiError("--output must be another folder than the input: pictures keep their names")
        by_name = {source.name: source for source in sources}
        if self.overwrite:
            for name in by_name:
                (folder / name).unlink(missing_ok=True)
        self._begin(folder, [name for name in by_name if (folder / name).is_file()])
        left = [source for source in sources if not (folder / source.name).is_file()]
        pictures = ((source.name, -1, read_picture(source)) for source in left)
        for name, restored in self._watched(self._restored(pictures), len(left), len(sources)):
            write_picture(folder / name, restored, by_name[name])
        print(f"{len(sources)} pictures in {folder}")

    def _video(self, video: "Video", target: Path) -> None:
        """Frames are kept as pictures until all are there."""
        from nifi_ns.media import images_in, read_picture, write_picture

        folder = target.with_name(f"{target.name}.frames")
        if target.exists() and not self.overwrite:
            raise NifiError(f"{target} is there already: give --overwrite or another --output")
        if self.overwrite:
            shutil.rmtree(folder, ignore_errors=True)
        done = {path.name for path in images_in(folder)} if folder.is_dir() else set()
        self._begin(folder, sorted(done))
        numbered = ((f"{number:06d}.png", number, frame) for number, frame in enumerate(video.frames()))
        left = (item for item in numbered if item[0] not in done)
        for name, restored in self._watched(self._restored(left), max(video.about - len(done), 0), video.about):
            write_picture(folder / name, restored)
        frames = images_in(folder)
        video.write(target, map(read_picture, frames))
        shutil.rmtree(folder)
        print(f"{len(frames)} frames and {video.audio} sound tracks in {target}")

    def _begin(self, folder: Path, done: list[str]) -> None:
        """Say in `folder` what fills it; what is `done` there has to be of the same command."""
        from nifi_ns.files import write_text

        job = {"input": str(self.input.resolve()), "restorer": str(self.restorer), "strength": self.strength}
        if self.photos is not None:
            job |= {"photos": str(self.photos.resolve()), "num_photos": self._count}
        text, path = json.dumps(job, indent=1) + "\n", folder / _JOB_FILE
        if done and (not path.is_file() or path.read_text() != text):
            raise NifiError(f"{folder} holds {done[0]} of something else: give --overwrite or another --output")
        write_text(path, text)

    def _watched(
        self, restored: Iterator[tuple[str, np.ndarray]], left: int, total: int
    ) -> Iterator[tuple[str, np.ndarray]]:
        """The same, with a progress bar; and afterwards how fast it went."""
        from rich.progress import track

        started, count, pixels = time.perf_counter(), 0, 0
        if left < total:
            print(f"{total - left} of {total} were done before")
        for name, picture in track(restored, "restoring", total=left):
            count, pixels = count + 1, pixels + picture.shape[0] * picture.shape[1]
            yield name, picture
        if count:
            seconds = time.perf_counter() - started
            print(f"{count / seconds:.2f} pictures a second, {1e9 * seconds / pixels:.0f} ms a megapixel")


@lru_cache(maxsize=8)
def _photo(path: Path) -> np.ndarray:
    """A reference, which is near to many frames after one another."""
    from nifi_ns.media import read_picture

    return read_picture(path)


def entrypoint() -> None:
    """`ns-nifi-enhance`."""
    run(Enhance)
