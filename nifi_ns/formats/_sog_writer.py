"""Write PlayCanvas's SOG, version 2; for the specification see `_sog`."""

import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nifi_ns.errors import NifiError
from nifi_ns.files import write_bytes
from nifi_ns.formats._codebook import codebook, palette
from nifi_ns.formats._codes import array, can_hold, morton_order, opacity_bytes, quantize, smallest_three, within_reach
from nifi_ns.formats._sog import LARGEST_QUAT, WIDTH
from nifi_ns.splats import Splats

_MEANS_LOW = "means_l.webp"


def save(path: Path, splats: Splats, *, antialiased: bool = False) -> None:
    """Write a `.sog`, or its unzipped files beside a `meta.json`, in Morton order.

    SH above degree 0 become a palette of at most 65,536 entries. With no more gaussians than that, each has its own.

    Raises:
        NifiError: if almost all gaussians have the same position.
    """
    splats = within_reach(splats)
    files = _encode(splats[morton_order(splats.means)], antialiased)
    if not can_hold(len(files[_MEANS_LOW]), len(splats)):
        raise NifiError(f"cannot write {path}: almost all of the {len(splats)} gaussians have the same position")
    if path.suffix.lower() != ".sog":
        for name, data in files.items():  # meta.json comes last: without it readers see no scene
            write_bytes(path.parent / name, data)
        return
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as bundle:
        for name, data in files.items():
            # ZipInfo: a fixed time stamp, so that equal scenes give equal files
            bundle.writestr(zipfile.ZipInfo(name), data)
    write_bytes(path, archive.getvalue())


def _encode(splats: Splats, antialiased: bool) -> dict[str, bytes]:
    """Return the files of an unzipped SOG, `meta.json` last."""
    count = len(splats)
    width = 4 * math.ceil(math.sqrt(count) / 4)
    files: dict[str, bytes] = {}

    def write(name: str, codes: NDArray, width: int = width) -> str:
        rows = 4 * math.ceil(len(codes) / width / 4)
        image = np.zeros((rows * width, 4), np.uint8)
        image[:, 3] = 255
        image[: len(codes), : codes.shape[1]] = codes
        files[name] = _webp(image.reshape(rows, width, 4))
        return name

    means = array(splats.means).astype(np.float64)
    means = np.sign(means) * np.log1p(np.abs(means))
    low, high = means.min(axis=0), means.max(axis=0)
    codes = quantize((means - low) / np.maximum(high - low, 1e-30), 65535)
    largest, others = smallest_three(array(splats.quats))
    quats = np.concatenate([quantize(others * np.sqrt(0.5) + 0.5), largest[:, None] + LARGEST_QUAT], axis=1)
    scale_table, scales = codebook(splats.scales)
    color_table, colors = codebook(splats.sh[:, 0])
    colors = np.concatenate([colors, opacity_bytes(array(splats.opacities))[:, None]], axis=1)
    meta: dict[str, Any] = {
        "version": 2,
        "asset": {"generator": "nifi-ns"},
        "count": count,
        **({"model": "antialiased"} if antialiased else {}),
        "means": {
            "mins": low.tolist(),
            "maxs": high.tolist(),
            "files": [write(_MEANS_LOW, codes & 255), write("means_u.webp", codes >> 8)],
        },
        "scales": {"codebook": _numbers(scale_table), "files": [write("scales.webp", scales)]},
        "quats": {"files": [write("quats.webp", quats)]},
        "sh0": {"codebook": _numbers(color_table), "files": [write("sh0.webp", colors)]},
    }
    if splats.sh_degree > 0:
        entries, labels = palette(splats.sh[:, 1:].flatten(1))
        table, centroids = codebook(entries)
        centroids = centroids.reshape(-1, 3)
        coefficients = splats.sh.shape[1] - 1
        names = [
            write("shN_centroids.webp", centroids, WIDTH * coefficients),
            write("shN_labels.webp", np.stack([labels & 255, labels >> 8, 0 * labels], axis=1)),
        ]
        meta["shN"] = {"count": len(entries), "bands": splats.sh_degree, "codebook": _numbers(table), "files": names}
    return {**files, "meta.json": json.dumps(meta, separators=(",", ":")).encode()}


def _numbers(table: NDArray[np.float32]) -> list[float]:
    """Return a codebook as numbers for JSON, with the precision of float32."""
    return [float(f"{value:.9g}") for value in table]


def _webp(image: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    # exact: keep the colours of transparent pixels, which hold values here
    Image.fromarray(image).save(stream, "WEBP", lossless=True, exact=True, quality=80)
    return stream.getvalue()
