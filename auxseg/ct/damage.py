"""What cannot be read in a folder of DICOM files, and what it costs: the series that it is of, and no other."""

from __future__ import annotations

import collections
import dataclasses
import pathlib

from auxseg.ct.checks import ERROR, WARNING, Finding


@dataclasses.dataclass(frozen=True)
class Damage:
    """A file or folder that cannot be read.

    Attributes:
        folder: where it lies; of a folder itself.
        path: the file, or the folder.
        text: one line that says why.
        study_uid, series_uid: of a DICOM file as far as it can be read, else ''.
    """

    folder: pathlib.Path
    path: pathlib.Path
    text: str
    study_uid: str = ""
    series_uid: str = ""


def place_damage(series, damaged):
    """Returns (the series with findings about damaged files, the damage that is of none of them).

    A file whose series is known costs that one alone: the others of its study are warned. Of a file that does not
    say, its folder's only series may be a part; where there are several, each is warned.

    Args:
        series: from `dicom.merge_series`.
        damaged: `Damage`s.
    """
    texts, lost = collections.defaultdict(list), []
    for one in damaged:
        owners = _find_owners(series, one)
        if not owners:
            lost.append(one)
            owners = [(k, "beside") for k, each in enumerate(series)
                      if each.frames and one.study_uid and each.study_uid == one.study_uid]  # fmt: skip
        for owner in owners:
            texts[owner].append(one.text)
    series = list(series)
    for (k, relation), found in texts.items():
        series[k] = dataclasses.replace(series[k], problems=(*series[k].problems, _describe(found, relation)))
    return series, lost


def _find_owners(series, damage):
    """Returns [(index of a series that a damaged file is of, 'own' or 'perhaps')]."""
    if damage.series_uid:
        return [(k, "own") for k, one in enumerate(series) if one.uid == damage.series_uid]
    near = [k for k, one in enumerate(series)
            if one.frames and any(path.parent == damage.folder for path in one.paths)]  # fmt: skip
    return [(k, "own" if len(near) == 1 else "perhaps") for k in near]


def _describe(texts, relation):
    """Returns the finding of a series about damaged files."""
    text = join(texts)
    if relation == "own":
        return Finding(ERROR, "damaged", f"{text} (predict --force goes on without)")
    if relation == "perhaps":
        return Finding(WARNING, "perhaps-damaged", f"{text}; whether it is of this series is not known")
    return Finding(WARNING, "damaged-beside", f"{text}; it is of another series of this study")


def join(texts):
    """Returns one line about many files: the first, and how many more."""
    return texts[0] if len(texts) == 1 else f"{texts[0]}; and {len(texts) - 1} more files"
