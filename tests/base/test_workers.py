"""Processes of auxseg's modules."""

import subprocess

from auxseg.base import workers


def test_a_module_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.py").write_text(
        "import sys, auxseg; print(sys.argv[1:], input(), auxseg.__name__)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "other"))
    process = workers.start("mine", tmp_path, 3, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.communicate("ä\n", timeout=60)[0] == f"[{str(tmp_path)!r}, '3'] ä auxseg\n"
