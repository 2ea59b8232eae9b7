"""torch >= 2.6 refuses to load nerfstudio's checkpoints because of one numpy scalar.

`torch.load` now has `weights_only=True` by default. Splatfacto's learning-rate schedule leaves a numpy float64 in the
optimiser's state, so `ns-eval`, `ns-render`, `ns-viewer`, `ns-export` and resuming fail with an UnpicklingError. The
repair declares the scalar's types safe and keeps the safe loader. Upstream: nerfstudio issue 3683, PR 3702.
"""

import numpy as np
import torch


def install() -> None:
    """Allow numpy scalars in checkpoints, but nothing that can run code."""
    add_safe_globals = getattr(torch.serialization, "add_safe_globals", None)
    if add_safe_globals is None:  # torch < 2.5 has no safe loader by default
        return
    dtypes = [type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")]
    add_safe_globals([np.dtype, *dtypes])
    # numpy 2 renamed the function's module; a checkpoint has the name from the numpy that wrote it
    scalar = np.array(0.0)[()].__reduce__()[0]
    add_safe_globals([(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")])
