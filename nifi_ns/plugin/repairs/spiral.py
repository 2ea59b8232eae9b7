"""`ns-render spiral` rejects datamanagers of full images, by an assertion on three classes.

Upstream: nerfstudio issue 3023. `ns-render` imports these classes after it has loaded plugins, so a pipeline installs
this repair.
"""

import sys

from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager
from nerfstudio.data.datamanagers.full_images_datamanager import FullImageDatamanager


def install() -> None:
    """Make a running `ns-render spiral` accept a `FullImageDatamanager` with an `eval_dataloader`, like ours."""
    render = sys.modules.get("nerfstudio.scripts.render")
    if render is not None:
        # isinstance accepts nested tuples
        vars(render)["VanillaDataManager"] = (VanillaDataManager, FullImageDatamanager)
