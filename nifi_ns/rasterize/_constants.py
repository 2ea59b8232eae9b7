"""gsplat's constants, which differ between its versions."""

MAX_ALPHA = 0.999
"""Largest alpha of one gaussian in one pixel (gsplat's main branch: 0.99)."""
MIN_ALPHA = 1 / 255
"""A gaussian with a smaller alpha is not drawn in a pixel."""
MIN_TRANSMITTANCE = 1e-4
"""Blending in a pixel stops before its transmittance falls to this value."""
MAX_EXTENT = 3.33
"""Distance in standard deviations at which a gaussian of opacity 1 falls to `MIN_ALPHA`."""
FRUSTUM_MARGIN = 0.3
"""Width of the margin around the image in which the projection is linearised, as a share of half the field of view.

Points further out are linearised at the edge of the margin.
"""
