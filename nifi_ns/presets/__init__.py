"""Settings that belong together, by name: a YAML file each, which comes with the package.

`ns-nifi-train --preset sd3` trains with those of `sd3.yaml`; options on the command line override them.
"""

from nifi_ns.presets._loading import load_preset, preset_names

__all__ = ["load_preset", "preset_names"]
