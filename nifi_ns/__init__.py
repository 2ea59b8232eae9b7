"""NiFi for Nerfstudio: Nix compresses gaussian splats, Fix repairs what they render."""

__version__ = "0.1.0"
