"""`ns-nifi-pairs jobs`: write the pairs of many runs as jobs that can be interrupted, restarted and distributed.

Each job is one `ns-nifi-pairs run CONFIG`, so `xargs -n1 -P4`, GNU parallel or Ray can process the list too. A manifest
records which jobs are done and a hash of their inputs.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console

from nifi_ns.errors import CorruptFileError, NifiError
from nifi_ns.files import write_text
from nifi_ns.pairs import PairFolder, is_current


@dataclass(frozen=True)
class RunOptions:
    """Which pairs of a run to write, and where."""

    output_dir: Path = Path("pairs")
    """Pairs go to OUTPUT_DIR/<scene>/rate_<size>/{train,test}/{clean,degraded,referenced}."""
    prune_levels: int | None = None
    """Instead of scene files, render this many pruned levels of the uncompressed splats, without fine-tuning. Levels
    grow from 4,096 gaussians by equal factors and keep the most important ones, as rate_pruned-<gaussians>."""
    referenced: bool = True
    """Also write each view with reference residuals, for restorers trained with --inputs referenced."""


def write_run(config: Path, options: RunOptions) -> Iterator[PairFolder]:
    """Write the pairs of the run or scene file of a config.yml, and yield their folders."""
    from nifi_ns.plugin.run_pairs import write_pairs, write_pruned_pairs

    if options.prune_levels is None:
        yield write_pairs(config, options.output_dir, referenced=options.referenced)
    else:
        yield from write_pruned_pairs(config, options.prune_levels, options.output_dir, referenced=options.referenced)


def read_jobs(path: Path, part: str) -> list[Path]:
    """Read a list of configs, one per line, and return a part such as `3/16`: the third and every 16th after it.

    Raises:
        NifiError: if the list or one of its configs does not exist, or the part is invalid.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise NifiError(f"--part {part}: expected K/N with K from 1 to N, such as 3/16")
    if not path.is_file():
        raise NifiError(f"no such list of jobs: {path}")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    for number, line in enumerate(lines, 1):
        if line and not line.startswith("#") and not Path(line).is_file():
            raise NifiError(f"{path}, line {number}: no such config: {line}")
    configs = list(dict.fromkeys(Path(line) for line in lines if line and not line.startswith("#")))
    return configs[int(match[1]) - 1 :: int(match[2])]


def run_jobs(configs: Sequence[Path], options: RunOptions, part: str) -> None:
    """Write the pairs of each config in a separate process, unless a manifest in the output folder lists it as done.

    A job is done until its config, scene file, checkpoint or pairs change. The manifests of all parts are read. The
    manifest of this part is written after each job.

    Raises:
        NifiError: at the end, if jobs failed.
    """
    console = Console()
    manifest = options.output_dir / f"jobs_{part.replace('/', '_of_')}.json"
    known = {file: _read(file) for file in sorted(options.output_dir.glob("jobs_*.json"))}
    own = known.setdefault(manifest, {})
    failed: dict[Path, str] = {}
    for number, config in enumerate(configs, 1):
        name = f"{number}/{len(configs)} {config}"
        made_of = _made_of(config, options)
        if any(_done(entries.get(str(config)), made_of) for entries in known.values()):
            console.print(f"{name}: already done", highlight=False)
            continue
        start = time.monotonic()
        entry: dict[str, Any] = {"made_of": made_of}
        try:
            made = _in_own_process(config, options)
            for other, before in (item for entries in known.values() for item in entries.items()):
                overwritten = any(made.get(root, mark) != mark for root, mark in before.get("pairs", {}).items())
                if other != str(config) and overwritten:
                    raise NifiError(f"its pairs overwrote those of {other}: give the runs different experiment names")
            entry["pairs"] = made
            entry["seconds"] = round(time.monotonic() - start, 1)
            console.print(f"{name}: {len(entry['pairs'])} folders in {entry['seconds']} s", highlight=False)
        except NifiError as error:
            failed[config] = entry["error"] = str(error)
            console.print(f"{name}: {error}", style="red", highlight=False)
        own[str(config)] = entry
        write_text(manifest, json.dumps(own, indent=1) + "\n")
    if failed:
        config, error = next(iter(failed.items()))
        which = f"{len(failed)} of {len(configs)} jobs failed; run the command again to retry them (see {manifest})"
        raise NifiError(f"{which}, the first: {config}: {error}")


def _in_own_process(config: Path, options: RunOptions) -> dict[str, str]:
    """Run `_make` in a new process, to release its memory and survive its crash."""
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(_make, config, options).result()
    except NifiError:
        raise
    except BrokenProcessPool as error:
        raise NifiError("its process was killed (out of memory?)") from error
    except (Exception, SystemExit) as error:  # the other jobs continue after any error
        raise NifiError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _make(config: Path, options: RunOptions) -> dict[str, str]:
    """Write the pairs unless they are current, and return fingerprints by folder."""
    return {str(folder.root): folder.fingerprint for folder in write_run(config, options)}


def _made_of(config: Path, options: RunOptions) -> str:
    """Return a hash of the inputs of a job's pairs, without opening the run."""
    from nifi_ns.plugin.run_pairs import VERSION

    runs = (config.parent, *config.parents[2:3])  # the config may be the run's or beside a scene file
    files = [config, config.with_name("scene.nifi"), *sorted(config.parent.glob("nifi/*/scene.nifi"))]
    files += [file for run in runs for file in sorted(run.glob("nerfstudio_models/*.ckpt"))]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return hashlib.sha256(repr((VERSION, asdict(options), stats)).encode()).hexdigest()


def _done(entry: dict[str, Any] | None, made_of: str) -> bool:
    if entry is None or entry["made_of"] != made_of:
        return False
    return bool(entry.get("pairs")) and all(is_current(root, mark) for root, mark in entry["pairs"].items())


def _read(manifest: Path) -> dict[str, dict[str, Any]]:
    try:
        entries = json.loads(manifest.read_text())
        assert all("made_of" in entry for entry in entries.values())
        return entries
    except (ValueError, AssertionError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{manifest} is not a manifest of jobs: remove it and start again") from error
