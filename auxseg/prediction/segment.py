"""Segments one scan, a batch of slices at a time, at its own resolution."""

from __future__ import annotations

import dataclasses
import os
import tempfile

import numpy as np

from auxseg.base import disk_arrays, progress
from auxseg.base.classes import CLASS_NAMES, NODULE, classes_of_masks, value_of
from auxseg.base.errors import InputError
from auxseg.ct import arrays, body, checks, scans, writers
from auxseg.ct.checks import ERROR, INFO, WARNING, Finding
from auxseg.ct.geometry import from_canonical
from auxseg.datasets import scale as scales
from auxseg.prediction import lungs, measure, nodules, plausible
from auxseg.prediction.batches import find_form, read_batches
from auxseg.prediction.box import Box, load_box
from auxseg.prediction.view import create_view
from auxseg.runs.masks import create_decide, predict_probabilities
from auxseg.runs.networks import load_network
from auxseg.scoring import components, operating_point

NUM_CHECKED, NUM_PANELS = 16, 12


@dataclasses.dataclass(frozen=True)
class Options:
    """How to segment.

    Attributes:
        slices: 'all', 'middle' (slice n // 2, the paper's), or a 0-based index from inferior to superior.
        batch_size: slices that the network takes at once.
        flip: test-time augmentation: averages with the mirrored slice, left and right exchanged back.
        clean: clean-up of the mask.
        probabilities: keep the probabilities of each class.
        force: segment also what does not look like a chest, and keep a mask without lungs.
        nodule_threshold: least share of the nodule's probability in it and the most likely other class; 0.5
            is the most likely class.
        false_per_scan: false nodules that the second look may leave in a scan on average (`nodules`).
        clean_lungs: clean the lungs of a whole scan in three dimensions (`lungs`), where its spacing is known.
        tuned_on: nodules that the threshold was chosen on, or None.
    """

    slices: str | int = "all"
    batch_size: int = 8
    flip: bool = False
    clean: components.CleanUp = components.CleanUp()
    probabilities: bool = False
    force: bool = False
    nodule_threshold: float = 0.5
    clean_lungs: bool = True
    false_per_scan: float = 1.0
    tuned_on: int | None = None

    def __post_init__(self):
        operating_point.Decision(self.nodule_threshold)
        nodules.check_rate(self.false_per_scan)
        if not 1 <= self.batch_size <= 1024:
            raise InputError(f"--batch_size: got {self.batch_size}, expected 1 to 1024")
        if self.slices not in ("all", "middle") and not str(self.slices).isdigit():
            raise InputError(f"--slice: got {self.slices!r}, expected 'all', 'middle' or an index from 0")


@dataclasses.dataclass(frozen=True, repr=False)
class Segmentation:
    """What was found in one scan.

    Attributes:
        scan: the scan.
        start, stop: the slices segmented, canonical.
        masks: uint8 [stop - start, H, W], canonical; the values are the places in `classes`.
        probabilities: float32 [C, stop - start, H, W], canonical, or None.
        findings: about the scan and the mask.
        changed: voxels that each step of the clean-up changed; of 'clean_lungs' mL by what was done.
        measurements: one dict a lung and nodule.
        pictures: JPEGs of the slices.
        found: what the two looks at nodules found (`nodules.Found`), in the rows and columns of `box`; or None.
        box: `ct.body.Box` that the networks saw.
        classes: names by mask value (`classes_of_masks`).
    """

    scan: scans.Scan
    start: int
    stop: int
    masks: np.ndarray
    probabilities: np.ndarray | None
    findings: tuple[Finding, ...]
    changed: dict
    measurements: tuple[dict, ...]
    pictures: tuple[bytes, ...]
    found: nodules.Found | None
    box: body.Box
    classes: tuple[str, ...] = CLASS_NAMES

    def __repr__(self):
        nodules = sum(row["structure"].startswith("nodule") for row in self.measurements)
        lungs = [
            f"{row['structure'].replace('_', ' ')} {row['volume_ml']:.0f} mL"
            for row in self.measurements
            if not row["structure"].startswith("nodule") and np.isfinite(row["volume_ml"])
        ]
        warnings = [f"warning: {one.text}" for one in self.findings if one.severity != INFO]
        size = "x".join(map(str, self.masks.shape))
        return f"<Segmentation of {self.scan.name}, {size}: {', '.join([*lungs, f'nodules {nodules}', *warnings])}>"

    @property
    def geometry(self):
        """Geometry of `stored_masks`: the scan's own, of the slices segmented."""
        return writers.crop_geometry(self.scan, self.start, self.stop)

    @property
    def stored_masks(self):
        """The mask with the axes of the file, uint8 [z, y, x]; a view."""
        return from_canonical(self.masks, self.scan.orientation)


def segment(
    image, network=None, *, spacing_mm=None, direction=None, options=Options(), series=None, second=None
):
    """Returns the `Segmentation` of one scan, with its arrays in memory.

    Args:
        image: path of the scan, in any form that `scans.find_scans` knows; or the scan itself: an array in HU
            [slices, rows, columns], an image of SimpleITK or of nibabel (`arrays.open_array`).
        network: a run's folder, a bundle's, or what `load_network` or `load_box` gave; several in a list are
            averaged. None: those in the box.
        spacing_mm: of an array, in the order of its axes; without it nothing is cleaned or measured in mm.
        direction: of an array, 3x3 as of SimpleITK; None: slices count from the feet to the head, rows from front to
            back, columns from the patient's right to the left.
        options: `Options`.
        series: SeriesInstanceUID or SeriesNumber of a DICOM study, or None for the chest CT.
        second: as in `segment_scan`; the box has its own.

    Raises:
        InputError: no scan or several there, or it cannot be used; the line says why and what to do.
    """
    chosen, looks = _choose_networks(network)
    second = second or looks
    if not isinstance(image, (str, os.PathLike)):
        scan = arrays.open_array(image, spacing_mm=spacing_mm, direction=direction)
        return segment_scan(scan, chosen, options, None, second=second)
    if spacing_mm is not None or direction is not None:
        raise InputError(f"spacing_mm, direction: given with {image}, which has its own; leave them out")
    found = scans.find_scans(image)
    if len(found) != 1:
        names = ", ".join(source.name for source in found[:5])
        raise InputError(f"input: {image} holds {len(found)} scans ({names}, ...), expected one")
    with tempfile.TemporaryDirectory(prefix="auxseg-") as scratch:
        scan = scans.open_scan(found[0], scratch, series=series, force=options.force)
        return segment_scan(scan, chosen, options, None, second=second)


def _choose_networks(network):
    """Returns (`networks.Network`s, the box's `nodules.Networks` or None) of what `segment` takes."""
    if network is None:
        network = load_box()
    if isinstance(network, Box):
        return [network.lungs], network.nodules
    given = network if isinstance(network, (list, tuple)) else [network]
    return [load_network(one) if isinstance(one, (str, os.PathLike)) else one for one in given], None


def _create_array(scratch, name, dtype, shape):
    """Returns an array of zeros: in a file of the folder `scratch`, or in memory where that is None."""
    return (
        np.zeros(shape, dtype)
        if scratch is None
        else disk_arrays.create_array(scratch / f"{name}.npy", dtype, shape)
    )


def segment_scan(scan, networks, options, scratch, *, second=None, show_progress=False):
    """Returns the `Segmentation` of an open scan; its arrays lie on disk, in `scratch`, or in memory.

    Args:
        scan: `scans.Scan`.
        networks: `networks.Network`s, at least one.
        options: `Options`.
        scratch: folder for temporary files, which must outlive the result; None: all in memory.
        second: `nodules.Networks` that find the nodules in the lungs of a whole scan, or None: those that `networks`
            mark.
        show_progress: draw a bar.

    Raises:
        InputError: the scan's values are no HU, it shows no chest, or no lung was found in it.
    """
    classes = find_classes(networks)
    if not options.force:
        checks.raise_errors(scan.findings, scan.path)
    opened = checks.accept_errors(scan.findings) if options.force else scan.findings
    findings = [*opened, *_network_findings(networks), *_threshold_findings(options), *_check(scan, options)]
    start, stop = choose_slices(scan, options.slices)
    shape = (stop - start, *scan.geometry.shape_zyx[1:])
    view = create_view(scan, networks)
    parts = _create_array(scratch, "parts", np.uint8, (stop - start, *view.box.size_yx))
    kept = (len(classes), *shape)
    probabilities = (
        _create_array(scratch, "probabilities", np.float32, kept) if options.probabilities else None
    )
    checks_lungs = options.slices == "all" and _is_cleanable(scan, networks)
    cleans = options.clean_lungs and checks_lungs
    volume = _create_array(scratch, "volume", np.int16, parts.shape) if checks_lungs else None
    pictures = []
    batch_size = min(options.batch_size, stop - start)
    forms = [find_form(one, scan, view) for one in networks]
    findings += _scale_findings(networks, forms)
    batches = read_batches(scan, start, stop, batch_size, set(forms), view, pictures=pictures, volume=volume)
    if show_progress:
        total = -(-(stop - start) // batch_size)
        batches = progress.track(batches, total=total, label=f"segmenting {scan.name}", unit="batch")
    decide = create_decide(
        view.field,
        nodule_threshold=options.nodule_threshold,
        nodule=value_of("nodule", classes),
        probabilities=options.probabilities,
    )
    for first, mask, probability in _predict_batches(batches, networks, forms, options.flip, decide):
        parts[first - start : first - start + len(mask)] = mask
        if probabilities is not None:
            pasted = view.paste_probabilities(probability)
            probabilities[:, first - start : first - start + len(mask)] = pasted
    pixel_mm2 = float(np.prod(scan.geometry.spacing_zyx_mm[1:])) if scan.has_geometry else np.nan
    # A least size in pixels is of the network's image, whose pixels are larger than the scan's.
    scale = view.field.padded_yx[1] / forms[0].shown_yx[1]
    clean = dataclasses.replace(options.clean, min_nodule_px=options.clean.min_nodule_px * scale)
    changed = components.clean(parts, clean, pixel_mm2=pixel_mm2, classes=classes)
    findings += [
        Finding(INFO, "clean-up", f"{name}: {count} voxels changed") for name, count in changed.items()
    ]
    if cleans:
        report = lungs.clean(parts, volume, scan.geometry.spacing_zyx_mm, view.shown_yx)
        changed["clean_lungs"] = dataclasses.asdict(report)
        findings += [Finding(INFO, "lungs", lungs.describe(report))]
    if checks_lungs:
        findings += plausible.check_lungs(parts, volume, _voxel_ml(scan))
        spacing_mm = scan.geometry.spacing_zyx_mm
        outside_ml = (
            report.outside_ml if cleans else lungs.measure_outside(parts, volume, spacing_mm, view.shown_yx)
        )
        findings += plausible.check_outside(parts, outside_ml, _voxel_ml(scan), left_out=cleans)
    found = None
    if second is not None:
        found = _look_for_nodules(parts, volume, scan, second, options) if cleans else None
        findings.append(_describe_nodules(found, second))
        if found is not None:
            findings += plausible.check_thickness(spacing_mm[0])
            findings += plausible.check_sharpness(found.sharpened)
    volume = None  # its room in memory is for the masks
    masks = _paste_all(scratch, parts, view)
    if _shows_lungs(networks):
        findings += check_masks(masks, whole=options.slices == "all", classes=classes)
    if not options.force:
        checks.raise_errors(findings, scan.path)
    probability_of = found and _probability_of(found, view.box, masks.shape[1:])
    rows = measure.measure(masks, scan, start, probability_of, classes=classes)
    if options.slices == "all":
        findings += plausible.check_nodules(sum(map(measure.is_nodule, rows)))
    return Segmentation(scan, start, stop, masks, probabilities, tuple(findings), changed, tuple(rows),
                        tuple(pictures), found, view.box, classes)  # fmt: skip


def _look_for_nodules(parts, volume, scan, second, options):
    """Marks the nodules that the two looks find in clean lungs, in place; returns the `nodules.Found`."""
    spacing_mm, rate = scan.geometry.spacing_zyx_mm, options.false_per_scan
    found = nodules.find_nodules(volume, parts, spacing_mm, second, false_per_scan=rate)
    for part, numbers in zip(parts, found.mask, strict=True):
        part[numbers > 0] = NODULE
    return found


def _probability_of(found, box, shape_yx):
    """Returns the function by which `measure` asks for the probability of a nodule."""
    kept = [one["probability"] for one in found.candidates if one["kept"]]

    def probability_of(index, chosen):
        numbers = box.paste(found.mask[index], shape_yx)[chosen]
        # Of two that touch the more probable one, whose number is lower.
        return kept[numbers[numbers > 0].min() - 1] if numbers.any() else np.nan

    return probability_of


def _describe_nodules(found, second):
    if found is None:
        text = "nodules were not looked for: that takes a whole scan of known spacing, and --clean_lungs"
        return Finding(WARNING, "no-nodules", text)
    kept = sum(one["kept"] for one in found.candidates)
    text = f"{kept} of {len(found.candidates)} candidates kept, with a probability of {found.least_probability:.2f} or more"
    few = operating_point.describe_few(second.about.get("operating_points_nodules"))
    text += f"; {few}" if few else ""
    return Finding(INFO, "nodules", text)


def _is_cleanable(scan, networks):
    """Returns whether the lungs can be cleaned in 3D: millimetres are known, and no 'nodule' is the airway."""
    return (
        scan.has_geometry
        and scan.num_slices > 1
        and all(one.labels == "anatomy" for one in networks)
        and _shows_lungs(networks)
        and find_classes(networks) == CLASS_NAMES
    )


def _shows_lungs(networks):
    return {"left_lung", "right_lung"} <= set(networks[0].classes)


def find_classes(networks):
    """Returns the names by value of the masks that networks make together.

    Raises:
        InputError: they have different classes.
    """
    classes = networks[0].classes
    if any(one.classes != classes for one in networks):
        listed = "; ".join(f"{one.name}: {', '.join(one.classes)}" for one in networks)
        raise InputError(f"--workdir: networks of different classes cannot be averaged ({listed})")
    return classes_of_masks(classes)


def _voxel_ml(scan):
    return float(np.prod(scan.geometry.spacing_zyx_mm)) / 1000.0


def _paste_all(scratch, parts, view):
    """Returns the masks of whole slices, uint8 [n, H, W] on disk, from those of the view's box."""
    if view.box.size_yx == view.shape_yx and view.box.start_yx == (0, 0):
        return parts
    shape = (len(parts), *view.shape_yx)
    masks = _create_array(scratch, "masks", np.uint8, shape)
    for index, part in enumerate(parts):
        masks[index] = view.box.paste(part, view.shape_yx)
        disk_arrays.release(part)
        disk_arrays.release(masks[index])
    return masks


def choose_slices(scan, slices):
    """Returns (start, stop) of the canonical slices that an option names.

    Raises:
        InputError: the index is outside the scan.
    """
    if slices == "all":
        return 0, scan.num_slices
    index = scan.num_slices // 2 if slices == "middle" else int(slices)
    if index >= scan.num_slices:
        raise InputError(f"--slice: got {index}, expected 0 to {scan.num_slices - 1}, in {scan.path}")
    return index, index + 1


def _network_findings(networks):
    if all(one.labels == "anatomy" for one in networks):
        return []
    text = (
        "the network was trained with the airway in place of nodules (data.labels): its 'nodule' is "
        "the airway"
    )
    return [Finding(WARNING, "labels", text)]


def _scale_findings(networks, forms):
    """Returns at which scale networks see the scan, where that is fixed, and what is doubtful about it."""
    findings = []
    for one, form in zip(networks, forms, strict=True):
        if one.doubt:
            findings.append(Finding(WARNING, "scale", f"{one.name}: {one.doubt}"))
        if one.scale is not None:
            size = "x".join(map(str, form.shown_yx))
            words = f"{one.name}: slices are seen at {scales.describe(one.scale)}, {size} pixels"
            findings.append(Finding(INFO, "scale", words))
    return findings


def _threshold_findings(options):
    few = operating_point.describe_few(options.tuned_on)
    return [Finding(WARNING, "threshold", few)] if few else []


def _check(scan, options):
    """Returns the findings about a sample of slices; stops at the first error."""
    indices = checks.pick_slices(scan.num_slices, NUM_CHECKED)
    images = np.concatenate([scan.read(int(k), int(k) + 1) for k in indices])
    spacing = scan.geometry.spacing_zyx_mm[1:] if scan.has_geometry else None
    findings = checks.check_scan(images, spacing_yx_mm=spacing, native_dtype=scan.dtype)
    findings = checks.without_known(findings, scan.findings)
    if options.force:
        return checks.accept_errors(findings)
    checks.raise_errors(findings, scan.path)
    return findings


def _predict_batches(batches, networks, forms, flip, decide):
    """Yields (first slice, masks uint8 [n, H, W], probabilities [C, n, H, W] or None).

    One batch is computed while the one before it is brought to the slices' size.
    """
    before = None
    for first, inputs, count in batches:
        finish = decide(
            [
                _shown(predict_probabilities(one, inputs[form], flip=flip), form)
                for one, form in zip(networks, forms, strict=True)
            ]
        )
        if before is not None:
            yield _finish(*before)
        before = first, count, finish
    yield _finish(*before)


def _shown(probabilities, form):
    """Returns what the field fills of probabilities [N, H, W, C]."""
    rows, columns = form.shown_yx
    return probabilities if form.filled_yx is None else probabilities[:, :rows, :columns]


def _finish(first, count, finish):
    masks, probabilities = finish()
    if probabilities is not None:
        probabilities = np.moveaxis(probabilities[:count], -1, 0)
    return first, masks[:count], probabilities


def check_masks(masks, *, whole, classes=CLASS_NAMES):
    """Returns the findings about a mask: no lung at all, or left and right on the wrong sides.

    Args:
        masks: uint8 [D, H, W], canonical.
        whole: whether that is a whole scan, in which a lung must be.
        classes: names by mask value, both lungs among them.
    """
    columns = np.arange(masks.shape[2])
    left, right = classes.index("left_lung"), classes.index("right_lung")
    sums = {value: np.zeros(2) for value in (left, right)}
    for mask in masks:
        for value, total in sums.items():
            profile = (mask == value).sum(0)
            total += (profile.sum(), (profile * columns).sum())
    if not sums[left][0] and not sums[right][0]:
        text = "no lung was found; the network is untrained, or the scan unlike what it has seen"
        return [
            Finding(
                ERROR if whole else WARNING,
                "no-lung",
                f"{text} (--force keeps the empty mask)" if whole else text,
            )
        ]
    missing = [classes[value] for value, total in sums.items() if not total[0]]
    if missing:
        return [Finding(WARNING, "one-lung", f"no {missing[0].replace('_', ' ')} was found")]
    if sums[left][1] / sums[left][0] < sums[right][1] / sums[right][0]:
        text = (
            "the left lung lies to the right of the right lung: the scan may be mirrored; check its "
            "orientation"
        )
        return [Finding(WARNING, "sides", text)]
    return []
