"""The nerfstudio integration: models, datamanagers and pipelines. It is thin; everything else works without it."""
