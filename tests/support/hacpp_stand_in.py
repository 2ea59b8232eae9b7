"""A stand-in for a checkout of HAC++ and its environment: same arguments, files and log lines, no training.

How it behaves is said by the file `behaviour` in it: fail, crash, garbage, parts, stale, no-renders, no-photo, size,
hang, deaf; `no-cuda` and `no-module` are for the checks.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from nifi_ns.compress.external import HacppSettings

SIZES = {"anchor": 3000, "feat": 41000, "scaling": 9000, "offsets": 12000, "hash": 4000, "masks": 2500}
MLPS = 162_000
BOUNDS = 900
BYTES = sum(SIZES.values()) + MLPS + 2 * BOUNDS

_BEHAVES = "from pathlib import Path\nbehaviour = Path('behaviour').read_text()\n"
_TORCH = f"""{_BEHAVES}
__version__ = "1.12.1"
class cuda:
    is_available = staticmethod(lambda: behaviour != "no-cuda")
"""
_SCENE = f"""{_BEHAVES}
if behaviour == "no-module":
    raise ModuleNotFoundError("No module named 'simple_knn'")
"""
_TRAIN = f"""
import argparse, json, logging, os, subprocess, sys, time
import arguments, gaussian_renderer, lpips, scene, torch, tqdm, wandb
import numpy as np
from PIL import Image
{_BEHAVES}
SIZES, MLPS, BOUNDS = {SIZES!r}, {MLPS}, {BOUNDS}

def render_sets(args, skip_train=True, skip_test=False):
    for split, count, skip in (("train", 4, skip_train), ("test", 2, skip_test)):
        if skip or behaviour == "no-renders":
            continue
        folder = Path(args.model_path) / split / f"ours_{{args.iterations}}"
        for kind in ("renders", "errors", "gt"):
            (folder / kind).mkdir(parents=True)
        for i in range(count):
            photo = np.full((40, 56, 3), 40 * i + 20, np.uint8)
            render = photo + 4
            if behaviour == "size" and i == 1:
                render = render[:-1]
            Image.fromarray(render).save(folder / "renders" / f"{{i:05d}}.png")
            Image.fromarray(photo).save(folder / "errors" / f"{{i:05d}}.png")
            if not (behaviour == "no-photo" and i == 1):
                Image.fromarray(photo).save(folder / "gt" / f"{{i:05d}}.png")

def encode(args):
    folder = Path(args.model_path) / "bitstreams"
    folder.mkdir()
    for name in ("min", "max"):
        (folder / f"x_bound_{{name}}.pkl").write_bytes(bytes(BOUNDS))
    (folder / "xyz_gpcc.npz").write_bytes(bytes(SIZES["anchor"]))
    for name in ("hash", "masks"):
        (folder / f"{{name}}.b").write_bytes(bytes(SIZES[name]))
    for name in ("feat", "scaling", "offsets"):
        half = SIZES[name] // 2
        (folder / f"{{name}}_0_0.b").write_bytes(bytes(half))
        (folder / f"{{name}}_1_0.b").write_bytes(bytes(SIZES[name] - half))
    if behaviour == "stale":
        (folder / "feat_2_0.b").write_bytes(bytes(500))
    sizes = {{**SIZES, "MLPs": MLPS}}
    total = sum(sizes.values()) + 24 + (9000 if behaviour == "parts" else 0)
    parts = ", ".join(f"{{name}} {{round(size / 2**20, 4)}}" for name, size in sizes.items())
    if behaviour == "garbage":
        parts = parts.replace("hash ", "hash nan")
    logging.info(f"\\nEstimated sizes in MB: {{parts}}, Total 0.1")
    logging.info(f"\\nEncoded sizes in MB: {{parts}}, Total {{round(total / 2**20, 4)}}, EncTime 1.25")

parser = argparse.ArgumentParser()
parser.add_argument("-s", dest="source_path")
parser.add_argument("-m", dest="model_path")
parser.add_argument("--images", default="images")
parser.add_argument("--eval", action="store_true")
for name, kind in dict(lod=int, voxel_size=float, update_init_factor=int, iterations=int, lmbda=float,
                       mask_lr_final=float, resolution=int).items():
    parser.add_argument("--" + name, type=kind)
for name in ("test_iterations", "save_iterations"):
    parser.add_argument("--" + name, nargs="+", type=int)
args = parser.parse_args(sys.argv[1:])
Path(args.model_path).mkdir(parents=True)
with open("runs.jsonl", "a") as file:
    file.write(json.dumps(vars(args)) + "\\n")
form = logging.Formatter("%(asctime)s - %(levelname)s: %(message)s")
for handler in (logging.FileHandler(Path(args.model_path) / "outputs.log"), logging.StreamHandler()):
    handler.setFormatter(form)
    logging.getLogger().addHandler(handler)
logging.getLogger().setLevel(logging.INFO)
logging.info("Optimizing " + args.model_path)
if behaviour == "fail":
    raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
for step in range(0, args.iterations + 1, args.iterations // 4):
    bar = f"Training progress: {{100 * step // args.iterations:3d}}%|##   | {{step}}/{{args.iterations}}"
    print(f"\\r{{bar}} [00:01<00:04, 52.1it/s, Loss=0.03{{step}}]", end="", file=sys.stderr)
    if behaviour == "crash" and step:
        encode(args)
        os.kill(os.getpid(), 11)
    if behaviour in ("hang", "deaf") and step:
        if behaviour == "deaf":
            import signal
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "60"])
        Path("pids").write_text(f"{{os.getpid()}} {{child.pid}}")
        time.sleep(60)
print(file=sys.stderr)
logging.info("\\nTraining complete.")
encode(args)
render_sets(args)
logging.info("\\nEvaluating complete.")
"""


def make(folder: Path) -> HacppSettings:
    """A checkout, its python and tmc3 in `folder`/HAC-plus and `folder`/env/bin."""
    root, env = folder / "HAC-plus", folder / "env" / "bin"
    for path in (root, env):
        path.mkdir(parents=True)
    (root / "train.py").write_text(_TRAIN)
    (root / "torch.py").write_text(_TORCH)
    (root / "scene.py").write_text(_SCENE)
    for name in ("arguments", "gaussian_renderer", "lpips", "tqdm", "wandb"):
        (root / f"{name}.py").write_text("")
    (env / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (env / "tmc3").write_text("#!/bin/sh\n")
    for path in env.iterdir():
        path.chmod(0o755)
    behave(HacppSettings(root=root), "")
    return HacppSettings(root=root, python=env / "python", iterations=1000)


def behave(settings: HacppSettings, behaviour: str) -> None:
    """From now on, the stand-in does this."""
    assert settings.root is not None
    (settings.root / "behaviour").write_text(behaviour)


def make_data(folder: Path) -> Path:
    """A COLMAP scene by its files' names."""
    data = folder / "garden"
    for path in (data / "images", data / "sparse" / "0"):
        path.mkdir(parents=True)
    for name in ("cameras", "images", "points3D"):
        (data / "sparse" / "0" / f"{name}.bin").write_bytes(b"")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(data / "images" / "a.png")
    return data
