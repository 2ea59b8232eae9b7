"""`ns-nifi-pairs`: degraded views beside the photos, as folders a restorer can be trained on."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from nifi_ns.commands._cli import run
from nifi_ns.errors import NifiError
from nifi_ns.pairs import PairFolder
from nifi_ns.proxy import ProxySettings


@dataclass
class Pairs:
    """Write (degraded view, photo) pairs of runs or of photos alone, one folder for each scene and rate.

    One of --load-config, --jobs and --proxy says of what; --pack puts such folders into few large files.
    """

    load_config: tuple[Path, ...] = ()
    """The config.yml of one or more runs, or of scene files that ns-nifi-compress made of them: what the scene files
    render to beside the photos."""
    prune_levels: int | None = None
    """With --load-config, in place of what the scene files render to: so many levels of the uncompressed splats, from
    4,096 gaussians on by equal factors, the least important ones away, without fine-tuning."""
    proxy: tuple[Path, ...] = ()
    """Where there are no splats yet: folders of photos (or captures, with images/), degraded directly."""
    jobs: Path | None = None
    """In place of --load-config, for many: a text file of config.yml, one a line. Each is a job in a process of its
    own, and one that fails does not end the others. OUTPUT_DIR/jobs_*.json lists what is done, which is not done again
    until its scene file or checkpoint changes."""
    part: str = "1/1"
    """With --jobs, K/N: every N-th of them, from the K-th on, for N machines that share the list and OUTPUT_DIR."""
    pack: tuple[Path, ...] = ()
    """Folders of pairs to write as WebDataset shards, OUTPUT_DIR/pairs-000000.tar and on: few large files are faster
    to copy, and to read over a network, than many small ones."""
    shard_size: str = "500MB"
    """With --pack, about how large a shard is."""
    output_dir: Path = Path("pairs")
    """Pairs go to OUTPUT_DIR/<scene>/rate_<rate>/{train,test}/{clean,degraded,referenced}; the rate is a size,
    pruned-<gaussians> or proxy-<strength>."""
    referenced: bool = True
    """With --load-config, also write each view restored by reference photos, for restorers trained with --inputs
    referenced."""
    settings: Annotated[ProxySettings, tyro.conf.OmitArgPrefixes] = field(default_factory=ProxySettings)
    """How --proxy degrades photos."""

    def main(self) -> None:
        """Write what is missing or no longer current; what is there stays."""
        from rich.console import Console

        if sum(map(bool, (self.load_config, self.jobs, self.proxy, self.pack))) != 1:
            raise NifiError("give one of --load-config CONFIG..., --jobs FILE, --proxy PHOTOS... and --pack PAIRS...")
        if (self.proxy or self.pack) and (self.prune_levels is not None or not self.referenced):
            raise NifiError("--prune-levels and --no-referenced go with --load-config or --jobs")
        if not self.proxy and self.settings != ProxySettings():
            raise NifiError("--strengths, --degradations, --max-side and --seed go with --proxy")
        if self.part != "1/1" and self.jobs is None:
            raise NifiError("--part goes with --jobs")
        if absent := [path for path in self.load_config if not path.is_file()]:
            raise NifiError(f"no such config: {absent[0]}")
        if self.jobs is not None:
            from nifi_ns.commands._jobs import Options, read_jobs, run_jobs

            jobs = read_jobs(self.jobs, self.part)
            return run_jobs(jobs, Options(self.output_dir, self.prune_levels, self.referenced), self.part)
        if self.pack:
            return self._pack()
        for folder in self._write():
            counts = " + ".join(f"{len(folder.splits[split])} {split}" for split in ("train", "test"))
            Console().print(f"{folder.label}: {counts} pairs in {folder.root}")

    def _pack(self) -> None:
        from rich.console import Console

        from nifi_ns.files import parse_size
        from nifi_ns.pairs import find_pair_folders, write_shards

        size = parse_size(self.shard_size)
        if there := next(self.output_dir.glob("*.tar"), None):
            raise NifiError(f"{there} is there already: give another --output-dir, or remove the shards in it")
        for shard in write_shards(find_pair_folders(self.pack), self.output_dir, size):
            Console().print(f"{shard}: {shard.stat().st_size / 1e6:.1f} MB")

    def _write(self) -> Iterator[PairFolder]:
        if self.proxy:
            from nifi_ns.commands._proxy import write_proxies

            yield from write_proxies(self.proxy, self.output_dir, self.settings)
        else:
            from nifi_ns.plugin.run_pairs import write_pairs, write_pruned_pairs

            for config in self.load_config:
                if self.prune_levels is None:
                    yield write_pairs(config, self.output_dir, referenced=self.referenced)
                else:
                    yield from write_pruned_pairs(
                        config, self.prune_levels, self.output_dir, referenced=self.referenced
                    )


def entrypoint() -> None:
    """`ns-nifi-pairs`."""
    run(Pairs)


if __name__ == "__main__":  # xargs python -m nifi_ns.commands.pairs
    entrypoint()
