"""Whose scan a DICOM series is, and of which study."""

from __future__ import annotations

from auxseg.ct import dicom, dicom_pixels

_PARTS = {
    "patient": "PatientName",
    "patient ID": "PatientID",
    "born": "PatientBirthDate",
    "sex": "PatientSex",
    "study of": "StudyDate",
    "study": "StudyDescription",
    "accession number": "AccessionNumber",
    "series": "SeriesDescription",
    "series number": "SeriesNumber",
}
"""What is read, by the words that a page has for it."""


def read_study(volume):
    """Returns patient, study and series of a `dicom_volume.Volume` as {words: text}, without what the file leaves out.

    Raises:
        InputError: its first file is damaged, or was removed meanwhile.
    """
    path = volume.frames[0].path
    with dicom.errors_named(path):
        header = dicom_pixels.read_header(path)
        found = {words: _to_text(header.get(name), name) for words, name in _PARTS.items()}
    return {words: text for words, text in found.items() if text}


def _to_text(value, name):
    """Returns a value in plain words: names without carets, dates as 2026-11-28; '' of none."""
    text = " ".join(str("" if value is None else value).replace("^", " ").split())
    if name.endswith("Date") and len(text) == 8 and text.isdigit():
        return f"{text[:4]}-{text[4:6]}-{text[6:]}"
    return text
