"""Outdoor scenes that are made up on the fly: a labelled data set without a download.

Sky, ground, road, water, buildings, trees, vehicles and persons in simple perspective, under five kinds of light, with
haze, texture, occlusion, shadows and sensor noise. Colour alone does not tell the classes apart: water mirrors the sky,
trees and grass share their greens (and in autumn the bricks' reds), roads and facades their greys, vehicles and clothes
come in all colours. Void pixels (255) are lamps, signs and balloons, and the outlines of some objects.

An item depends on (seed, index) only, not on the machine: pixels come from PCG64 integers and exactly rounded
operations (+ - * / sqrt), never from a library's sine, sum or image filter.

Shapes: (H, W) scene in pixels; x to the right, y downwards. Every object is drawn from its signed distance `d` in
pixels, negative inside, which gives its colour a smooth edge, its label and its void outline.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image


CLASS_NAMES = ("sky", "ground", "road", "water", "building", "tree", "vehicle", "person")
PALETTE = (
    (142, 196, 236),
    (176, 199, 112),
    (98, 94, 110),
    (44, 104, 186),
    (205, 121, 87),
    (43, 122, 66),
    (244, 190, 56),
    (214, 48, 92),
)
SKY, GROUND, ROAD, WATER, BUILDING, TREE, VEHICLE, PERSON = range(len(CLASS_NAMES))
VOID = 255

# Light: sky at the top, sky at the horizon, clouds, gain of the objects' colours, chance of lit windows.
LIGHTS = (
    ((62, 122, 204), (190, 217, 238), (250, 250, 252), (1.00, 1.00, 0.98), 0.02),
    ((96, 150, 214), (214, 226, 236), (245, 245, 248), (1.06, 1.04, 1.00), 0.02),
    ((148, 158, 170), (206, 211, 216), (226, 228, 231), (0.80, 0.83, 0.87), 0.15),
    ((74, 84, 146), (250, 176, 116), (246, 150, 128), (0.98, 0.78, 0.66), 0.30),
    ((20, 27, 60), (70, 74, 112), (52, 56, 88), (0.52, 0.56, 0.72), 0.60),
)
GROUNDS = ((98, 132, 60), (118, 146, 74), (164, 148, 88), (198, 176, 128), (126, 98, 70), (222, 227, 233))
ROADS = ((74, 76, 80), (104, 105, 108), (134, 133, 132), (156, 130, 98))  # the last one is a dirt track
FACADES = (
    (158, 84, 64),
    (206, 184, 146),
    (142, 142, 146),
    (222, 219, 210),
    (108, 138, 166),
    (84, 82, 88),
    (124, 142, 108),
)
LEAVES = ((50, 90, 42), (84, 122, 50), (38, 72, 48), (112, 138, 62), (190, 116, 44), (158, 74, 46))
PAINTS = ((196, 40, 40), (30, 82, 168), (232, 232, 232), (42, 44, 48), (140, 144, 150), (236, 182, 38), (52, 118, 72))
CLOTHES = ((190, 44, 52), (38, 70, 140), (230, 226, 216), (46, 46, 52), (226, 168, 44), (70, 124, 78), (130, 80, 140))
SKINS = ((238, 200, 172), (206, 156, 120), (150, 102, 72), (96, 62, 46))
HAIRS = ((40, 30, 26), (96, 64, 40), (180, 142, 84), (120, 118, 116))

_SIDE = 1024  # pixels of the texture bank: the largest scene


class SceneDataset:
    """`length` scenes as a map-style data set; see the module for what they show.

    Args:
        length: number of scenes.
        seed: another seed gives other scenes.
        size: (H, W) in pixels, 32 to 1024 each.

    Item: {"image": RGB PIL image, "label": (H, W) uint8 class ids with void 255, "name": "scene_000012"}

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(self, length: int, seed: int = 0, size: tuple[int, int] = (128, 128)):
        if length < 0 or seed < 0:
            raise ValueError(f"length {length} and seed {seed} must not be negative")
        if not all(32 <= side <= _SIDE for side in size):
            raise ValueError(f"size {tuple(size)} (height, width) must be 32 to {_SIDE} pixels each")
        self.length, self.seed, self.size = length, seed, tuple(size)

    @property
    def labels(self):
        """`hf_segtx.labels.Labels` of the scenes."""
        return labels()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        if not 0 <= index < self.length:
            raise IndexError(f"index {index} is outside [0, {self.length})")
        image, label = _Scene(np.random.Generator(np.random.PCG64([self.seed, int(index)])), *self.size).render()
        return {"image": Image.fromarray(image), "label": label, "name": f"scene_{index:06d}"}


def labels():
    """The label contract of the scenes, `hf_segtx.labels.Labels`."""
    from .labels import Labels

    return Labels(names=CLASS_NAMES, palette=PALETTE, ignore_index=VOID)


@dataclass
class _Window:
    """A rectangle of the scene with the coordinates of its pixel centres: x (1, w) and y (h, 1)."""

    rows: slice
    columns: slice
    x: np.ndarray
    y: np.ndarray


class _Scene:
    """One scene: draws the still parts, then the objects from far to near."""

    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self.rng, self.height, self.width = rng, height, width
        self.image = np.empty((3, height, width), np.float32)  # 0-255
        self.label = np.empty((height, width), np.uint8)
        self.x = np.arange(width, dtype=np.float32)[None] + 0.5
        self.y = np.arange(height, dtype=np.float32)[:, None] + 0.5
        light = self.choose(LIGHTS)
        self.zenith, self.skyline, self.cloud, self.gain = (_rgb(part) for part in light[:4])
        self.gain = self.gain * self.between(0.9, 1.1)
        self.lit_windows = light[4]
        self.haze = self.between(0.05, 0.6)
        self.light_from = self.choose((-1.0, 1.0))  # the side of the sun
        self.horizon = round(height * self.between(0.32, 0.52))

    def render(self) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) uint8 image and (H, W) uint8 label."""
        self.draw_sky()
        self.draw_ground()
        if self.rng.random() < 0.65:
            self.draw_water()
        self.has_road = self.rng.random() < 0.75
        if self.has_road:
            self.draw_road()
        objects = [(self.between(0.05, 0.28), self.draw_building) for _ in range(self.rng.integers(1, 5))]
        objects += [(self.between(0.10, 0.60), self.draw_tree) for _ in range(self.rng.integers(1, 5))]
        objects += [(self.between(0.30, 0.70), self.draw_vehicle) for _ in range(self.rng.integers(1, 3))]
        objects += [(self.between(0.45, 0.98), self.draw_person) for _ in range(self.rng.integers(1, 4))]
        if self.rng.random() < 0.4:
            objects.append((self.between(0.3, 0.8), self.choose((self.draw_lamp, self.draw_sign))))
        if self.rng.random() < 0.15:
            self.draw_balloon()
        for depth, draw in sorted(objects, key=lambda item: item[0]):
            base = self.horizon + depth * (self.height - self.horizon)
            for _ in range(4):  # trees and houses seldom stand on roads or in water, people not in water
                x = self.between(0, 1) * self.width
                here = self.label[int(base), int(x)]
                if draw == self.draw_vehicle or not (here == WATER or (here == ROAD and draw != self.draw_person)):
                    break
            draw(x, base, base - self.horizon, depth)
        return self.developed(), self.label

    # Random numbers and textures

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def choose(self, options):
        return options[self.rng.integers(len(options))]

    def color(self, options, variation: float = 0.12) -> np.ndarray:
        """One of the colours, a little changed in hue and brightness, (3, 1, 1) float32 of 0-255."""
        hue = 1 + variation * (self.rng.random((3, 1, 1), dtype=np.float32) - 0.5)
        return _rgb(self.choose(options)) * hue * self.between(0.8, 1.15)

    def texture(self, kind: str, height: int, width: int) -> np.ndarray:
        """(height, width) float32 of about [-1, 1] from a random place of the texture bank."""
        top, left = self.rng.integers(0, _SIDE - height + 1), self.rng.integers(0, _SIDE - width + 1)
        return _texture_bank()[kind][top : top + height, left : left + width]

    def lit(self, color: np.ndarray, depth: float) -> np.ndarray:
        """Colour under the scene's light, veiled by haze towards the horizon (depth 0)."""
        veil = self.haze * (1 - depth) * (1 - depth)
        return color * self.gain * (1 - veil) + self.skyline * veil

    # Painting

    def window(self, left: float, top: float, right: float, bottom: float) -> _Window | None:
        """The part of a rectangle that lies in the scene, with two pixels around it; None if nothing does."""
        x0, x1 = max(0, int(left) - 2), min(self.width, int(right) + 3)
        y0, y1 = max(0, int(top) - 2), min(self.height, int(bottom) + 3)
        if x0 >= x1 or y0 >= y1:
            return None
        return _Window(slice(y0, y1), slice(x0, x1), self.x[:, x0:x1], self.y[y0:y1])

    def paint(self, window: _Window, d: np.ndarray, color: np.ndarray, opacity: float = 1.0) -> None:
        """Colours the inside of `d` with a smooth edge; color: (3, 1, 1) or (3, h, w)."""
        alpha = np.clip(0.5 - d, 0, opacity)
        area = self.image[:, window.rows, window.columns]
        area += alpha * (color - area)

    def mark(self, window: _Window, d: np.ndarray, label: int, outline: float = 0.25) -> None:
        """Labels the inside of `d`; with the chance `outline` its border becomes void."""
        area = self.label[window.rows, window.columns]
        area[d < 0] = label
        if self.rng.random() < outline:
            area[np.abs(d) < 0.75] = VOID

    def shadow(self, x: float, base: float, half_width: float) -> None:
        """Darkens the ground under an object."""
        x = x - self.light_from * half_width * 0.3
        window = self.window(x - half_width, base - half_width * 0.25, x + half_width, base + half_width * 0.25)
        if window is not None:
            d = _ellipse(window, x, base, half_width, max(1.0, half_width * 0.22))
            below = self.label[window.rows, window.columns] != SKY
            self.paint(window, np.where(below, d, 9), _rgb((0, 0, 0)), 0.4)

    # Still parts

    def draw_sky(self) -> None:
        rows, width = self.horizon, self.width
        down = self.y[:rows] / rows  # 0 at the top, 1 at the horizon
        sky = self.zenith + (self.skyline - self.zenith) * down * down
        cover = self.between(-0.5, 0.7)
        clouds = np.clip((self.texture("clouds", rows, width) - cover) * 1.6, 0, 0.9)
        self.image[:, :rows] = sky + clouds * (self.cloud - sky)
        self.label[:rows] = SKY
        if self.rng.random() < 0.3:  # the sun, or the moon
            x, y, radius = self.between(0, width), self.between(0, rows), self.height * self.between(0.02, 0.05)
            window = self.window(x - 3 * radius, y - 3 * radius, x + 3 * radius, min(y + 3 * radius, rows - 3))
            if window is not None:
                d = _circle(window, x, y, radius)
                glow = np.clip(1 - d / (2 * radius), 0, 1) * 0.6
                area = self.image[:, window.rows, window.columns]
                area += glow * (_rgb((255, 246, 220)) - area)

    def draw_ground(self) -> None:
        rows = self.height - self.horizon
        near = (self.y[self.horizon :] - self.horizon) / rows  # 0 at the horizon, 1 at the bottom
        color = self.color(GROUNDS)
        texture = self.texture("grain", rows, self.width) * 0.4 + self.texture("leaves", rows, self.width)
        veil = self.haze * (1 - near) * (1 - near)
        shaded = color * self.gain * (1 + texture * (near * 0.14 + 0.06))
        self.image[:, self.horizon :] = shaded + veil * (self.skyline - shaded)
        self.label[self.horizon :] = GROUND
        if self.rng.random() < 0.5:  # hills behind everything
            height = self.horizon * self.between(0.1, 0.35)
            window = self.window(0, self.horizon - height, self.width, self.horizon - 3)
            ridge = self.texture("clouds", 1, self.width) * (height * 0.5) + height * 0.5
            d = self.horizon - ridge - window.y
            color = self.lit(color * 0.8, self.between(0.05, 0.5))
            grain = self.texture("leaves", *d.shape)
            self.paint(window, d, color * (1 + 0.06 * grain))
            self.mark(window, d, GROUND, outline=0)

    def draw_water(self) -> None:
        rows = self.height - self.horizon
        window = _Window(slice(self.horizon, self.height), slice(0, self.width), self.x, self.y[self.horizon :])
        if self.rng.random() < 0.5:  # a lake or river: its shores are lines of noise
            far = self.horizon + rows * self.between(-0.05, 0.45)
            close = far + rows * self.between(0.3, 0.7)
            shore = self.texture("clouds", 2, self.width) * (rows * 0.06)
            d = np.maximum(far + shore[:1] - window.y, window.y - close - shore[1:])
        else:  # a bay at one side
            x, y = self.choose((-0.1, 1.1)) * self.width, self.horizon + rows * self.between(0.25, 1.0)
            a, b = self.width * self.between(0.6, 1.1), rows * self.between(0.25, 0.7)
            d = _ellipse(window, x, y, a, b) + self.texture("clouds", rows, self.width) * (rows * 0.05)
        near = (window.y - self.horizon) / rows
        mirror = (self.skyline + (self.zenith - self.skyline) * near) * self.between(0.7, 0.95)
        ripples = self.texture("streaks", rows, self.width) * (near * 0.3 + 0.06)
        self.paint(window, d - 1, self.lit(_rgb((120, 110, 92)), 0.6))  # wet shore
        self.paint(window, d, mirror * (1 + ripples))
        self.mark(window, d, WATER, outline=0.2)

    def draw_road(self) -> None:
        rows, width = self.height - self.horizon, self.width
        kind = self.rng.integers(len(ROADS))
        color = self.color(ROADS[kind : kind + 1])
        window = _Window(slice(self.horizon, self.height), slice(0, width), self.x, self.y[self.horizon :])
        near = (window.y - self.horizon) / rows
        start, end, bend = (self.between(low, high) * width for low, high in ((0.2, 0.8), (0.2, 0.8), (-0.5, 0.5)))
        middle = start + (end - start) * near + bend * near * (1 - near)
        half = width * self.between(0.18, 0.42) * near + 0.6
        across = (window.x - middle) / half  # -1 at the left edge, 1 at the right one
        d = (np.abs(across) - 1) * half
        veil = self.haze * ((1 - near) * (1 - near))
        grain = self.texture("grain", rows, width) * 0.07 + self.texture("clouds", rows, width) * 0.06
        surface = color * self.gain * (1 + grain)
        if kind == len(ROADS) - 1:  # wheel tracks
            track = np.clip(1 - np.abs(np.abs(across) - 0.45) * 4, 0, 1) * 0.22
            surface *= 1 - track
        else:
            paint = _rgb((236, 232, 220)) * self.gain
            phase = self.between(0, 1) + 2.2 / (near + 0.12)
            dashes = (np.abs(across) < 0.035) & (phase - np.floor(phase) < 0.5)
            if self.rng.random() < 0.8:
                dashes |= np.abs(np.abs(across) - 0.9) < 0.03
            np.copyto(surface, paint, where=dashes)
        self.paint(window, d, surface + veil * (self.skyline - surface))
        self.mark(window, d, ROAD, outline=0.2)
        self.road = (middle[:, 0], half[:, 0])

    # Objects: x of the middle, base line, `unit` = a person's height there (all in pixels), depth in [0, 1]

    def draw_building(self, x: float, base: float, unit: float, depth: float) -> None:
        unit = max(unit, self.height * 0.05)
        width, height = unit * self.between(1.6, 4.5), unit * self.between(2.5, 6.5)
        left, right, top = x - width / 2, x + width / 2, base - height
        gabled = self.rng.random() < 0.4
        roof = width * self.between(0.2, 0.4) if gabled else 0.0
        window = self.window(left, top - roof, right, base)
        if window is None:
            return
        d = _box(window, left, top, right, base)
        color = self.lit(self.color(FACADES), depth)
        corner = x + width * self.between(-0.3, 0.3)  # where the side turned from the light begins
        shade = 1 - np.float32(0.25) * ((window.x - corner) * self.light_from < 0)
        wall = color * (shade * (1 + 0.05 * self.texture("grain", *d.shape)))
        self.paint(window, d, wall)
        pitch_x, pitch_y = max(3.0, unit * self.between(0.45, 0.9)), max(3.5, unit * self.between(0.6, 1.0))
        u, v = (window.x - left) / pitch_x, (window.y - top) / pitch_y
        cell_u, cell_v = np.floor(u), np.floor(v)
        u, v = u - cell_u, v - cell_v
        panes = (u > 0.28) & (u < 0.8) & (v > 0.25) & (v < 0.75) & (d < -1)
        lit = self.rng.random((int(height / pitch_y) + 2, int(width / pitch_x) + 2)) < self.lit_windows
        lit = lit[cell_v.astype(np.int64).clip(0, len(lit) - 1), cell_u.astype(np.int64).clip(0, lit.shape[1] - 1)]
        glass = self.lit(_rgb((58, 70, 86)), depth)
        area = self.image[:, window.rows, window.columns]
        np.copyto(area, glass, where=panes & ~lit)
        np.copyto(area, _rgb((255, 214, 130)), where=panes & lit)
        if gabled:
            slope = (np.abs(window.x - x) - width * 0.54) * (roof / width * 1.9)
            d_roof = np.maximum(window.y - top, slope + (top - window.y))
            self.paint(window, d_roof, self.lit(self.color(((140, 62, 48), (92, 88, 92), (112, 84, 66))), depth))
            d = np.minimum(d, d_roof)
        self.mark(window, d, BUILDING)

    def draw_tree(self, x: float, base: float, unit: float, depth: float) -> None:
        unit = max(unit, self.height * 0.07)
        height, conifer = unit * self.between(1.7, 3.4), self.rng.random() < 0.35
        spread = height * (self.between(0.18, 0.26) if conifer else self.between(0.26, 0.42))
        crown = base - height * self.between(0.15, 0.32)  # where the crown begins
        window = self.window(x - spread * 1.3, base - height * 1.1, x + spread * 1.3, base)
        if window is None:
            return
        self.shadow(x, base, spread)
        thickness = max(0.8, height * 0.035)
        d_trunk = _box(window, x - thickness, crown - height * 0.2, x + thickness, base)
        self.paint(window, d_trunk, self.lit(self.color(((92, 70, 52), (66, 56, 50))), depth))
        leaves = self.texture("leaves", len(window.y), window.x.shape[1])
        if conifer:
            tiers = (window.y - (base - height)) / (height * 0.24)
            saw = tiers - np.floor(tiers)
            half = (window.y - (base - height)) * (spread / height * 1.25) * (0.7 + saw * 0.3)
            d = np.maximum((np.abs(window.x - x) - half) * 0.8, window.y - crown)
        else:
            middle, tall = (crown + base - height) / 2, (crown - base + height) / 2
            d = _ellipse(window, x, middle, spread, tall)
            for _ in range(3):
                side, up = self.between(-0.55, 0.55) * spread, self.between(-0.4, 0.5) * tall
                d = np.minimum(d, _circle(window, x + side, middle + up, spread * self.between(0.4, 0.65)))
        d = d + leaves * min(2.5, spread * 0.14)
        sun = (window.x - x) * (self.light_from / spread * 0.16) + (crown - window.y) * (0.16 / height)
        green = self.lit(self.color(LEAVES, 0.2), depth)
        self.paint(window, d, green * (1 + sun + leaves * 0.32))
        self.mark(window, np.minimum(d, d_trunk), TREE)

    def draw_vehicle(self, x: float, base: float, unit: float, depth: float) -> None:
        if self.label[int(base), int(x)] == WATER:
            return self.draw_boat(x, base, unit, depth)
        if self.has_road and self.rng.random() < 0.8:
            row = min(int(base) - self.horizon, len(self.road[0]) - 1)
            x = float(self.road[0][row]) + self.choose((-0.5, 0.5)) * float(self.road[1][row])
        unit = max(unit, self.height * 0.22)
        large = depth < 0.5 and self.rng.random() < 0.3  # a bus
        height = unit * (self.between(0.95, 1.25) if large else self.between(0.58, 0.72))
        half = height * (self.between(0.8, 1.1) if large else self.between(0.95, 1.25))
        wheel = height * (0.13 if large else 0.19)
        top, floor = base - height, base - wheel * 0.8
        window = self.window(x - half, top, x + half, base)
        if window is None:
            return
        self.shadow(x, base, half * 1.1)
        color = self.lit(self.color(PAINTS), depth)
        glass, black = (self.lit(_rgb(c), depth) for c in ((64, 84, 104), (26, 26, 28)))
        facing = self.choose((-1, 1))
        if large:
            waist = top + height * 0.5
            d = _box(window, x - half, top, x + half, floor, height * 0.08)
            panes = _box(window, x - half * 0.92, top + height * 0.14, x + half * 0.92, waist)
            bars = (window.x - x) / (half * 0.36)
            panes = np.maximum(panes, np.where(bars - np.floor(bars) < 0.14, 1, -9))
        else:
            waist = top + height * 0.45
            body = _box(window, x - half, waist, x + half, floor, height * 0.14)
            lean = (window.y - top) * 0.55
            middle = x - facing * half * 0.08
            roof = np.abs(window.x - middle) - half * 0.36 - lean
            cabin = np.maximum(np.maximum(top - window.y, roof * 0.8), window.y - waist - 1)
            d = np.minimum(body, cabin)
            panes = np.maximum(cabin + height * 0.08, window.y - waist)
            panes = np.maximum(panes, height * 0.04 - np.abs(window.x - middle))
        shine = 1.15 - (window.y - top) * (0.45 / height)
        self.paint(window, d, color * shine)
        self.paint(window, panes, glass)
        for side in (-0.62, 0.62):
            tyre = _circle(window, x + side * half, base - wheel, wheel)
            self.paint(window, tyre, black)
            self.paint(window, tyre + wheel * 0.55, black + 70)
            d = np.minimum(d, tyre)
        for end, lamp in ((facing, (255, 240, 190)), (-facing, (210, 30, 30))):
            light = _circle(window, x + end * half * 0.93, waist + height * 0.14, max(0.7, height * 0.06))
            self.paint(window, light, _rgb(lamp))
        self.mark(window, d, VEHICLE)

    def draw_boat(self, x: float, base: float, unit: float, depth: float) -> None:
        half, height = unit * self.between(0.9, 1.4), unit * self.between(0.28, 0.4)
        mast = unit * self.between(1.0, 1.6)
        window = self.window(x - half, base - height - mast, x + half, base)
        if window is None:
            return
        hull = np.abs(window.x - x) - half + np.clip(window.y - base + height, 0, None) * 0.7
        d = np.maximum(np.maximum(base - height - window.y, window.y - base), hull * 0.8)
        self.paint(window, d, self.lit(self.color(PAINTS), depth))
        deck, side = base - height * 1.1, self.choose((-1, 1))
        drop = (window.x - x) * side  # from the mast outwards
        reach = (window.y - deck + mast) * (half * 0.85 / mast)
        sail = np.maximum(np.maximum(-drop, (drop - reach) * 0.8), window.y - deck)
        self.paint(window, sail, self.lit(self.color(((240, 238, 228), (206, 84, 60), (90, 120, 160))), depth))
        d = np.minimum(np.minimum(d, sail), _box(window, x - 0.7, deck - mast, x + 0.7, deck))
        self.mark(window, d, VEHICLE)

    def draw_person(self, x: float, base: float, unit: float, depth: float) -> None:
        height = max(unit, self.height * 0.26) * self.between(0.88, 1.08)
        window = self.window(x - height * 0.25, base - height, x + height * 0.25, base)
        if window is None:
            return
        self.shadow(x, base, height * 0.2)
        shirt, trousers, skin, hair = (self.lit(self.color(c), depth) for c in (CLOTHES, CLOTHES, SKINS, HAIRS))
        at = lambda share: base - height * share  # noqa: E731
        stride = height * self.between(0.02, 0.09)
        leg = height * 0.055
        legs = np.minimum(
            _limb(window, x - height * 0.05, at(0.5), x - stride - height * 0.03, at(0.03), leg),
            _limb(window, x + height * 0.05, at(0.5), x + stride + height * 0.03, at(0.03), leg),
        )
        torso = _limb(window, x, at(0.77), x, at(0.53), height * 0.12)
        swing = height * self.between(0.04, 0.1)
        arms = np.minimum(
            _limb(window, x - height * 0.11, at(0.8), x - height * 0.11 - swing, at(0.48), height * 0.04),
            _limb(window, x + height * 0.11, at(0.8), x + height * 0.11 + swing, at(0.48), height * 0.04),
        )
        head = _circle(window, x, at(0.92), height * 0.078)
        shade = 1 + (window.x - x) * (self.light_from * 0.9 / height)
        self.paint(window, legs, trousers * shade)
        self.paint(window, arms, shirt * 0.85 * shade)
        self.paint(window, torso, shirt * shade)
        self.paint(window, head, skin)
        self.paint(window, np.maximum(head, window.y - at(0.935)), hair)
        self.mark(window, np.minimum(np.minimum(legs, torso), np.minimum(arms, head)), PERSON)

    # Void objects

    def draw_lamp(self, x: float, base: float, unit: float, depth: float) -> None:
        height, reach = unit * self.between(1.8, 2.6), unit * 0.5 * self.choose((-1, 1))
        window = self.window(x - abs(reach) - 3, base - height, x + abs(reach) + 3, base)
        if window is None:
            return
        thickness = max(0.8, unit * 0.03)
        d = _box(window, x - thickness, base - height, x + thickness, base)
        d = np.minimum(d, _limb(window, x, base - height, x + reach, base - height, thickness))
        self.paint(window, d, self.lit(_rgb((70, 74, 80)), depth))
        bulb = _circle(window, x + reach, base - height + thickness, max(1.2, unit * 0.08))
        self.paint(window, bulb, _rgb((255, 236, 190)))
        self.mark(window, np.minimum(d, bulb), VOID, outline=0)

    def draw_sign(self, x: float, base: float, unit: float, depth: float) -> None:
        height, radius = unit * self.between(1.0, 1.4), unit * self.between(0.16, 0.24)
        window = self.window(x - radius, base - height - radius, x + radius, base)
        if window is None:
            return
        d = _box(window, x - max(0.7, unit * 0.025), base - height, x + max(0.7, unit * 0.025), base)
        self.paint(window, d, self.lit(_rgb((120, 122, 126)), depth))
        plate = _circle(window, x, base - height, radius)
        self.paint(window, plate, self.lit(_rgb((204, 38, 40)), depth))
        self.paint(window, plate + radius * 0.35, self.lit(_rgb((236, 236, 230)), depth))
        self.mark(window, np.minimum(d, plate), VOID, outline=0)

    def draw_balloon(self) -> None:
        radius = self.height * self.between(0.04, 0.08)
        x, y = self.between(0.1, 0.9) * self.width, self.between(0.2, 0.7) * self.horizon
        window = self.window(x - radius, y - radius, x + radius, y + 1.8 * radius)
        d = _circle(window, x, y, radius)
        stripes = (window.x - x) / (radius * 0.5)
        colors = np.where(stripes - np.floor(stripes) < 0.5, self.color(PAINTS), self.color(PAINTS))
        self.paint(window, d, colors * (self.gain.min() * 0.5 + 0.5))
        basket = _box(window, x - radius * 0.2, y + radius * 1.4, x + radius * 0.2, y + radius * 1.7)
        self.paint(window, basket, _rgb((110, 76, 50)))
        self.mark(window, np.minimum(d, basket), VOID, outline=0)

    def developed(self) -> np.ndarray:
        """What the camera makes of the scene: soft optics, exposure, vignette, noise; (H, W, 3) uint8."""
        image = self.image
        soft = self.between(0.05, 0.16)
        image[:, 1:-1] += soft * (image[:, :-2] + image[:, 2:] - 2 * image[:, 1:-1])
        image[..., 1:-1] += soft * (image[..., :-2] + image[..., 2:] - 2 * image[..., 1:-1])
        u, v = self.x / self.width - 0.5, self.y / self.height - 0.5
        image *= self.between(0.9, 1.1) * (1 - 0.35 * (u * u + v * v))
        noise = self.between(1, 5)
        for channel in image:
            channel += self.texture("grain", self.height, self.width) * noise
        return np.ascontiguousarray(np.clip(image + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def _rgb(color: tuple[float, float, float]) -> np.ndarray:
    return np.array(color, np.float32)[:, None, None]  # (3, 1, 1)


# Signed distances in pixels, (h, w) float32


def _circle(window: _Window, x: float, y: float, radius: float) -> np.ndarray:
    dx, dy = window.x - x, window.y - y
    return np.sqrt(dx * dx + dy * dy) - radius


def _ellipse(window: _Window, x: float, y: float, a: float, b: float) -> np.ndarray:
    """Exact at the border to first order along the shorter axis."""
    dx, dy = (window.x - x) / a, (window.y - y) / b
    return (np.sqrt(dx * dx + dy * dy) - 1) * min(a, b)


def _box(window: _Window, left: float, top: float, right: float, bottom: float, radius: float = 0) -> np.ndarray:
    """Rectangle with corners of `radius`; without, distances outside the corners are those of the longer axis."""
    dx = np.abs(window.x - (left + right) / 2) - (right - left) / 2 + radius
    dy = np.abs(window.y - (top + bottom) / 2) - (bottom - top) / 2 + radius
    if not radius:
        return np.maximum(dx, dy)
    outside_x, outside_y = np.maximum(dx, 0), np.maximum(dy, 0)
    corner = np.sqrt(outside_x * outside_x + outside_y * outside_y)
    return corner + np.minimum(np.maximum(dx, dy), 0) - radius


def _limb(window: _Window, x0: float, y0: float, x1: float, y1: float, radius: float) -> np.ndarray:
    """Everything within `radius` of a line from (x0, y0) to (x1, y1)."""
    dx, dy = x1 - x0, y1 - y0
    px, py = window.x - x0, window.y - y0
    along = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0, 1)
    px, py = px - along * dx, py - along * dy
    return np.sqrt(px * px + py * py) - radius


@cache
def _texture_bank() -> dict[str, np.ndarray]:
    """Four textures (1024, 1024) float32 of about [-1, 1], the same in every process."""
    rng = np.random.Generator(np.random.PCG64(2105_15203))

    def noise(cell_height: int, cell_width: int) -> np.ndarray:
        """Random values on a lattice, interpolated linearly."""
        rows, columns = _SIDE // cell_height + 2, _SIDE // cell_width + 2
        lattice = rng.integers(-127, 128, (rows, columns)).astype(np.float32) / np.float32(127)
        y, x = np.arange(_SIDE) / np.float32(cell_height), np.arange(_SIDE) / np.float32(cell_width)
        row, column = y.astype(np.int64), x.astype(np.int64)
        fy, fx = (y - row).astype(np.float32)[:, None], (x - column).astype(np.float32)
        lines = lattice[:, column] + (lattice[:, column + 1] - lattice[:, column]) * fx
        return lines[row] + (lines[row + 1] - lines[row]) * fy

    weighted = lambda *parts: sum(np.float32(weight) * noise(*cells) for weight, *cells in parts)  # noqa: E731
    return {
        "grain": weighted((1.0, 1, 1)),
        "clouds": weighted((0.75, 40, 56), (0.5, 19, 25), (0.3, 8, 11), (0.15, 4, 5)),
        "leaves": weighted((0.5, 7, 7), (0.7, 3, 3), (0.4, 1, 1)),
        "streaks": weighted((0.7, 3, 17), (0.6, 2, 9), (0.3, 1, 3)),
    }
