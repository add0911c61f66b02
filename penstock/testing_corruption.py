"""Scenes drawn from a seed with known truth, and id maps spoiled as those of projected meshes are. Public, seeded, offline.

    image, truth = make_scene(7)
    coarse = corrupt(truth, seed=7, strength=0.5)

Equal arguments give equal arrays. A proposer that knows the truth is in `penstock.testing_simulated`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from penstock.errors import UsageError
from penstock.readers.pth import save_id_map

__all__ = ["DEFAULT_KINDS", "Kind", "MadeScenes", "bent", "blob", "corrupt", "make_scene", "make_scenes_folder"]

Kind = Literal["shift", "bend", "mesh", "stairs", "bleed", "holes", "swap"]
"""shift: the whole map moved by 1-6 px; bend: outlines bent smoothly; mesh: outlines become the polygons of a coarse
mesh; stairs: a smaller raster stretched to the nearest pixel; bleed: some objects spill over one side of their outline,
and the picture's edge has no id; holes: spots of 0 or of the largest object's id; swap: two objects exchange their ids."""

DEFAULT_KINDS: tuple[Kind, ...] = ("shift", "bend", "mesh", "stairs", "bleed", "holes")
"""All but swap, which no single frame can show to be wrong."""

_PAN = 4
"""Pixels that the camera moves from frame to frame."""


def corrupt(ids: np.ndarray, seed: int, *, strength: float = 0.5, kinds: Sequence[Kind] = DEFAULT_KINDS) -> np.ndarray:
    """A spoiled copy of an id map.

    Args:
        ids: (H, W) integers.
        seed: equal seeds and arguments give equal maps. Each kind draws from a stream of its own: leaving one out does
            not change what the others do.
        strength: 0 changes nothing, 1 is as bad as it gets. Lengths are in pixels and do not grow with the map.
        kinds: applied in this order.

    Returns:
        (H, W) of the same type. No id is new, but 0.

    Raises:
        UsageError: a strength outside 0..1, or no such kind.
    """
    if not 0 <= strength <= 1:
        raise UsageError(f"strength: expected 0..1, got {strength!r}")
    spoiled = ids.copy()
    for kind in kinds:
        if kind not in _SPOILERS:
            raise UsageError(f"kinds: expected some of {', '.join(get_args(Kind))}, got {kind!r}")
        if strength > 0:
            spoiled = _SPOILERS[kind](np.random.default_rng([seed, list(_SPOILERS).index(kind)]), spoiled, strength)
    return spoiled


def make_scene(
    seed: int, size_hw: tuple[int, int] = (240, 320), objects: int = 10, *, frame: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A picture of a room and its truth: walls and floor, cut by objects in front of them, some thin, some with holes.

    Args:
        seed: of the scene; equal arguments give equal arrays.
        size_hw: height and width, 16 or more each.
        objects: things in the picture, about, besides walls and floor.
        frame: the camera moves to the right from frame to frame, and starts anew after the picture's width; ids stay.

    Returns:
        (H, W, 3) uint8 RGB: regions of different colours with noise, stripes and shading, edges a pixel soft;
        (H, W) uint16, ids from 1, and 0 at a few spots that nobody labelled.

    Raises:
        UsageError: a size below 16.
    """
    if min(size_hw) < 16:
        raise UsageError(f"size_hw: expected 16 or more each, got {size_hw}")
    height, width = size_hw
    numbers = _layout(np.random.default_rng([seed, 11]), (height, 2 * width), 2 * objects)
    picture = _paint(np.random.default_rng([seed, 12]), numbers)
    picture = np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(0.7)))
    left = _PAN * frame % width
    window = np.s_[:, left : left + width]
    grain = np.random.default_rng([seed, 13, frame]).normal(0, 2, (height, width, 3))
    image = np.clip(picture[window] + grain, 0, 255).astype(np.uint8)
    return image, numbers[window].astype(np.uint16)


@dataclass(frozen=True, kw_only=True)
class MadeScenes:
    """What `make_scenes_folder` wrote."""

    keys: tuple[str, ...]
    """`<scene>/<stem>`, in order."""
    truths: dict[str, np.ndarray]
    """Key -> (H, W) uint16."""


def make_scenes_folder(
    root: Path | str,
    *,
    scenes: int = 2,
    frames: int = 3,
    size_hw: tuple[int, int] = (120, 160),
    objects: int = 6,
    seed: int = 0,
    strength: float = 0.5,
    kinds: Sequence[Kind] = DEFAULT_KINDS,
) -> MadeScenes:
    """Scenes as the refiner's seed expects them: `scene000/images/frame_000000.jpg`, `scene000/obj_ids/frame_000000.jpg.pth`.

    Args:
        root: is made where it is missing.
        scenes: how many; `scene000`, `scene001`, ...
        frames: of each.
        size_hw: of every frame.
        objects: as in `make_scene`.
        seed: equal arguments give equal files.
        strength: of the damage.
        kinds: of damage; each frame is spoiled in its own way.

    Returns:
        Keys and truth.

    Raises:
        UsageError: as `make_scene` and `corrupt`.
    """
    truths = {}
    for scene in range(scenes):
        folder = Path(root) / f"scene{scene:03d}"
        for name in ("images", "obj_ids"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for frame in range(frames):
            image, truth = make_scene(seed * 1009 + scene, size_hw, objects, frame=frame)
            coarse = corrupt(truth, (seed * 1009 + scene) * 1013 + frame, strength=strength, kinds=kinds)
            name = f"frame_{frame:06d}"
            Image.fromarray(image).save(folder / "images" / f"{name}.jpg", quality=92)
            (folder / "obj_ids" / f"{name}.jpg.pth").write_bytes(save_id_map(coarse, "int32"))
            truths[f"{folder.name}/{name}"] = truth
    return MadeScenes(keys=tuple(truths), truths=truths)


def bent(rng: np.random.Generator, ids: np.ndarray, pixels: float, *, wave: int = 16) -> np.ndarray:
    """The map, its outlines bent.

    Args:
        rng: decides how.
        ids: (H, W) of any type.
        pixels: mean length of the displacement, about.
        wave: pixels from one bend to the next.

    Returns:
        (H, W) of the same type.
    """
    height, width = ids.shape
    small = (-(-height // wave) + 1, -(-width // wave) + 1)
    moves = []
    for _ in range(2):
        field = Image.fromarray(rng.normal(0, pixels, small).astype(np.float32))
        moves.append(np.asarray(field.resize((width, height), Image.Resampling.BICUBIC)))
    rows, columns = _places(ids.shape)
    return _looked_up(ids, rows + moves[0], columns + moves[1])


def blob(rng: np.random.Generator, size_hw: tuple[int, int], radius: float) -> np.ndarray:
    """(H, W) bool: a bent disc of about this radius somewhere; at least one pixel."""
    height, width = size_hw
    y, x = int(rng.integers(height)), int(rng.integers(width))
    rows, columns = _places(size_hw)
    lumpy = 1 + 0.3 * np.sin(np.arctan2(rows - y, columns - x) * rng.integers(2, 5) + rng.random() * 6)
    mask: np.ndarray = np.hypot(rows - y, columns - x) < radius * lumpy
    mask[y, x] = True
    return mask


def _places(size_hw: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of every pixel, (H, W) each."""
    rows, columns = np.meshgrid(np.arange(size_hw[0]), np.arange(size_hw[1]), indexing="ij")
    return rows, columns


def _looked_up(ids: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The map at these places, rounded; beyond its sides the pixel at the side."""
    height, width = ids.shape
    down, right = np.rint(rows).astype(np.intp), np.rint(columns).astype(np.intp)
    found: np.ndarray = ids[down.clip(0, height - 1), right.clip(0, width - 1)]
    return found


def _direction(rng: np.random.Generator, length: float) -> tuple[int, int]:
    angle = rng.random() * 2 * np.pi
    return round(length * float(np.sin(angle))), round(length * float(np.cos(angle)))


def _shift(rng: np.random.Generator, ids: np.ndarray, strength: float) -> np.ndarray:
    down, right = _direction(rng, rng.uniform(0.5, 1) * 6 * strength)
    rows, columns = _places(ids.shape)
    return _looked_up(ids, rows - down, columns - right)


def _bend(rng: np.random.Generator, ids: np.ndarray, strength: float) -> np.ndarray:
    return bent(rng, ids, 3 * strength)


def _mesh(rng: np.random.Generator, ids: np.ndarray, strength: float) -> np.ndarray:
    """Every pixel takes the id of the nearest corner of a grid whose corners are scattered."""
    cell = 2 + round(6 * strength)
    height, width = ids.shape
    grid = (-(-height // cell) + 2, -(-width // cell) + 2)
    corners = (np.stack(_places(grid), -1) - 1 + rng.random((*grid, 2))) * cell
    rows, columns = _places(ids.shape)
    nearest = np.full(ids.shape, np.inf)
    places = np.zeros((2, *ids.shape))
    for down in (0, 1, 2):
        for right in (0, 1, 2):
            corner = corners[rows // cell + down, columns // cell + right]
            distance = np.hypot(corner[..., 0] - rows, corner[..., 1] - columns)
            closer = distance < nearest
            nearest[closer] = distance[closer]
            places[:, closer] = corner[closer].T
    return _looked_up(ids, places[0], places[1])


def _stairs(rng: np.random.Generator, ids: np.ndarray, strength: float) -> np.ndarray:
    block = 1 + round(3 * strength)
    offset = int(rng.integers(block))
    rows, columns = _places(ids.shape)
    return _looked_up(ids, rows // block * block + offset, columns // block * block + offset)


def _bleed(rng: np.random.Generator, ids: np.ndarray, strength: float) -> np.ndarray:
    present = np.unique(ids[ids > 0])
    spilling = present[rng.random(len(present)) < 0.4]
    down, right = _direction(rng, 4 * strength)
    rows, columns = _places(ids.shape)
    spoiled = ids.copy()
    steps = max(abs(down), abs(right))
    for step in range(1, steps + 1):
        source = _looked_up(ids, rows - down * step / steps, columns - right * step / steps)
        over = np.isin(source, spilling)
        spoiled[over] = source[over]
    margin = round(2 * strength)
    side = int(rng.integers(4))
    np.rot90(spoiled, side)[:margin] = 0
    return spoiled


def _holes(rng: np.random.Generator, ids: np.ndarray, strength: float) -> np.ndarray:
    """About 5 % of the map at full strength, half of the spots of the largest object's id."""
    present, pixels = np.unique(ids, return_counts=True)
    behind = present[int(pixels.argmax())]
    spoiled = ids.copy()
    wanted, done = 0.05 * strength * ids.size, 0
    size_hw = (ids.shape[0], ids.shape[1])
    while done < wanted:
        spot = blob(rng, size_hw, rng.uniform(1.5, 1.5 + 0.03 * max(size_hw)))
        spoiled[spot] = behind if rng.random() < 0.5 else 0
        done += int(spot.sum())
    return spoiled


def _swap(rng: np.random.Generator, ids: np.ndarray, strength: float) -> np.ndarray:
    """With a chance of `strength`."""
    present = np.unique(ids[ids > 0])
    if len(present) < 2 or rng.random() >= strength:
        return ids
    one, other = rng.choice(present, 2, replace=False)
    spoiled = ids.copy()
    spoiled[ids == one], spoiled[ids == other] = other, one
    return spoiled


_SPOILERS: dict[str, Callable[[np.random.Generator, np.ndarray, float], np.ndarray]] = {
    "shift": _shift,
    "bend": _bend,
    "mesh": _mesh,
    "stairs": _stairs,
    "bleed": _bleed,
    "holes": _holes,
    "swap": _swap,
}


def _layout(rng: np.random.Generator, size_hw: tuple[int, int], objects: int) -> np.ndarray:
    """(H, W) int32 ids: walls and floor 1..4, then things, back to front, then a few spots of 0."""
    height, width = size_hw
    canvas = Image.new("I", (width, height), 1)
    draw = ImageDraw.Draw(canvas)
    horizon, corner = int(height * rng.uniform(0.55, 0.75)), int(width * rng.uniform(0.2, 0.35))
    draw.rectangle((corner, 0, width, horizon), fill=2)
    draw.rectangle((int(width * rng.uniform(0.5, 0.7)), 0, width, horizon), fill=3)
    draw.polygon([(0, height), (corner, horizon), (width, horizon), (width, height)], fill=4)
    for number in range(objects):
        _draw_thing(rng, draw, size_hw, 5 + number, number % 5)
    for _ in range(3):
        x, y, radius = rng.integers(width), rng.integers(height), rng.uniform(1, 0.02 * height + 1)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=0)
    return np.array(canvas, np.int32)


def _draw_thing(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, size_hw: tuple[int, int], number: int, shape: int
) -> None:
    """An ellipse, a polygon, a box with a window, a thin pole, or a ring; a window shows the wall behind."""
    height, width = size_hw
    x, y = int(rng.integers(width)), int(height * rng.uniform(0.1, 0.95))
    across, down = (max(3, int(height * rng.uniform(0.06, 0.22))) for _ in range(2))
    frame = (x - across, y - down, x + across, y + down)
    if shape == 0:
        draw.ellipse(frame, fill=number)
    elif shape == 1:
        angles = np.sort(rng.random(6)) * 2 * np.pi
        corners = [(x + across * float(np.cos(a)), y + down * float(np.sin(a))) for a in angles]
        draw.polygon(corners, fill=number)
    elif shape == 2:
        draw.rectangle(frame, fill=number)
        draw.rectangle((x - across // 2, y - down // 2, x + across // 2, y), fill=1 + int(rng.integers(3)))
    elif shape == 3:
        draw.line((x, y - 2 * down, x + across // 3, y + 2 * down), fill=number, width=max(2, height // 80))
    else:
        draw.ellipse(frame, outline=number, width=max(2, min(across, down) // 3))


def _paint(rng: np.random.Generator, numbers: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8: each region its own colour, shading, noise; every third has stripes."""
    height, width = numbers.shape
    count = int(numbers.max()) + 1
    colours = rng.uniform(70, 185, (1, 3))
    while len(colours) < count:
        candidates = rng.uniform(70, 185, (3, 3))
        gaps = np.abs(candidates[:, None] - colours[None, -6:]).sum(-1).min(1)
        colours = np.concatenate([colours, candidates[[int(gaps.argmax())]]])
    rows, columns = _places(numbers.shape)
    picture = colours[numbers]
    slopes = rng.uniform(-25, 25, (count, 2))
    picture += (slopes[numbers] * np.stack([rows / height - 0.5, columns / width - 0.5], -1)).sum(-1)[..., None]
    waves = np.where(np.arange(count) % 3 == 0, rng.uniform(4, 12, count), 0)
    picture += (waves[numbers] * np.sign(np.sin((rows + columns) / rng.uniform(2, 4))))[..., None]
    picture += rng.normal(0, 1, picture.shape) * rng.uniform(1, 8, count)[numbers][..., None]
    painted: np.ndarray = np.clip(picture, 0, 255).astype(np.uint8)
    return painted
