"""Materials and sky of the generated capture: colour, gloss and bumps of a point, from layered noise."""

import math
from typing import Any

from nifi_ns.capture._vectors import Vector, along, fbm, hashed, jit, mix, noise, scale, smoothstep

GROUND, WOOD, MARBLE, CHECKER, BRICK, BARK, LEAVES, CERAMIC, BOOK, TERRACOTTA, FABRIC, ORANGE, ROOF, STONE = range(14)


@jit
def mean_albedo(material: int) -> Vector:
    """Return a material's average albedo, for light that bounces off it."""
    if material in (GROUND, STONE):
        return (0.30, 0.29, 0.24)
    if material in (WOOD, BARK):
        return (0.36, 0.22, 0.12)
    if material in (MARBLE, CERAMIC, CHECKER):
        return (0.62, 0.60, 0.58)
    if material in (BRICK, TERRACOTTA, ROOF):
        return (0.45, 0.21, 0.14)
    if material == LEAVES:
        return (0.10, 0.17, 0.05)
    if material == ORANGE:
        return (0.75, 0.33, 0.05)
    return (0.35, 0.25, 0.28)


@jit
def cut_out(lattice: Any, material: int, p: Vector) -> bool:
    """Return whether there is a hole at `p`, in the object's coordinates: tree crowns let light through."""
    if material != LEAVES:
        return False
    return noise(lattice, 9.0 * p[0], 9.0 * p[1], 9.0 * p[2]) > 0.52


@jit
def _bump(lattice: Any, p: Vector, frequency: float, strength: float) -> Vector:
    """Return a tilt of the normal by the gradient of noise."""
    x, y, z = p[0] * frequency, p[1] * frequency, p[2] * frequency
    e = 0.15
    base = noise(lattice, x, y, z)
    return (
        (base - noise(lattice, x + e, y, z)) * strength / e,
        (base - noise(lattice, x, y + e, z)) * strength / e,
        (base - noise(lattice, x, y, z + e)) * strength / e,
    )


@jit
def _tiles(u: float, v: float, width: float, height: float, shift: float, gap: float) -> tuple[int, int, float]:
    """Return column, row and mortar (0 in a tile, 1 between tiles) of a running bond."""
    row = math.floor(v / height)
    u += shift * width * (row % 2)
    column = math.floor(u / width)
    du = min(u - column * width, (column + 1) * width - u)
    dv = min(v - row * height, (row + 1) * height - v)
    return int(column), int(row), 1.0 - smoothstep(0.5 * gap, gap, min(du, dv))


@jit
def _ground(lattice: Any, p: Vector) -> tuple[Vector, float, Vector]:
    """Return paving stones near the table, a worn edge, then a meadow."""
    r = math.sqrt(p[0] * p[0] + p[1] * p[1])
    edge = r + 1.6 * (fbm(lattice, 0.5 * p[0], 0.5 * p[1], 3.3, 4) - 0.5)
    column, row, mortar = _tiles(p[0] + 0.2, p[1] + 0.1, 0.92, 0.61, 0.37, 0.035)
    tone = 0.30 + 0.16 * (hashed(column, row, 1) - 0.5)
    warmth = 0.05 * (hashed(column, row, 2) - 0.5)
    grain = fbm(lattice, 7.0 * p[0], 7.0 * p[1], 1.7 * row, 5) - 0.5
    stain = smoothstep(0.5, 0.75, fbm(lattice, 1.1 * p[0], 1.1 * p[1], 9.1, 4))
    tone = tone * (1.0 + 1.3 * grain) * (1.0 - 0.35 * stain)
    paving = mix((tone + warmth, tone, tone - warmth), (0.11, 0.12, 0.06), mortar)
    blades = fbm(lattice, 21.0 * p[0], 13.0 * p[1], 0.5, 4)
    patches = fbm(lattice, 0.7 * p[0], 0.7 * p[1], 5.5, 4)
    dry = smoothstep(0.45, 0.62, patches)
    meadow = mix((0.09, 0.17, 0.035), (0.27, 0.25, 0.09), dry)
    meadow = scale(meadow, 0.35 + 1.3 * blades)
    flower = noise(lattice, 5.0 * p[0], 5.0 * p[1], 20.5)
    if flower > 0.86:
        meadow = mix(meadow, (0.85, 0.8, 0.35) if noise(lattice, p[0], p[1], 8.5) > 0.5 else (0.8, 0.75, 0.8), 0.8)
    outside = smoothstep(4.3, 4.6, edge)
    bump = _bump(lattice, (p[0], p[1], 0.3), 14.0, 0.08 + 0.1 * outside)
    return mix(paving, meadow, outside), 0.0, (bump[0], bump[1], 0.0)


@jit
def _wood(lattice: Any, p: Vector, board: float) -> tuple[Vector, float, Vector]:
    """Return boards along x, with stretched grain, rings, a few knots, varnish."""
    column = math.floor(p[1] / board)
    into = p[1] / board - column
    shift = 13.0 * hashed(column, 5, 9)
    rings = fbm(lattice, 0.5 * p[0] + shift, 5.0 * p[1] + 3.0 * shift, 3.0 * p[2] + shift, 3)
    grain = fbm(lattice, 3.0 * p[0] + shift, 70.0 * p[1], 70.0 * p[2], 3)
    band = 0.5 + 0.5 * math.sin(38.0 * rings)
    tone = 0.55 + 0.25 * band + 0.55 * (grain - 0.5) + 0.25 * (hashed(column, 1, 4) - 0.5)
    colour = scale((0.60, 0.335, 0.15), tone)
    seam = 1.0 - smoothstep(0.012, 0.04, min(into, 1.0 - into))
    return mix(colour, (0.05, 0.03, 0.02), seam), 0.55, scale(_bump(lattice, p, 30.0, 0.02), 1.0)


@jit
def _brick(lattice: Any, p: Vector, n: Vector) -> tuple[Vector, float, Vector]:
    """Return a wall in running bond with windows."""
    u = p[0] if abs(n[1]) > abs(n[0]) else p[1]
    v = p[2]
    wu, wv = (u + 50.0) % 1.7 - 0.85, (v + 1.35) % 1.5 - 0.75
    if abs(wu) < 0.42 and abs(wv) < 0.5:
        if abs(wu) > 0.35 or abs(wv) > 0.43 or abs(wu) < 0.025 or abs(wv) < 0.025:
            return (0.75, 0.74, 0.70), 0.0, (0.0, 0.0, 0.0)
        return (0.05, 0.07, 0.09), 1.0, (0.0, 0.0, 0.0)
    column, row, mortar = _tiles(u, v, 0.34, 0.12, 0.5, 0.016)
    tone = 0.75 + 0.7 * (hashed(column, row, 3) - 0.5) + 0.5 * (fbm(lattice, 19.0 * u, 19.0 * v, 0.1, 3) - 0.5)
    colour = scale((0.46, 0.19, 0.12), tone)
    return mix(colour, (0.47, 0.45, 0.41), mortar), 0.0, (0.0, 0.0, 0.0)


@jit
def _book(lattice: Any, p: Vector, n: Vector, size: Any, which: int) -> tuple[Vector, float, Vector]:
    """Return a cloth cover with a printed block of words, and the edges of the pages."""
    if abs(n[2]) < 0.5 and not (abs(n[1]) > 0.5 and p[1] < 0.0):
        line = 0.72 + 0.2 * (hashed(math.floor(p[2] * 150.0), 3, which) - 0.5)
        return (line, 0.96 * line, 0.85 * line), 0.0, (0.0, 0.0, 0.0)
    hue = hashed(which, 2, 3)
    cover = mix((0.08, 0.16, 0.30), (0.45, 0.08, 0.09), hue)
    weave = 0.9 + 0.4 * (noise(lattice, 45.0 * p[0], 45.0 * p[1], 45.0 * p[2]) - 0.5)
    cover = scale(cover, weave)
    u, v = p[0] / size[0], p[1] / size[1]
    if abs(n[2]) < 0.5:
        v = p[2] / size[2]
    border = max(abs(u), abs(v))
    ink = (0.86, 0.76, 0.45)
    if 0.86 < border < 0.9:
        return ink, 0.3, (0.0, 0.0, 0.0)
    if border < 0.75:
        # four lines of words: every letter is a stem and two bars, chosen by its hash
        line = math.floor(3.0 * v + 30.0)
        column = math.floor(9.0 * u)
        height, into = 3.0 * v + 30.0 - line, 9.0 * u - column
        if hashed(int(column), int(line), which) > 0.2 and 0.2 < height < 0.8 and into < 0.78:
            bar = int((height - 0.2) * 5.0)
            if into < 0.28 or hashed(int(column) + 7 * bar, int(line), which + 9) > 0.5:
                return ink, 0.2, (0.0, 0.0, 0.0)
    return cover, 0.15, (0.0, 0.0, 0.0)


@jit
def surface(lattice: Any, material: int, p: Vector, n: Vector, size: Any, which: int) -> tuple[Vector, float, Vector]:
    """Return albedo, gloss (0 dull to 1 polished) and tilt of the normal at `p`, in the object's coordinates."""
    none = (0.0, 0.0, 0.0)
    if material == GROUND:
        return _ground(lattice, p)
    if material == WOOD:
        return _wood(lattice, p, 0.26)
    if material == MARBLE:
        warp = fbm(lattice, 3.0 * p[0], 3.0 * p[1], 3.0 * p[2], 5)
        vein = abs(math.sin(4.0 * p[0] + 3.0 * p[2] + 13.0 * warp))
        colour = mix((0.16, 0.20, 0.22), (0.80, 0.79, 0.75), smoothstep(0.0, 0.55, vein))
        return scale(colour, 0.75 + 0.5 * fbm(lattice, 11.0 * p[0], 11.0 * p[1], 11.0 * p[2], 3)), 0.9, none
    if material == CHECKER:
        longitude, latitude = math.atan2(p[1], p[0]), math.acos(min(max(p[2] / size[2], -1.0), 1.0))
        odd = (math.floor(longitude * 16.0 / (2.0 * math.pi)) + math.floor(latitude * 8.0 / math.pi)) % 2
        colour = (0.82, 0.80, 0.74) if odd != 0 else (0.10, 0.28, 0.42)
        return scale(colour, 0.9 + 0.2 * noise(lattice, 40.0 * p[0], 40.0 * p[1], 40.0 * p[2])), 0.6, none
    if material == BRICK:
        return _brick(lattice, p, n)
    if material == BARK:
        ridges = fbm(lattice, 14.0 * p[0], 14.0 * p[1], 2.0 * p[2], 4)
        return scale((0.30, 0.22, 0.16), 0.3 + 1.3 * ridges), 0.0, _bump(lattice, p, 14.0, 0.3)
    if material == LEAVES:
        tint = fbm(lattice, 2.0 * p[0] + which, 2.0 * p[1], 2.0 * p[2], 3)
        leaf = noise(lattice, 22.0 * p[0], 22.0 * p[1], 22.0 * p[2])
        colour = mix((0.05, 0.11, 0.025), (0.24, 0.30, 0.07), smoothstep(0.3, 0.7, 0.5 * tint + 0.5 * leaf))
        if hashed(which // 6, 4, 4) > 0.72:
            colour = mix(colour, (0.38, 0.18, 0.05), 0.55)
        return scale(colour, 0.5 + leaf), 0.0, _bump(lattice, p, 9.0, 0.9)
    if material == CERAMIC:
        angle, z = math.atan2(p[1], p[0]), p[2]
        wave = z + 0.035 * math.sin(9.0 * angle)
        stripes = abs(math.sin(22.0 * wave))
        glaze = 0.92 + 0.16 * (fbm(lattice, 9.0 * p[0], 9.0 * p[1], 9.0 * p[2], 4) - 0.5)
        colour = mix((0.78, 0.77, 0.70), (0.06, 0.14, 0.42), smoothstep(0.70, 0.78, stripes))
        if abs(wave) < 0.05 and noise(lattice, 30.0 * angle, 30.0 * z, 0.0) > 0.45:
            colour = (0.62, 0.30, 0.08)
        return scale(colour, glaze), 1.0, none
    if material == BOOK:
        return _book(lattice, p, n, size, which)
    if material == TERRACOTTA:
        speck = fbm(lattice, 13.0 * p[0], 13.0 * p[1], 13.0 * p[2], 3)
        chalk = smoothstep(0.5, 0.66, fbm(lattice, 3.0 * p[0], 3.0 * p[1], 3.0 * p[2], 4))
        colour = scale((0.55, 0.24, 0.13), 0.65 + 0.7 * speck)
        return mix(colour, (0.62, 0.56, 0.48), 0.6 * chalk), 0.0, _bump(lattice, p, 12.0, 0.03)
    if material == FABRIC:
        u, v = p[0] * 9.0, p[1] * 9.0 if abs(n[2]) > 0.5 else p[2] * 9.0
        warp, weft = smoothstep(0.1, 0.2, abs(math.sin(u))), smoothstep(0.1, 0.2, abs(math.sin(v)))
        colour = mix((0.62, 0.55, 0.40), (0.42, 0.07, 0.10), 0.5 * (warp + weft))
        thread = 0.8 + 0.4 * noise(lattice, 60.0 * p[0], 60.0 * p[1], 60.0 * p[2])
        return scale(colour, thread), 0.0, none
    if material == ORANGE:
        blush = fbm(lattice, 4.0 * p[0] + which, 4.0 * p[1], 4.0 * p[2], 4)
        colour = mix((0.78, 0.25, 0.03), (0.85, 0.48, 0.08), smoothstep(0.3, 0.7, blush))
        if p[2] > 0.94 * size[2]:
            colour = (0.12, 0.16, 0.05)
        return colour, 0.4, _bump(lattice, p, 60.0, 0.12)
    if material == ROOF:
        column, row, mortar = _tiles(p[0] if abs(n[1]) > abs(n[0]) else p[1], p[2], 0.30, 0.20, 0.5, 0.03)
        tone = 0.8 + 0.8 * (hashed(column, row, 6) - 0.5)
        return mix(scale((0.33, 0.13, 0.09), tone), (0.06, 0.04, 0.04), mortar), 0.0, none
    speck = fbm(lattice, 6.0 * p[0] + which, 6.0 * p[1], 6.0 * p[2], 5)
    return scale((0.42, 0.40, 0.36), 0.3 + 1.4 * speck), 0.0, _bump(lattice, p, 8.0, 0.25)


@jit
def _ridge(lattice: Any, azimuth: float, frequency: float, shift: float) -> float:
    return fbm(lattice, frequency * math.cos(azimuth) + shift, frequency * math.sin(azimuth) + shift, shift, 5)


@jit
def sky(lattice: Any, d: Vector, sun: Any) -> Vector:
    """Return linear radiance from infinitely far away: three ranges of hills, a cloudy sky, a glow around the sun."""
    azimuth = math.atan2(d[1], d[0])
    up = d[2]
    for layer in range(3):
        height = 0.03 + 0.055 * layer
        ridge = height * (0.35 + 1.25 * _ridge(lattice, azimuth, 2.5 + 1.7 * (2 - layer), 11.0 * layer))
        # the nearest range is the lowest, and hides the others
        if up < ridge:
            forest = fbm(lattice, 60.0 * azimuth, 260.0 * up, 3.0 * layer, 4)
            hill = mix((0.10, 0.15, 0.06), (0.20, 0.22, 0.10), forest)
            hill = scale(hill, 0.5 + 1.0 * forest)
            return mix(hill, (0.56, 0.66, 0.80), 0.25 + 0.25 * layer)
    toward = max(d[0] * sun[0] + d[1] * sun[1] + d[2] * sun[2], 0.0)
    clear = mix((0.80, 0.88, 0.98), (0.20, 0.40, 0.82), smoothstep(0.0, 0.75, math.sqrt(max(up, 0.0))))
    clear = along(clear, (1.0, 0.8, 0.5), 0.5 * toward**40)
    q = 1.6 / (max(up, 0.0) + 0.18)
    cover = fbm(lattice, q * d[0] + 3.0, q * d[1] + 7.0, 0.5, 6)
    cloud = smoothstep(0.47, 0.66, cover)
    shade = 0.78 + 0.45 * smoothstep(0.45, 0.75, fbm(lattice, q * d[0] + 3.4, q * d[1] + 7.3, 0.9, 5))
    return mix(clear, (1.08 * shade, 1.07 * shade, 1.07 * shade), 0.9 * cloud * smoothstep(0.0, 0.12, up))
