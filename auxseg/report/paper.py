"""What the paper prints, to stand beside our numbers; decimal points that its text lost are put back."""

from auxseg.base.classes import CLASS_NAMES

TABLE_2 = (
    {"study": "Nam et al. 2018", "data": "LUNA16", "dsc_percent": 78.78, "technique": "3D U-Net"},
    {
        "study": "Bhattacharyya et al. 2023",
        "data": "LUNA16",
        "dsc_percent": 88.89,
        "technique": "Bi-directional U-Net, Mish",
    },
    {
        "study": "Zafaranchi et al. 2024",
        "data": "LungQuant and their own",
        "dsc_percent": 81.00,
        "technique": "Attention Res-UNet",
    },
    {"study": "Li et al. 2024", "data": "FEMH + LUNA16", "dsc_percent": 92.60, "technique": "U-Net fusion"},
    {
        "study": "SAM with transfer learning (in the text)",
        "data": "LUNA16",
        "dsc_percent": 97.08,
        "technique": "SAM",
    },
    {
        "study": "The paper, seed 1",
        "data": "LUNA16 middle slices",
        "dsc_percent": 98.42,
        "technique": "SE blocks, auxiliary loss, U-Net",
    },
    {
        "study": "The paper, seed 2",
        "data": "LUNA16 middle slices",
        "dsc_percent": 98.77,
        "technique": "SE blocks, auxiliary loss, U-Net",
    },
    {
        "study": "The paper, seed 3",
        "data": "LUNA16 middle slices",
        "dsc_percent": 98.71,
        "technique": "SE blocks, auxiliary loss, U-Net",
    },
)
"""Table 2, sections 1 and 4. Each study has a DSC of its own; only the paper's is pooled with background."""
TABLE_3 = (
    ("seed 1", "1-12", 1e-3, 13.7),
    ("seed 1", "13-21", 5e-4, 13.8),
    ("seed 1", "22-29", 2.5e-4, 13.8),
    ("seed 1", "30-34", 1.25e-4, 13.8),
    ("seed 2", "1-13", 1e-3, 13.8),
    ("seed 2", "14-19", 5e-4, 13.8),
    ("seed 3", "1-13", 1e-3, 13.8),
    ("seed 3", "14-18", 5e-4, 13.8),
)
"""Run, epochs, learning rate, GB of GPU memory (its upper end)."""
FIG_11_R = 0.092
BLAND_ALTMAN_PX = {
    "nodule": (-59.21, -258.65, 140.22),
    "right_lung": (-125.24, -4253.74, 4203.27),
    "left_lung": (-217.30, -784.58, 349.96),
}
"""Figs 12-14: bias, lower and upper limit. The right lung's limits do not centre on its bias."""
WHY_NOT_COMPARABLE = (
    "The paper's DSC is pooled over all pixels and all classes, background included; the others report "
    "Dice of nodules, on other cases. Its value 5, taken for nodules, marks the airway in LUNA16. The "
    "rows stand side by side because the paper's table does, not because they measure the same."
)


def is_papers(config):
    """Returns whether a run has the paper's data, whose numbers may stand beside it: middle slices of LUNA16.

    Args:
        config: settings of a run as JSON types.
    """
    data = config.get("data", {})
    asked = (data.get("name"), data.get("slices", "middle"), tuple(data.get("classes", CLASS_NAMES)))
    return asked == ("luna16", "middle", CLASS_NAMES)
