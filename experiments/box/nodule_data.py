"""What the nodule look is trained and judged on: crops, nodule-free slices, whole scans; who trains which fold."""

import csv
import dataclasses
import pathlib
import tempfile

import numpy as np
import scipy.ndimage

from auxseg.ct import geometry as ct
from auxseg.ct import images as images_lib
from auxseg.ct import scans
from auxseg.datasets import crops as crops_lib
from auxseg.prediction import nodule_look, sharpness

NUM_FOLDS = 2
BOX, ALWAYS, TEST = -1, -1, -2
"""In place of a fold: the training for the box; of a patient: in every training, or in none."""
TEST_SHARE = 0.2
SPLIT_SEED = 20261128
READ_COMPLETELY = ("LIDC-IDRI-0001", "LIDC-IDRI-0314")
"""Scans whose every nodule four readers marked: what they did not mark there is no nodule."""
READ_FOR_MASS = ("Lung_Dx-A0001-L", "Lung_Dx-A0001-B", "Lung_Dx-A0002-B70f")
"""Scans of which only the mass is known; no network sees them."""
FOLD_OF_SCAN = {"LIDC-IDRI-0001": 0, "LIDC-IDRI-0314": 1}
"""The fold whose network never saw the patient; the other scans no network sees."""
MIDDLE_OF_SCAN = {"ID_0170": "LIDC-IDRI-0001"}
"""Middle slices of these scans, which train nothing."""
MIDDLE_SUBSETS = (0, 1, 2)
"""The middle slices are from these subsets of LUNA16, of mostly unknown patients."""
OUTSIDE_HU = -1000.0
"""The air around a body is below."""
TEST_FILE = pathlib.Path(__file__).with_name("test_patients.csv")


@dataclasses.dataclass(frozen=True)
class Volume:
    """Slices without a nodule to train on.

    Attributes:
        name: of the scan.
        hu: int16 or float32 [D, H, W].
        region: bool [D, H, W], where nodules are looked for.
        known: bool [D, H, W], False where it is not known whether there is a nodule.
    """

    name: str
    hu: np.ndarray
    region: np.ndarray
    known: np.ndarray


@dataclasses.dataclass(frozen=True)
class WholeScan:
    """A scan with its reference lungs and the nodules that are known of it.

    Attributes:
        name, geometry, hu int16 [D, H, W], lungs uint8 [D, H, W].
        nodules: float [n, 4]: x, y, z in mm (LPS) and the diameter.
        excluded: float [n, 4]: what is neither nodule nor not, the same way.
    """

    name: str
    geometry: ct.Geometry
    hu: np.ndarray
    lungs: np.ndarray
    nodules: np.ndarray
    excluded: np.ndarray


def draw_test_patients(crops):
    """Returns the patients of the test set, sorted; a function of `SPLIT_SEED`.

    Patients of the middle slices' subsets are left out: they may be in training through those slices.
    """
    free = sorted(set(crops.patient[~np.isin(crops.subset, MIDDLE_SUBSETS)].tolist()) - set(FOLD_OF_SCAN))
    generator = np.random.Generator(np.random.PCG64(SPLIT_SEED))
    return sorted(generator.permutation(free)[: round(TEST_SHARE * len(free))].tolist())


def read_test_patients(path=TEST_FILE):
    """Returns the committed test patients as a set."""
    with open(path, newline="") as file:
        return {row["patient"] for row in csv.DictReader(file)}


def assign_folds(crops, test):
    """Returns each slice's fold, int [N]: 0 or 1 held out by that fold, -1 in all trainings, -2 test.

    Patients of the middle slices' subsets train every network and judge none, but for those whose scan is known.
    """
    always = set(crops.patient[np.isin(crops.subset, MIDDLE_SUBSETS)].tolist()) - set(FOLD_OF_SCAN)
    patients = sorted(set(crops.patient.tolist()) - always - set(test) - set(FOLD_OF_SCAN))
    order = np.random.Generator(np.random.PCG64(SPLIT_SEED + 1)).permutation(patients).tolist()
    fold = {patient: place % NUM_FOLDS for place, patient in enumerate(order)} | FOLD_OF_SCAN
    fold |= dict.fromkeys(always, ALWAYS) | dict.fromkeys(test, TEST)
    return np.array([fold[patient] for patient in crops.patient], np.int32)


def training_rows(folds, fold):
    """Returns the slices that the network of a fold trains on, int [n]; of fold -1: of the network in the box."""
    return np.flatnonzero((folds != TEST) & ((folds != fold) | (fold == BOX)))


def find_sharpness(crops, rows):
    """Returns how sharp the crops of some slices are, a `sharpness.Known`: over their nodules, each measured as a scan."""
    names = sorted(set(crops.nodule[rows].tolist()))
    found = [measure_sharpness(crops, rows[crops.nodule[rows] == name]) for name in names]
    return sharpness.Known(*np.round(np.nanpercentile(found, (20.0, 50.0)), 2).tolist())


def measure_sharpness(crops, rows):
    """Returns how sharp the slices of a nodule are, in HU; NaN where they show no air of the lungs."""
    images = [crops.image_hu(row) for row in rows]
    spacing_yx_mm = (float(crops.spacing_mm[rows[0]]),) * 2
    return sharpness.measure(images.__getitem__, find_air(images), spacing_yx_mm).sharpness_hu()


def find_air(images):
    """Returns where slices of crops [H, W] in HU may show lung, bool [D, H, W]."""
    return np.stack(images) > OUTSIDE_HU


def read_middle(folder):
    """Returns the nodule-free middle slices as a `Volume`, their noise smoothed."""
    images, lungs = [], []
    for file in sorted(pathlib.Path(folder).glob("ID_*.npz")):
        with np.load(file, allow_pickle=False) as arrays:
            image, mask = arrays["image"], arrays["mask"]
        if not (mask == 3).any() and file.stem not in MIDDLE_OF_SCAN:
            images.append(scipy.ndimage.gaussian_filter(image.astype(np.float32), 1.0).astype(np.int16))
            lungs.append((mask == 1) | (mask == 2))
    region = nodule_look.find_region(np.stack(lungs), (0.68, 0.68))
    return Volume("middle", np.stack(images), region, np.ones_like(region))


def read_scan(folder, name):
    """Returns a `WholeScan` of the folder of real scans."""
    folder = pathlib.Path(folder)
    with tempfile.TemporaryDirectory() as scratch:
        (source,) = scans.find_scans(folder / name)
        scan = scans.open_scan(source, scratch)
        hu = scan.read(0, scan.num_slices)
    path = folder / f"{name}_lungs.nii.gz"
    orientation = ct.find_orientation(images_lib.read_geometry(path))
    lungs = np.ascontiguousarray(ct.to_canonical(images_lib.read_volume(path), orientation)).astype(np.uint8)
    nodules = _read_nodules(folder / f"{name}_nodules.csv")
    masses = _read_mass(folder / "Lung_Dx_boxes.csv", name, scan.geometry)
    nodules = np.concatenate([nodules, masses])
    excluded = _read_small(folder / name, scan.geometry)
    return WholeScan(name, scan.geometry, hu, lungs, nodules, excluded)


def to_negative(scan):
    """Returns the `Volume` of a scan that was read completely: its nodules, and a margin, are unknown."""
    region = nodule_look.find_region((scan.lungs == 1) | (scan.lungs == 2), scan.geometry.spacing_zyx_mm[1:])
    known = np.ones(region.shape, bool)
    for x, y, z, diameter in np.concatenate([scan.nodules, scan.excluded]):
        known &= ~ball(scan.geometry, (x, y, z), 0.8 * diameter + 3.0)
    return Volume(scan.name, scan.hu, region, known)


def ball(geometry, centre_xyz_mm, radius_mm):
    """Returns the voxels within a radius of a point, bool [D, H, W]."""
    centre = ct.mm_to_index(geometry, centre_xyz_mm)[::-1]
    inside = 0.0
    for axis, (place, step, num) in enumerate(
        zip(centre, geometry.spacing_zyx_mm, geometry.shape_zyx, strict=True)
    ):
        distance = np.square((np.arange(num) - place) * step)
        inside = inside + distance.reshape([-1 if a == axis else 1 for a in range(3)])
    return inside <= radius_mm**2


def _read_nodules(path):
    if not path.is_file():
        return np.zeros((0, 4))
    with open(path, newline="") as file:
        return np.array(
            [
                [float(row[name]) for name in ("x_lps", "y_lps", "z_lps", "mean_diam_mm")]
                for row in csv.DictReader(file)
            ]
        )


def _read_mass(path, name, geometry):
    """Returns the ball around the boxes of a scan's mass, [1, 4]; [0, 4] where it has none."""
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["scan"] == name]
    if not rows:
        return np.zeros((0, 4))
    corners = []
    for row in rows:
        for side in ("min", "max"):
            x, y, _ = ct.index_to_mm(geometry, (float(row[f"x_{side}"]), float(row[f"y_{side}"]), 0.0))
            corners.append((x, y, float(row["z_mm"])))
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    return np.array([[*((low + high) / 2.0), (high - low).max()]])


def _read_small(folder, geometry):
    """Returns the nodules under 3 mm of the LIDC XML beside the slices: one point each; 3 mm is their diameter."""
    import xml.etree.ElementTree as tree

    points = []
    for file in folder.glob("*.xml"):
        for roi in tree.parse(file).iter():
            edges = [edge for edge in roi if edge.tag.endswith("edgeMap")] if roi.tag.endswith("roi") else []
            if len(edges) == 1:
                z = next(float(part.text) for part in roi if part.tag.endswith("imageZposition"))
                x, y = (int(edges[0][place].text) for place in (0, 1))
                at = ct.index_to_mm(geometry, (x, y, 0))
                points.append((at[0], at[1], z, 3.0))
    return np.array(points).reshape(-1, 4)


def read_crops(real):
    """Returns the `Crops` of the folder of real data."""
    return crops_lib.read_crops(pathlib.Path(real) / "lidc_nodules")
