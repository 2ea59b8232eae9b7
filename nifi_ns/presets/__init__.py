"""Settings that belong together, by name: a YAML file each, which comes with the package.

`ns-nifi-train --preset sd3` trains with those of `sd3.yaml`; options on the command line override them. A file may name
another preset as its `base`: it only has what it changes of that.
"""

from nifi_ns.presets._loading import preset_names, read_preset, with_values

__all__ = ["preset_names", "read_preset", "with_values"]
