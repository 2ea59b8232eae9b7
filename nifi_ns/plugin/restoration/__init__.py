"""Restored outputs of a nerfstudio model, and the panel of the viewer that chooses them."""
