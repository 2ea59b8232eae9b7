"""`ns-nifi-pairs`: what scene files render to beside the photos, as folders a restorer can be trained on."""

from dataclasses import dataclass
from pathlib import Path

from nifi_ns.commands._cli import run


@dataclass
class Pairs:
    """Write (compressed render, photo) pairs of runs, one folder for each scene and rate."""

    load_config: tuple[Path, ...]
    """The config.yml of one or more runs, or of scene files that ns-nifi-compress made of them."""
    output_dir: Path = Path("pairs")
    """Pairs go to OUTPUT_DIR/<scene>/rate_<size>/{train,test}/{clean,degraded,referenced}."""
    referenced: bool = True
    """Also write each view restored by reference photos, for restorers trained with --inputs referenced."""

    def main(self) -> None:
        """Write what is missing or no longer current; what is there stays."""
        from rich.console import Console

        from nifi_ns.plugin.pairs import write_pairs

        for config in self.load_config:
            folder = write_pairs(config, self.output_dir, referenced=self.referenced)
            counts = " + ".join(f"{len(folder.splits[split])} {split}" for split in ("train", "test"))
            Console().print(f"{folder.label}: {counts} pairs in {folder.root}")


def entrypoint() -> None:
    """`ns-nifi-pairs`."""
    run(Pairs)
