"""The nerfstudio side: model, datamanager and pipeline. Thin, because everything else is usable without it."""
