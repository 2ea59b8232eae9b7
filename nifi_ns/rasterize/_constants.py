"""gsplat's numbers. They differ between its versions, so each has a name here."""

MAX_ALPHA = 0.999
"""No gaussian covers more of a pixel than this (gsplat's main branch: 0.99)."""
MIN_ALPHA = 1 / 255
"""A gaussian that covers less of a pixel is not drawn there."""
MIN_TRANSMITTANCE = 1e-4
"""A pixel is finished before its transmittance falls to this."""
MAX_EXTENT = 3.33
"""Standard deviations at which a gaussian of opacity 1 falls to `MIN_ALPHA`."""
FRUSTUM_MARGIN = 0.3
"""Beyond this share of half the field of view outside the image the projection is no longer linearised further out."""
