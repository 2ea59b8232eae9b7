"""Training logs: losses as CSV, JSON and TensorBoard events, and before | after | photo images."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nifi_ns.files import write_text
from nifi_ns.media import write_picture


class TrainingLog:
    """Scalars by step. TensorBoard events are written at once, `losses.csv` and `losses.json` at each `flush`."""

    def __init__(self, directory: Path | str, first_step: int = 0):
        """Continue the log in `directory` from `first_step`, dropping later rows."""
        from torch.utils.tensorboard.writer import SummaryWriter

        self._directory = Path(directory)
        self._rows: list[dict[str, float]] = []
        earlier = self._directory / "losses.json"
        if first_step > 0 and earlier.is_file():
            self._rows = [row for row in json.loads(earlier.read_text()) if row["step"] <= first_step]
        self._writer = SummaryWriter(str(self._directory), purge_step=first_step + 1 if first_step else None)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row of losses."""
        self._rows.append({"step": step, **values})
        self.add_scalars(step, values)

    def add_scalars(self, step: int, values: Mapping[str, float], prefix: str = "train") -> None:
        """Add scalars to TensorBoard only."""
        for name, value in values.items():
            self._writer.add_scalar(f"{prefix}/{name}", value, step)

    def add_image(self, step: int, image: Tensor, path: Path) -> None:
        """Write an image [H, W, 3] in [0, 1] to `path` (PNG) and TensorBoard."""
        write_picture(path, image)
        self._writer.add_image("before | after | photo", image, step, dataformats="HWC")

    def flush(self) -> None:
        """Write the CSV, JSON and event files."""
        columns = list(dict.fromkeys(key for row in self._rows for key in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self._directory / "losses.csv", text.getvalue())
        write_text(self._directory / "losses.json", json.dumps(self._rows) + "\n")
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the files."""
        self.flush()
        self._writer.close()


def comparison_grid(rows: Sequence[Sequence[Tensor]], gap: int = 4) -> Tensor:
    """Return rows of [H, W, 3] images of any sizes as one image [H', W', 3] with white gaps."""
    padded = [[_pad(image.detach().float().cpu().clamp(0, 1), gap) for image in row] for row in rows]
    height = max(image.shape[0] for row in padded for image in row)
    width = max(image.shape[1] for row in padded for image in row)

    def cell(image: Tensor) -> Tensor:
        canvas = torch.ones(height, width, 3)
        canvas[: image.shape[0], : image.shape[1]] = image
        return canvas

    return torch.cat([torch.cat([cell(image) for image in row], dim=1) for row in padded], dim=0)


def _pad(image: Tensor, gap: int) -> Tensor:
    canvas = torch.ones(image.shape[0] + gap, image.shape[1] + gap, 3)
    canvas[: image.shape[0], : image.shape[1]] = image
    return canvas
