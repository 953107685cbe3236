"""A data set that the repository renders itself: RGB-D views of rooms, in NYU Depth v2's layout.

Neither sensor suffices. A cabinet wears the wall's own texture, so only depth shows it; posters and
rugs lie flat, so only colour shows them; boxes and balls draw their textures from the same pool as
posters and rugs, so colour alone confuses them. Numpy only, deterministic for a seed.

Axes: N rays, x right, y up, z forward. Lengths in metres.
"""
from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

__all__ = ["CLASSES", "PALETTE", "Frame", "generate", "render"]

CLASSES = ("wall", "floor", "cabinet", "poster", "rug", "box", "ball")
# Okabe and Ito's colours: they stay apart for colour-blind readers; light grey would look like "unknown"
PALETTE = (
    (50, 50, 50), (230, 159, 0), (86, 180, 233), (204, 121, 167), (0, 158, 115), (0, 114, 178), (240, 228, 66),
)
WALL, FLOOR, CABINET, POSTER, RUG, BOX, BALL = range(len(CLASSES))
CEILING = -1  # stays unlabelled, so that the demo exercises the ignore label
VERSION = 2
RANGE = (0.4, 8.0)  # metres that the simulated sensor can measure
GRAZING = np.cos(np.deg2rad(80))

Texture = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass
class Frame:
    """One view. rgb (H, W, 3) uint8; depth (H, W) uint16 millimetres, 0 = no reading; label (H, W)
    uint8, 1..K, 0 = unlabelled."""

    rgb: np.ndarray
    depth: np.ndarray
    label: np.ndarray


@dataclass
class Hits:
    """Nearest surface of every ray so far."""

    t: np.ndarray  # (N,) distance along the ray
    normal: np.ndarray  # (N, 3)
    albedo: np.ndarray  # (N, 3) in 0..1
    label: np.ndarray  # (N,)

    def put(self, hit: np.ndarray, t: np.ndarray, normal: np.ndarray, albedo: np.ndarray, label) -> None:
        nearer = hit & (t > 1e-6) & (t < self.t)
        self.t = np.where(nearer, t, self.t)
        self.normal[nearer] = normal[nearer]
        self.albedo[nearer] = albedo[nearer]
        self.label[nearer] = label[nearer] if isinstance(label, np.ndarray) else label


def generate(
    out: str | Path, train: int = 64, val: int = 16, size: tuple[int, int] = (120, 160), seed: int = 0
) -> Path:
    """Render ``train`` + ``val`` rooms of ``size`` (H, W) into ``out``.

    Writes RGB/NNNN.png, Depth/NNNN.png (16 bit, millimetres), Label/NNNN.png (1..K, 0 unlabelled),
    train.txt, val.txt, spec.json. A folder that already holds the same request is left as it is.
    Raises: FileExistsError if ``out`` holds something else; ValueError for impossible numbers.
    """
    if train < 1 or val < 1 or min(size) < 16:
        raise ValueError(f"need train >= 1, val >= 1 and a size of 16 or more, got {train}, {val}, {tuple(size)}")
    out = Path(out)
    spec = dict(train=train, val=val, size=list(size), seed=seed, version=VERSION, classes=list(CLASSES))
    if out.is_file():
        raise FileExistsError(f"{out} is a file; choose a folder")
    if out.exists() and any(out.iterdir()):
        stored = out / "spec.json"
        if stored.is_file() and json.loads(stored.read_text()) == spec:
            return out
        raise FileExistsError(f"{out} is not empty and holds another data set; choose another folder or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{out.name}.", suffix=".partial", dir=out.parent))
    try:
        _render_all(partial, spec)
        if out.exists():
            out.rmdir()
        partial.chmod(0o755)  # mkdtemp's folders are private
        os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _render_all(partial: Path, spec: dict) -> None:
    train, val, seed = spec["train"], spec["val"], spec["seed"]
    for folder in ("RGB", "Depth", "Label"):
        (partial / folder).mkdir(parents=True)
    names = [f"{i:04d}" for i in range(1, train + val + 1)]
    for i, name in enumerate(names):
        frame = render(np.random.default_rng([seed, i]), tuple(spec["size"]))
        for folder, image in (("RGB", frame.rgb[..., ::-1]), ("Depth", frame.depth), ("Label", frame.label)):
            if not cv2.imwrite(str(partial / folder / f"{name}.png"), image):
                raise OSError(f"cannot write {partial / folder / name}.png")
    (partial / "train.txt").write_text("".join(f"RGB/{n}.png\n" for n in names[:train]))
    (partial / "val.txt").write_text("".join(f"RGB/{n}.png\n" for n in names[train:]))
    (partial / "spec.json").write_text(json.dumps(spec))


def render(rng: np.random.Generator, size: tuple[int, int] = (120, 160)) -> Frame:
    """One random room seen by one random camera."""
    H, W = size
    room = np.array([rng.uniform(3.5, 6.0), rng.uniform(2.4, 3.0), rng.uniform(3.5, 6.0)])
    origin, rays, forward = _camera(rng, room, H, W)
    hits = Hits(np.full(H * W, np.inf), np.zeros((H * W, 3)), np.zeros((H * W, 3)), np.full(H * W, CEILING))
    wall = _plain(rng)
    _add_room(hits, rng, origin, rays, room, wall)
    _add_furniture(hits, rng, origin, rays, room, wall)
    rgb = _photograph(hits, rng, rays, H, W)
    depth = _measure(hits, rng, rays, forward, H, W)
    return Frame(rgb, depth, (hits.label + 1).astype(np.uint8).reshape(H, W))


def _camera(rng, room, H, W):
    """Origin (3,), unit rays (N, 3) and viewing direction (3,): from near one wall across the room."""
    origin = np.array([rng.uniform(0.3, 0.7) * room[0], rng.uniform(1.2, 1.8), rng.uniform(0.05, 0.2) * room[2]])
    yaw, pitch = rng.uniform(-0.45, 0.45), rng.uniform(-0.45, -0.15)
    forward = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    right = np.array([np.cos(yaw), 0.0, -np.sin(yaw)])
    up = np.cross(forward, right)
    focal = 0.9 * W
    v, u = np.mgrid[0:H, 0:W]
    x, y = (u - W / 2 + 0.5) / focal, (H / 2 - v - 0.5) / focal
    rays = forward + x.reshape(-1, 1) * right + y.reshape(-1, 1) * up
    return origin, rays / np.linalg.norm(rays, axis=1, keepdims=True), forward


def _add_room(hits, rng, origin, rays, room, wall):
    """Six inner faces, with posters on the walls and rugs on the floor."""
    floor = _plain(rng)
    for axis in range(3):
        for side in (0.0, 1.0):
            with np.errstate(divide="ignore", invalid="ignore"):
                t = (side * room[axis] - origin[axis]) / rays[:, axis]
            point = origin + np.where(np.isfinite(t), t, 0)[:, None] * rays
            a, b = [i for i in range(3) if i != axis]
            inside = (t > 0) & (point[:, a] >= 0) & (point[:, a] <= room[a])
            inside &= (point[:, b] >= 0) & (point[:, b] <= room[b])
            normal = np.zeros_like(rays)
            normal[:, axis] = 1 - 2 * side
            is_floor, is_ceiling = axis == 1 and side == 0, axis == 1 and side == 1
            albedo = (floor if is_floor else wall)(point[:, a], point[:, b])
            label = np.full(len(rays), FLOOR if is_floor else CEILING if is_ceiling else WALL)
            if not is_ceiling:
                kind, number = (RUG, rng.integers(2, 4)) if is_floor else (POSTER, rng.integers(2, 4))
                for _ in range(number):
                    _decal(rng, point[:, a], point[:, b], room[a], room[b], kind, albedo, label)
            hits.put(inside, t, normal, albedo, label)


def _decal(rng, u, v, width, height, kind, albedo, label):
    """Paint a flat rectangle of some pool texture into ``albedo`` and ``label``."""
    w, h = rng.uniform(0.7, 1.6), rng.uniform(0.6, 1.3)
    if kind == RUG:
        w, h = 1.4 * w, 1.4 * h
    u0 = rng.uniform(0, max(width - w, 0.1))
    v0 = rng.uniform(0, max(height - h, 0.1))
    here = (u > u0) & (u < u0 + w) & (v > v0) & (v < v0 + h)
    albedo[here] = _patterned(rng)(u, v)[here]
    label[here] = kind


def _add_furniture(hits, rng, origin, rays, room, wall):
    for _ in range(rng.integers(1, 3)):
        size = np.array([rng.uniform(0.6, 1.2), rng.uniform(0.8, 1.8), rng.uniform(0.4, 0.7)])
        place = np.array([rng.uniform(0.1, 0.9) * room[0], size[1] / 2, room[2] - size[2] / 2 - rng.uniform(0, 0.6)])
        _box(hits, origin, rays, place, size, rng.uniform(-0.2, 0.2), wall, CABINET)
    for _ in range(rng.integers(2, 5)):
        size = rng.uniform(0.25, 0.7, 3)
        place = np.array([rng.uniform(0.1, 0.9) * room[0], size[1] / 2, rng.uniform(0.4, 0.85) * room[2]])
        _box(hits, origin, rays, place, size, rng.uniform(0, np.pi), _patterned(rng), BOX)
    for _ in range(rng.integers(2, 5)):
        radius = rng.uniform(0.2, 0.45)
        place = np.array([rng.uniform(0.1, 0.9) * room[0], radius, rng.uniform(0.4, 0.85) * room[2]])
        _ball(hits, origin, rays, place, radius, _patterned(rng), BALL)


def _box(hits, origin, rays, centre, size, yaw, texture, label):
    """Slab test in the box's own frame."""
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    start, direction = (origin - centre) @ turn, rays @ turn
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = (-size / 2 - start) / direction, (size / 2 - start) / direction
    enter, leave = np.minimum(low, high), np.maximum(low, high)
    axis = enter.argmax(1)
    t = enter.max(1)
    hit = (t < leave.min(1)) & (t > 0)
    normal = np.zeros_like(rays)
    normal[np.arange(len(rays)), axis] = -np.sign(direction[np.arange(len(rays)), axis])
    point = start + np.where(hit, t, 0)[:, None] * direction
    u = np.where(axis == 0, point[:, 2], point[:, 0])
    v = np.where(axis == 1, point[:, 2], point[:, 1])
    hits.put(hit, t, normal @ turn.T, texture(u, v), label)


def _ball(hits, origin, rays, centre, radius, texture, label):
    to_centre = centre - origin
    along = rays @ to_centre
    discriminant = along**2 - to_centre @ to_centre + radius**2
    hit = discriminant > 0
    t = along - np.sqrt(np.where(hit, discriminant, 0))
    normal = (origin + t[:, None] * rays - centre) / radius
    u = np.arctan2(normal[:, 0], normal[:, 2]) * radius
    v = np.arcsin(np.clip(normal[:, 1], -1, 1)) * radius
    hits.put(hit, t, normal, texture(u, v), label)


def _plain(rng: np.random.Generator) -> Texture:
    """One faintly mottled colour: walls, floors, cabinets."""
    colour, phase = rng.uniform(0.25, 0.9, 3), rng.uniform(0, 6, 4)

    def texture(u, v):
        mottle = 0.03 * np.sin(9 * u + phase[0]) * np.sin(7 * v + phase[1])
        mottle += 0.02 * np.sin(31 * u + phase[2]) * np.sin(37 * v + phase[3])
        return np.clip(colour + mottle[:, None], 0, 1)

    return texture


def _patterned(rng: np.random.Generator) -> Texture:
    """The common pool of posters, rugs, boxes and balls: stripes, checks, dots or waves in two colours."""
    first, second = rng.uniform(0.0, 0.4, 3), rng.uniform(0.5, 1.0, 3)
    kind, pitch, angle = rng.integers(4), rng.uniform(0.1, 0.3), rng.uniform(0, np.pi)

    def texture(u, v):
        x = (u * np.cos(angle) + v * np.sin(angle)) / pitch
        y = (v * np.cos(angle) - u * np.sin(angle)) / pitch
        if kind == 0:
            on = x % 1 < 0.5
        elif kind == 1:
            on = (x % 1 < 0.5) ^ (y % 1 < 0.5)
        elif kind == 2:
            on = (x % 1 - 0.5) ** 2 + (y % 1 - 0.5) ** 2 < 0.1
        else:
            on = (x + 0.3 * np.sin(4 * y)) % 1 < 0.5
        return np.where(on[:, None], first, second)

    return texture


def _photograph(hits, rng, rays, H, W) -> np.ndarray:
    """Lambert shading under one lamp, a colour cast, blur and sensor noise."""
    lamp = rng.normal(size=3) * [1, 0.3, 1] + [0, 1.0, -0.5]
    lamp /= np.linalg.norm(lamp)
    shade = 0.55 + 0.45 * np.clip(hits.normal @ lamp, 0, 1)
    image = hits.albedo * shade[:, None] * rng.uniform(0.5, 1.05) * rng.uniform(0.85, 1.15, 3)
    image = cv2.GaussianBlur(image.reshape(H, W, 3), (3, 3), 0)
    image += rng.normal(0, rng.uniform(0.02, 0.06), image.shape)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8)


def _measure(hits, rng, rays, forward, H, W) -> np.ndarray:
    """Depth along the optical axis as a structured-light sensor sees it.

    Axial noise 1.2 + 1.9 (z - 0.4)^2 mm (Nguyen, Izadi and Lovell, 2012); no reading beyond the range,
    at grazing angles, on dark surfaces and at the edges of nearer objects.
    """
    z = (hits.t * (rays @ forward)).reshape(H, W)
    noisy = z + rng.normal(size=z.shape) * (0.0012 + 0.0019 * (z - 0.4) ** 2)
    lost = (noisy < RANGE[0]) | (noisy > RANGE[1])
    grazing = np.abs((rays * hits.normal).sum(1)).reshape(H, W) < GRAZING
    dark = hits.albedo.mean(1).reshape(H, W) < 0.12
    edge = cv2.dilate((np.abs(cv2.Laplacian(z, cv2.CV_64F)) > 0.25).astype(np.uint8), np.ones((1, 3))) > 0
    speckle = rng.random(z.shape)
    lost |= (grazing & (speckle < 0.7)) | (dark & (speckle < 0.5)) | (edge & (speckle < 0.8)) | (speckle < 0.005)
    return np.where(lost, 0, np.round(noisy * 1000)).astype(np.uint16)
