"""`ns-nifi-pairs`: degraded views beside the photos, as folders a restorer can be trained on."""

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
    """Write what scene files render to beside the photos. Pairs that are there and current stay."""

    configs: Positional[tuple[Path, ...]]
    """The config.yml of runs, or of scene files that ns-nifi-compress made of them."""
    pairs: Annotated[RunOptions, OmitArgPrefixes] = field(default_factory=RunOptions)
    """What to write."""

    def main(self) -> None:
        """Write what is missing or no longer current."""
        if not self.configs:
            raise NifiError("give the config.yml of one or more runs")
        if absent := [path for path in self.configs if not path.is_file()]:
            raise NifiError(f"no such config: {absent[0]}")
        _tell(folder for config in self.configs for folder in write_run(config, self.pairs))


@dataclass(kw_only=True)
class Jobs:
    """Write the pairs of many runs, each in a process of its own; one that fails does not end the others.

    OUTPUT_DIR/jobs_*.json lists what is done, which is not done again until its scene file or checkpoint changes.
    """

    file: Positional[Path]
    """A text file with a config.yml a line."""
    part: str = "1/1"
    """K/N: only every N-th run, from the K-th on, for N machines that share the list and OUTPUT_DIR."""
    pairs: Annotated[RunOptions, OmitArgPrefixes] = field(default_factory=RunOptions)
    """What to write."""

    def main(self) -> None:
        """Run every job that is not done."""
        run_jobs(read_jobs(self.file, self.part), self.pairs, self.part)


@dataclass(kw_only=True)
class Proxy:
    """Degrade photos directly, where there are no splats yet."""

    photos: Positional[tuple[Path, ...]]
    """Folders of photos, or captures, with images/."""
    output_dir: Path = Path("pairs")
    """Pairs go to OUTPUT_DIR/<folder>/rate_proxy-<strength>/{train,test}/{clean,degraded}."""
    degradation: Annotated[ProxySettings, OmitArgPrefixes] = field(default_factory=ProxySettings)
    """How to degrade."""

    def main(self) -> None:
        """Write what is missing or no longer current."""
        from nifi_ns.commands._proxy import write_proxies

        if not self.photos:
            raise NifiError("give one or more folders of photos")
        _tell(write_proxies(self.photos, self.output_dir, self.degradation))


@dataclass(kw_only=True)
class Pack:
    """Write folders of pairs as WebDataset shards: few large files are faster to copy, and to read over a network."""

    pairs: Positional[tuple[Path, ...]]
    """Folders of pairs."""
    output_dir: Path = Path("shards")
    """Shards are OUTPUT_DIR/pairs-000000.tar and on."""
    shard_size: str = "500MB"
    """About how large a shard is."""

    def main(self) -> None:
        """Write the shards, unless there are some."""
        from nifi_ns.files import parse_size
        from nifi_ns.pairs import find_pair_folders, write_shards

        if not self.pairs:
            raise NifiError("give one or more folders of pairs")
        size = parse_size(self.shard_size)
        if there := next(self.output_dir.glob("*.tar"), None):
            raise NifiError(f"{there} is there already: give another --output-dir, or remove the shards in it")
        for shard in write_shards(find_pair_folders(self.pairs), self.output_dir, size):
            print(f"{shard}: {shard.stat().st_size / 1e6:.1f} MB")


Pairs = (
    Annotated[RunPairs, subcommand("run")]
    | Annotated[Jobs, subcommand("jobs")]
    | Annotated[Proxy, subcommand("proxy")]
    | Annotated[Pack, subcommand("pack")]
)


def _tell(folders: Iterable[PairFolder]) -> None:
    from rich.console import Console

    for folder in folders:
        counts = " + ".join(f"{len(folder.splits[split])} {split}" for split in ("train", "test"))
        Console().print(f"{folder.label}: {counts} pairs in {folder.root}")


def entrypoint() -> None:
    """`ns-nifi-pairs`."""
    run(Pairs, description="Write (degraded view, photo) pairs, one folder for each scene and rate.")


if __name__ == "__main__":  # xargs python -m nifi_ns.commands.pairs run
    entrypoint()
