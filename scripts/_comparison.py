"""The demo's comparison image: a row per held-out view; columns photo, uncompressed, compressed and restored."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from nifi_ns.files import atomic_path, format_size
from nifi_ns.results import Row
from nifi_ns.views import evenly_spaced

VARIANTS = {
    "uncompressed": "uncompressed",
    "compressed": "compressed",
    "restored": "restored",
    "referenced": "restored with references",
}
VIEWS = 3
LARGEST = 420  # pixels of a picture's longer side
CAPTION = 34


def save_comparison(path: Path, rows: Sequence[Row], pictures: Path, photos: Path) -> None:
    """Draw a few views at the smallest rate of `rows`, with size and metrics of each variant.

    Args:
        path: the PNG to write.
        rows: results of `ns-nifi-eval`.
        pictures: the `--images-dir` of `ns-nifi-eval`.
        photos: the folder of the held-out photos, undistorted like the pictures.
    """
    means = {r.variant: r for r in rows if r.image is None and r.rate == _smallest_rate(rows)}
    shown = [variant for variant in VARIANTS if variant in means]
    compressed = means["compressed"]
    folder = pictures / f"{compressed.scene}_{compressed.rate}"
    names = sorted({r.image for r in rows if r.image is not None})
    names = [names[i] for i in evenly_spaced(VIEWS, len(names))]
    table = []
    for name in names:
        tiles = [Image.open(folder / variant / f"{name}.png").convert("RGB") for variant in shown]
        table.append([Image.open(photos / f"{name}.png").convert("RGB"), *tiles])
    captions = ["photo", *(_caption(means[variant]) for variant in shown)]
    with atomic_path(path) as temporary:
        _draw(table, captions).save(temporary)


def _smallest_rate(rows: Sequence[Row]) -> str | None:
    return min((r for r in rows if r.variant == "compressed"), key=lambda r: r.bytes or 0).rate


def _caption(row: Row) -> str:
    scores = [f"{row.metrics['psnr']:.2f} dB", f"HaarPSI {row.metrics['haarpsi']:.3f}"]
    if row.metrics["lpips"] is not None:
        scores.append(f"LPIPS {row.metrics['lpips']:.3f}")
    return f"{VARIANTS[row.variant]}, {format_size(row.bytes or 0)}\n{', '.join(scores)}"


def _draw(table: Sequence[Sequence[Image.Image]], captions: Sequence[str]) -> Image.Image:
    width, height = table[0][0].size
    scale = min(LARGEST / max(width, height), 2)
    width, height, gap = round(width * scale), round(height * scale), 4
    sheet = Image.new(
        "RGB", ((width + gap) * len(captions) - gap, CAPTION + (height + gap) * len(table) - gap), "white"
    )
    pen = ImageDraw.Draw(sheet)
    for column, caption in enumerate(captions):
        pen.multiline_text((column * (width + gap) + 2, 2), caption, "black", ImageFont.load_default(13), spacing=2)
        for row, tiles in enumerate(table):
            tile = tiles[column].resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(tile, (column * (width + gap), CAPTION + row * (height + gap)))
    return sheet
