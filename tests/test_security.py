"""What a stranger's checkpoint, bundle, records, settings or scan may not do: run code, take all memory,
write a page.

Zips and DICOM files have their tests in test_scans.py and test_dicom.py, LIDC's XML in datasets/test_lidc.py,
the report's page in report/test_html.py.
"""

import ast
import io
import json
import pathlib
import re
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import tensorstore
import test_checkpoints

from auxseg.base import files, npz
from auxseg.base.errors import InputError
from auxseg.datasets.npz import read_npz
from auxseg.datasets.preparation import records
from auxseg.prediction import scan_page
from auxseg.runs import checkpoints, run_folder

ROOT = pathlib.Path(__file__).parent.parent
MODULES = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
    "tarfile",
}
"""Modules that can run what they read, or unpack to anywhere; none is imported by the package."""
CALLS = {"eval", "exec", "compile", "__import__"}


def dangers(source):
    """Yields what in a Python source could run a stranger's data."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (f"import {name}" for name in names if name.split(".")[0] in MODULES)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {each.arg: ast.unparse(each.value) for each in node.keywords}
        if called in CALLS or called in ("os.system", "os.popen"):
            yield called
        if called == "torch.load" and keywords.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        if called in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
            yield f"{called} without allow_pickle=False"
        if keywords.get("allow_pickle") == "True" or keywords.get("shell") == "True":
            yield ast.unparse(node)
        if called.endswith((".extractall", ".extract", "unpack_archive")):
            yield called


@pytest.mark.parametrize("room", ["auxseg", "configs", "experiments"])
def test_nothing_runs_what_it_reads(room):
    found = {
        str(path.relative_to(ROOT)): list(dangers(path.read_text(encoding="utf-8")))
        for path in (ROOT / room).rglob("*.py")
    }
    assert {name: each for name, each in found.items() if each} == {}


def test_dangers_are_seen():
    source = """
import pickle
torch.load(path)
np.load(path)
np.load(path, allow_pickle=True)
eval(text)
subprocess.run(text, shell=True)
archive.extractall(folder)
np.load(path, allow_pickle=False); torch.load(path, weights_only=True); model.compile()
"""
    assert len(list(dangers(source))) == 8  # allow_pickle=True counts twice


def npy(shape, data, descr="<i2"):
    """Returns a `.npy` whose header claims `shape`, with `data` after it."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


def write_zip(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


FORGED = {
    "claims more than it has": (npy((1 << 40,), b"1234"), "its header says 2199023255552"),
    "has more than it claims": (npy((2,), bytes(500_000)), "its header says 4"),
    "objects": (npy((1,), b"\x80\x04N.", "|O"), "Python objects, which are never unpickled"),
    "too large": (npy((1 << 25,), bytes(1 << 26)), "expected at most 1000000"),
    "no array": (b"hello", "magic string is not correct|truncated|EOF"),
}


@pytest.mark.parametrize("kind", FORGED)
def test_forged_arrays_are_refused_before_memory_is_taken(tmp_path, kind):
    content, message = FORGED[kind]
    path = write_zip(tmp_path / "a.npz", image=content, mask=npy((2, 2), bytes(8)))
    tracemalloc.start()
    with pytest.raises(npz.UNREADABLE, match=message):
        npz.read_npz(path, most_bytes=1_000_000)
    if kind != "too large":
        with pytest.raises(InputError, match="cannot be read as .npz"):
            read_npz(tmp_path, size_yx=(16, 16)).read(np.array([0]))
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_honest_arrays_are_read(tmp_path):
    arrays = {"a": np.arange(6).reshape(2, 3), "b": np.float32(3), "c": np.array(["x", "yz"])}
    np.savez(tmp_path / "a.npz", **arrays)
    found = npz.read_npz(tmp_path / "a.npz", most_bytes=10_000)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    with pytest.raises(ValueError, match="expected at most"):
        npz.read_npz(tmp_path / "a.npz", most_bytes=300)


def test_native_masks_are_not_inflated_beyond_their_pixels():
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(records._unpack_mask(zlib.compress(mask.tobytes()), (3, 4)), mask)
    bomb = zlib.compress(bytes(1 << 28), 9)
    tracemalloc.start()
    with pytest.raises(InputError, match="holds more than the"):
        records._unpack_mask(bomb, (3, 4))
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_a_checkpoint_that_claims_terabytes_is_refused(tmp_path):
    state = test_checkpoints.make_state(5)
    checkpoints.save_best(tmp_path, step=5, variables=state.variables, progress={"epoch": 1})
    folder = tmp_path / "checkpoints/best/5/weights"
    store = {"driver": "ocdbt", "base": f"file://{folder}/", "path": "params.a.kernel/"}
    claimed = {"shape": [1 << 20, 1 << 20], "chunks": [1024, 1024], "dtype": "<f4", "compressor": None,
               "fill_value": 0.0, "order": "C", "filters": None}  # fmt: skip
    spec = {"driver": "zarr", "kvstore": store, "metadata": claimed}
    tensorstore.open(spec, create=True, delete_existing=True).result()
    files.write_json(
        tmp_path / "checkpoints/best-5.sha256.json", checkpoints._checksums(tmp_path / "checkpoints/best/5")
    )
    with pytest.raises(
        InputError, match="its arrays take 4096 GiB, expected at most 32; it is damaged or forged"
    ):
        checkpoints.restore_best(tmp_path)


def test_settings_without_end_are_one_clear_line(tmp_path):
    (tmp_path / "config.json").write_text("[" * 200_000, encoding="utf-8")
    with pytest.raises(InputError, match="config.json: cannot be read as JSON"):
        run_folder.read_config(tmp_path)


def test_names_are_escaped_on_the_page_of_a_scan(tmp_path):
    evil = '</script><!--<script>alert("x")</script><img src=x onerror=alert(1)>'
    page = scan_page.Page(
        title=evil,
        facts={evil: evil},
        notes=[("warning", evil)],
        pictures=(b"jpeg",),
        masks=np.zeros((1, 4, 4), np.uint8),
        labels=[evil],
        first_slice=0,
        spacing_zyx_mm=(1.0, 1.0, 1.0),
        nodules=[{evil: evil}],
        tables=[(evil, [{evil: evil}])],
        marks=[],
        start=0,
    )
    scan_page.write_page(tmp_path / "page.html", page)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<script") == 2 and "<img src=x" not in page and "<!--" not in page
    data = re.search(r'id="viewer-data">(.*?)</script>', page, re.DOTALL)[1]
    assert json.loads(data)["items"][0]["title"] == evil
