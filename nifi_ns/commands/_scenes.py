"""Text description of a scene file for `ns-nifi-compress` and the report."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nifi_ns.compress import SceneInfo


def describe(scene: "SceneInfo") -> str:
    """Return lines with the number of gaussians and the bytes of each stream."""
    from nifi_ns.files import format_size

    lines = [f"{scene.count:,} gaussians, SH degree {scene.sh_degree}, version {scene.version}"]
    if scene.antialiased:
        lines[0] += ", antialiased"
    for stream, size in (*scene.sizes.items(), ("all", scene.size)):
        lines.append(f"{stream:<10} {format_size(size):>8} {8 * size / scene.count:6.1f} bits per gaussian")
    if len(scene.levels) > 1 or scene.missing:
        cut = f", {scene.missing} truncated" if scene.missing else ""
        steps = ", ".join(f"{level.count:,} in {format_size(level.size)}" for level in scene.levels)
        lines.append(f"gaussians by level of detail: {steps}{cut}")
    return "\n".join(lines)
