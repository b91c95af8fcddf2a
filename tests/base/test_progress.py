"""Progress where there is no terminal: plain lines, now and then, and none for short work."""

from auxseg.base import progress


def test_lines_tell_speed_and_time_left(monkeypatch, capsys):
    clock = iter([0.0, 1.0, 16.0, 20.0, 40.0, 41.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(progress.track("abcde", total=5, label="reading", unit="scan")) == list("abcde")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["reading: 2/5, 0.12 scan/s, 24 s left", "reading: 4/5, 0.10 scan/s, 10 s left"]


def test_reporter_says_the_same(monkeypatch, capsys):
    clock = iter([0.0, 1.0, 20.0, 50.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    report = progress.reporter("drawing", "scan")
    for done in (1, 5, 10):
        report(done, 10)
    assert capsys.readouterr().err == "drawing: 5/10, 0.25 scan/s, 20 s left\n"
