"""Restored views that a model goes on training with (Difix3D)."""
