"""Checkpoints that torch >= 2.6 refuses to load because of one numpy scalar.

`torch.load` became `weights_only=True` by default; splatfacto's learning-rate schedule leaves a numpy float64 in the
optimizer's state, so `ns-eval`, `ns-render`, `ns-viewer`, `ns-export` and resuming fail with an UnpicklingError.
Declaring the scalar's types safe keeps the safe loader. Upstream: nerfstudio issue 3683,
PR 3702.
"""

import numpy as np
import torch


def install() -> None:
    """Allow numpy's scalars, and nothing that can run code, in checkpoints."""
    add_safe_globals = getattr(torch.serialization, "add_safe_globals", None)
    if add_safe_globals is None:  # torch < 2.5 has no safe loader by default
        return
    dtypes = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
    add_safe_globals([np.dtype, *dtypes])
    # the function's module was renamed in numpy 2: a checkpoint names it as the numpy that wrote it did
    scalar = np.array(0.0)[()].__reduce__()[0]
    add_safe_globals([(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")])
