"""Fix: one-step diffusion restoration of degraded views. Knows images and files, nothing of gaussians."""
