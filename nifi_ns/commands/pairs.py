"""`ns-nifi-pairs`: write pairs of degraded views and photos to train a restorer on."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, subcommand

from nifi_ns.commands._cli import run
from nifi_ns.commands._jobs import RunOptions, read_jobs, run_jobs, write_run
from nifi_ns.errors import NifiError
from nifi_ns.pairs import PairFolder
from nifi_ns.proxy import ProxySettings


@dataclass(kw_only=True)
class RunPairs:
    """Write pairs of scene file renders and photos. Current pairs are kept."""

    configs: Positional[tuple[Path, ...]]
    """The config.yml of runs, or of scene files written by ns-nifi-compress."""
    pairs: Annotated[RunOptions, OmitArgPrefixes] = field(default_factory=RunOptions)
    """Which pairs to write."""

    def main(self) -> None:
        """Write pairs that are missing or not current."""
        if not self.configs:
            raise NifiError("give the config.yml of one or more runs")
        if absent := [path for path in self.configs if not path.is_file()]:
            raise NifiError(f"no such config: {absent[0]}")
        _print_counts(folder for config in self.configs for folder in write_run(config, self.pairs))


@dataclass(kw_only=True)
class Jobs:
    """Write the pairs of many runs, each in a separate process. If one fails, the others continue.

    OUTPUT_DIR/jobs_*.json lists finished jobs. They are repeated only if their scene file or checkpoint changes.
    """

    file: Positional[Path]
    """A text file with one config.yml per line."""
    part: str = "1/1"
    """K/N: only every N-th run from the K-th on, to share the list and OUTPUT_DIR between N machines."""
    pairs: Annotated[RunOptions, OmitArgPrefixes] = field(default_factory=RunOptions)
    """Which pairs to write."""

    def main(self) -> None:
        """Run every unfinished job."""
        run_jobs(read_jobs(self.file, self.part), self.pairs, self.part)


@dataclass(kw_only=True)
class Proxy:
    """Write pairs of directly degraded photos, without splats."""

    photos: Positional[tuple[Path, ...]]
    """Folders of photos, or captures with images/."""
    output_dir: Path = Path("pairs")
    """Pairs go to OUTPUT_DIR/<folder>/rate_proxy-<strength>/{train,test}/{clean,degraded}."""
    degradation: Annotated[ProxySettings, OmitArgPrefixes] = field(default_factory=ProxySettings)
    """How to degrade."""

    def main(self) -> None:
        """Write pairs that are missing or not current."""
        from nifi_ns.commands._proxy import write_proxies

        if not self.photos:
            raise NifiError("give one or more folders of photos")
        _print_counts(write_proxies(self.photos, self.output_dir, self.degradation))


@dataclass(kw_only=True)
class Pack:
    """Write folders of pairs as WebDataset shards. A few large files are faster to copy and to read over a network."""

    pairs: Positional[tuple[Path, ...]]
    """Folders of pairs."""
    output_dir: Path = Path("shards")
    """Shards are OUTPUT_DIR/pairs-000000.tar and so on."""
    shard_size: str = "500MB"
    """Approximate size of a shard."""

    def main(self) -> None:
        """Write the shards, unless the folder already has some."""
        from nifi_ns.files import parse_size
        from nifi_ns.pairs import find_pair_folders, write_shards

        if not self.pairs:
            raise NifiError("give one or more folders of pairs")
        size = parse_size(self.shard_size)
        if there := next(self.output_dir.glob("*.tar"), None):
            raise NifiError(f"{there} already exists: give another --output-dir, or remove the shards in it")
        for shard in write_shards(find_pair_folders(self.pairs), self.output_dir, size):
            print(f"{shard}: {shard.stat().st_size / 1e6:.1f} MB")


Pairs = (
    Annotated[RunPairs, subcommand("run")]
    | Annotated[Jobs, subcommand("jobs")]
    | Annotated[Proxy, subcommand("proxy")]
    | Annotated[Pack, subcommand("pack")]
)


def _print_counts(folders: Iterable[PairFolder]) -> None:
    from rich.console import Console

    for folder in folders:
        counts = " + ".join(f"{len(folder.splits[split])} {split}" for split in ("train", "test"))
        Console().print(f"{folder.label}: {counts} pairs in {folder.root}")


def entrypoint() -> None:
    """Run `ns-nifi-pairs`."""
    run(Pairs, description="Write (degraded view, photo) pairs, one folder for each scene and rate.")


if __name__ == "__main__":  # xargs python -m nifi_ns.commands.pairs run
    entrypoint()
