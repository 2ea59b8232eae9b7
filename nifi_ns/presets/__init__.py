"""Presets: named settings in YAML files that come with the package.

`ns-nifi-train --preset sd3` trains with the settings of `sd3.yaml`. Options on the command line override them. A file
may name another preset as its `base` and contain only the settings that differ.
"""

from nifi_ns.presets._loading import preset_names, read_preset, with_values

__all__ = ["preset_names", "read_preset", "with_values"]
