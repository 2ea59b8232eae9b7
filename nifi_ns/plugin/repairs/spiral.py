"""`ns-render spiral` for datamanagers of full images, which it rejects by an assertion on three class names.

Upstream: nerfstudio issue 3023. `ns-render` loads plugins before it defines what to assert, so that this comes with a
pipeline.
"""

import sys

from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager


def install() -> None:
    """Let a running `ns-render spiral` accept a `FullImageDatamanager`; it needs an `eval_dataloader`, as ours has."""
    render = sys.modules.get("nerfstudio.scripts.render")
    if render is not None:
        # isinstance takes nested tuples
        vars(render)["VanillaDataManager"] = (VanillaDataManager, FullImageDatamanager)
