"""`ns-nifi-pairs`: degraded views beside the photos, as folders a restorer can be trained on."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from nifi_ns.commands._cli import run
from nifi_ns.errors import NifiError
from nifi_ns.proxy import ProxySettings
from nifi_ns.restore.pairs import PairFolder


@dataclass
class Pairs:
    """Write (degraded view, photo) pairs of runs or of photos alone, one folder for each scene and rate.

    Either --load-config or --proxy says of what.
    """

    load_config: tuple[Path, ...] = ()
    """The config.yml of one or more runs, or of scene files that ns-nifi-compress made of them: what the scene files
    render to beside the photos."""
    prune_levels: int | None = None
    """With --load-config, in place of what the scene files render to: so many levels of the uncompressed splats, from
    4,096 gaussians on by equal factors, the least important ones away, without fine-tuning."""
    proxy: tuple[Path, ...] = ()
    """Where there are no splats yet: folders of photos (or captures, with images/), degraded directly."""
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

        if bool(self.load_config) == bool(self.proxy):
            raise NifiError("give either --load-config CONFIG... or --proxy PHOTOS...")
        if self.proxy and (self.prune_levels is not None or not self.referenced):
            raise NifiError("--prune-levels and --no-referenced go with --load-config, not with --proxy")
        if self.load_config and self.settings != ProxySettings():
            raise NifiError("--strengths, --degradations, --max-side and --seed go with --proxy")
        if absent := [path for path in self.load_config if not path.is_file()]:
            raise NifiError(f"no such config: {absent[0]}")
        for folder in self._write():
            counts = " + ".join(f"{len(folder.splits[split])} {split}" for split in ("train", "test"))
            Console().print(f"{folder.label}: {counts} pairs in {folder.root}")

    def _write(self) -> Iterator[PairFolder]:
        if self.proxy:
            from nifi_ns.commands._proxy import write_proxies

            yield from write_proxies(self.proxy, self.output_dir, self.settings)
        else:
            from nifi_ns.plugin.pairs import write_pairs, write_pruned_pairs

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
