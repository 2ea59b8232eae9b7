"""The codec needs numpy, numba and torch, and none of the other dependencies."""

import subprocess
import sys

import pytest

BLOCKED = (
    *("nerfstudio", "gsplat", "diffusers", "peft", "transformers", "accelerate", "safetensors", "huggingface_hub"),
    *("scipy", "rich", "tyro", "viser", "PIL", "plyfile", "psutil", "matplotlib", "cv2", "av", "torchvision"),
    *("torchmetrics", "lpips", "piq", "pandas", "zstandard"),
)
PROGRAM = f"""
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ImportError(f"{{name}} is not installed")

sys.meta_path.insert(0, Block())
{{imports}}
import torch
from nifi_ns.splats import Splats

splats = Splats(torch.rand(70, 3), torch.rand(70, 3) - 4, torch.rand(70, 4), torch.rand(70), torch.rand(70, 4, 3))
data = encode(splats, BITS["mid"])
assert len(decode(data)) == info(data).count == 70
"""


@pytest.mark.parametrize("package", ["nifi_ns.compress.codec", "nifi_ns.compress"])
def test_scene_files_are_written_and_read_with_only_numpy_numba_and_torch(package: str):
    imports = f"from {package} import BITS, decode, encode, info"
    program = PROGRAM.replace("{imports}", imports)
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
