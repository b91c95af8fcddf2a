"""Decodes compressed DICOM pixels in a process of its own: what a codec crashes on costs one file, not the batch.

    python -m auxseg.ct.decode

Standard input has a line of JSON for each frame: path, index, size_yx, slope and intercept. Standard output gets one
for each: the stored values, or the line that says why there are none. By pydicom's decoders, and by SimpleITK's GDCM
where pydicom has none. `read_stored` starts one such process, asks it, and replaces it where it ended or hangs.
"""

from __future__ import annotations

import atexit
import base64
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading

import numpy as np

from auxseg.base import workers
from auxseg.base.errors import InputError
from auxseg.ct.dicom import errors_named

SECONDS = 120
"""Of one frame; a codec that takes longer goes round in circles."""
_STORE = "store it uncompressed, for example with gdcmconv --raw or dcmdjpeg"


def read_stored(frame):
    """Returns the stored values of a compressed frame, integer [H, W].

    Args:
        frame: `dicom.Frame`.

    Raises:
        InputError: it cannot be decoded, or the decoder crashed or did not end.
    """
    question = {"path": str(frame.path), "index": frame.index, "size_yx": frame.size_yx,
                "slope": frame.slope, "intercept": frame.intercept}  # fmt: skip
    answer = _DECODER.ask(json.dumps(question))
    if answer is None:
        raise InputError(
            f"DICOM: {frame.path}: its compressed pixels crash the decoder, or keep it busy without end; copy or export it again, or "
            f"{_STORE}"
        )
    if "error" in answer:
        raise InputError(answer["error"])
    return np.frombuffer(base64.b64decode(answer["values"]), answer["dtype"]).reshape(answer["shape"])


class _Decoder:
    """The one process that decodes, started by the first question."""

    def __init__(self):
        self._process, self._lock = None, threading.Lock()

    def ask(self, line):
        """Returns the answer to a question, None where the process ended of it or was ended after `SECONDS`."""
        with self._lock:
            if self._process is None:
                self._start()
            timer = threading.Timer(SECONDS, self._process.kill)
            timer.start()
            try:
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()
                return json.loads(self._process.stdout.readline())
            except (OSError, ValueError):
                self._end()
                return None
            finally:
                timer.cancel()

    def _start(self):
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = workers.start("auxseg.ct.decode", **streams)
        atexit.register(self._end)

    def _end(self):
        atexit.unregister(self._end)
        process, self._process = self._process, None
        process.kill()
        process.communicate()


_DECODER = _Decoder()


def decode(question):
    """Returns what is answered to a question, JSON types."""
    path, index = question["path"], question["index"]
    try:
        with errors_named(path):
            stored = _decode(
                path, index, tuple(question["size_yx"]), question["slope"], question["intercept"]
            )
    except InputError as error:
        return {"error": str(error)}
    values = base64.b64encode(np.ascontiguousarray(stored)).decode("ascii")
    return {"values": values, "dtype": stored.dtype.str, "shape": stored.shape}


def _decode(path, index, size_yx, slope, intercept):
    from pydicom.pixels import pixel_array

    try:
        return np.asarray(pixel_array(path, index=index, raw=True))
    except (RuntimeError, NotImplementedError) as error:
        return _decode_by_simpleitk(path, size_yx, slope, intercept, error)


def _decode_by_simpleitk(path, size_yx, slope, intercept, reason):
    """Returns stored values of a single-frame file; GDCM gives HU, which are undone."""
    import SimpleITK as sitk

    with tempfile.TemporaryDirectory(prefix="auxseg-") as folder:
        plain = pathlib.Path(folder) / "frame.dcm"  # ITK takes no name that is not text
        plain.symlink_to(os.path.abspath(path))
        try:
            image = sitk.GetArrayFromImage(sitk.ReadImage(str(plain)))
        except RuntimeError:
            image = np.zeros(0)
    if image.shape != (1, *size_yx):
        text = str(reason).splitlines()[0]
        raise InputError(f"DICOM: {path}: its compression cannot be undone ({text}); {_STORE}") from reason
    return np.rint((image[0] - intercept) / slope).astype(np.int32)


def main():
    """Answers the questions of standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    for line in sys.stdin:
        print(json.dumps(decode(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
