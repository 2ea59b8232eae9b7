"""What is in a scene file, as text: for `ns-nifi-compress` and for the report."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nifi_ns.compress import SceneInfo


def describe(scene: "SceneInfo") -> str:
    """Lines that say how many gaussians there are, and what takes how many bytes."""
    from nifi_ns.files import format_size

    lines = [f"{scene.count:,} gaussians, SH degree {scene.sh_degree}, version {scene.version}"]
    if scene.antialiased:
        lines[0] += ", drawn antialiased"
    for stream, size in (*scene.sizes.items(), ("all", scene.size)):
        lines.append(f"{stream:<10} {format_size(size):>8} {8 * size / scene.count:6.1f} bits a gaussian")
    if len(scene.levels) > 1 or scene.missing:
        cut = f", {scene.missing} cut off" if scene.missing else ""
        steps = ", ".join(f"{level.count:,} in {format_size(level.size)}" for level in scene.levels)
        lines.append(f"gaussians by level: {steps}{cut}")
    return "\n".join(lines)
