"""Download scenes of Mip-NeRF 360, Tanks & Temples and Deep Blending, or link scenes of a local copy of DL3DV.

    python scripts/download_data.py --scenes garden truck --max-images 60
    ns-train nifi-splat --data data/garden

Only the requested images of the official archives are downloaded, by HTTP ranges. Interrupted downloads continue. The
authors publish no checksums, so authenticity rests on the server's certificate; image checksums in the archive only
detect damage. The datasets have their own terms: see their pages. This script was tested against a misbehaving local
server, but not against the official addresses.
"""

import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from _fetch import check_members, extract, open_zip
from _scenes import chosen, from_colmap, from_transforms
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from nifi_ns.commands import run
from nifi_ns.errors import NifiError

_REFRAW360 = "https://storage.googleapis.com/gresearch/refraw360"
_TANDT_DB = "https://repo-sam.inria.fr/fungraph/3d-gaussian-splatting/datasets/input/tandt_db.zip"
_INDOORS = ("bonsai", "counter", "kitchen", "room")
ARCHIVES = {
    f"{_REFRAW360}/360_v2.zip": ("bicycle", *_INDOORS, "garden", "stump"),
    f"{_REFRAW360}/360_extra_scenes.zip": ("flowers", "treehill"),
    _TANDT_DB: ("train", "truck", "drjohnson", "playroom"),
}


@dataclass
class DownloadData:
    """Download scenes to OUTPUT_DIR/<scene> for ns-train --data. Every 8th image is held out.

    Mip-NeRF 360 (bicycle, bonsai, counter, garden, kitchen, room, stump, flowers, treehill), Tanks & Temples (train,
    truck) and Deep Blending (drjohnson, playroom), the latter two as 3D Gaussian Splatting's authors host them.
    """

    scenes: tuple[str, ...] = ()
    """Scenes to download, or `all`. With --source or --dl3dv the default is all scenes in it."""
    max_images: int | None = None
    """Maximum number of images per scene, evenly spread."""
    downscale: int | None = None
    """Download images at 1/DOWNSCALE of their size: 1, 2, 4 or 8 if the archive has them. By default as in papers: 4
    for Mip-NeRF 360 outdoors, 2 indoors, else 1."""
    source: str | None = None
    """URL of an archive, or a zip file, to use instead of the official archive."""
    dl3dv: Path | None = None
    """Instead of downloading, use a folder with scenes of DL3DV, at most two levels down. Images are linked, or copied
    from another disk."""
    output_dir: Path = Path("data")
    """Folder for the scenes. Archives from servers without ranges are written to OUTPUT_DIR/archives."""
    max_gigabytes: float = 20.0
    """Maximum size of a scene to unpack."""

    def main(self) -> None:
        """Download or link the scenes, and print their folders."""
        if self.max_images is not None and self.max_images < 2:
            raise NifiError(f"--max-images is {self.max_images}, expected 2 or more")
        if self.dl3dv is not None:
            if self.source is not None or self.downscale is not None:
                raise NifiError("--source and --downscale are for archives, not for --dl3dv")
            return self._link(self.dl3dv)
        for source, scenes in self._sources().items():
            with self._progress() as progress:
                self._fetch(source, scenes, progress)

    def _sources(self) -> dict[str, tuple[str, ...] | None]:
        """Return archives and the scenes to take from each; None for all."""
        wanted = None if "all" in self.scenes else self.scenes
        if self.source is not None:
            return {self.source: wanted or None}
        known = [scene for scenes in ARCHIVES.values() for scene in scenes]
        if wanted == ():
            raise NifiError(f"give --scenes: all, or some of {', '.join(known)}")
        if unknown := sorted(set(wanted or ()) - set(known)):
            raise NifiError(f"there is no scene {unknown[0]!r}; there are {', '.join(known)}")
        picked = {url: tuple(s for s in scenes if wanted is None or s in wanted) for url, scenes in ARCHIVES.items()}
        return {url: scenes for url, scenes in picked.items() if scenes}

    def _progress(self) -> Progress:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        return Progress(*columns, console=Console(), disable=not sys.stdout.isatty())

    def _fetch(self, source: str, scenes: tuple[str, ...] | None, progress: Progress) -> None:
        whole = progress.add_task(source.rpartition("/")[2], total=None, visible=False)

        def advance(count: int) -> None:
            progress.update(whole, advance=count, visible=True)

        with open_zip(source, self.output_dir / "archives", advance) as archive:
            roots = {p.parents[2].name: p.parents[2] for p in _files(archive) if p.match("*/sparse/0/cameras.bin")}
            if absent := sorted(set(scenes or ()) - set(roots)) or ([] if roots else ["any scene"]):
                raise NifiError(
                    f"{source} has no {absent[0]} (with sparse/0); it has {', '.join(sorted(roots)) or 'none'}"
                )
            for scene in scenes or sorted(roots):
                members = self._members(archive, roots[scene], scene)
                check_members(list(members.values()), 1e9 * self.max_gigabytes)
                task = progress.add_task(scene, total=sum(member.file_size for member in members.values()))
                for path, member in members.items():
                    extract(archive, member, self.output_dir / scene / path)
                    progress.advance(task, member.file_size)
                from_colmap(self.output_dir / scene)
                progress.console.print(f"{self.output_dir / scene}: {len(members) - 3} images")

    def _members(self, archive: zipfile.ZipFile, root: PurePosixPath, scene: str) -> dict[str, zipfile.ZipInfo]:
        """Return the members of a scene by their target path in the scene's folder."""
        factor = self.downscale or (1 if scene not in _mip_nerf_360() else 2 if scene in _INDOORS else 4)
        folder = "images" if factor == 1 else f"images_{factor}"
        found = {path.relative_to(root): path for path in _files(archive) if path.is_relative_to(root)}
        images = [path.name for path in found if path.parent == PurePosixPath(folder)]
        if not images:
            raise NifiError(f"{scene} has no {folder} in this archive: give another --downscale")
        wanted = {f"images/{name}": f"{folder}/{name}" for name in chosen(images, self.max_images)}
        wanted |= {f"sparse/0/{name}.bin": f"sparse/0/{name}.bin" for name in ("cameras", "images", "points3D")}
        try:
            return {target: archive.getinfo(str(root / name)) for target, name in wanted.items()}
        except KeyError as error:
            raise NifiError(f"{scene} is incomplete in this archive: {error.args[0]}") from error

    def _link(self, folder: Path) -> None:
        if not folder.is_dir():
            raise NifiError(f"--dl3dv {folder}: no such folder")
        found = [file.parent for depth in ("", "*/", "*/*/") for file in sorted(folder.glob(f"{depth}transforms.json"))]
        # all scenes of the benchmark are in folders called "nerfstudio"
        named = {(p.parent if p.name == "nerfstudio" else p).resolve().name: p for p in found}
        if "all" not in self.scenes and self.scenes:
            if absent := sorted(set(self.scenes) - set(named)):
                raise NifiError(f"{folder} has no scene {absent[0]}; it has {', '.join(sorted(named)) or 'none'}")
            named = {name: named[name] for name in self.scenes}
        if not named:
            raise NifiError(f"{folder}: no transforms.json in it, nor one or two levels down")
        for name, source in named.items():
            from_transforms(source, self.output_dir / name, self.max_images)
            print(self.output_dir / name)


def _files(archive: zipfile.ZipFile) -> list[PurePosixPath]:
    return [PurePosixPath(name) for name in archive.namelist() if not name.endswith("/")]


def _mip_nerf_360() -> set[str]:
    return {scene for url, scenes in ARCHIVES.items() if url.startswith(_REFRAW360) for scene in scenes}


if __name__ == "__main__":
    run(DownloadData)
