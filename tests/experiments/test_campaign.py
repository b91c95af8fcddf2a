"""The campaign in short: some scans of every form, its guard against what ends a process, its table."""

import dataclasses
import faulthandler
import os
import time

import numpy as np
import pytest

from experiments.checks import campaign, campaign_kills, campaign_runs, campaign_scans, forked

pytestmark = pytest.mark.filterwarnings("ignore:os.fork")


def test_some_scans_of_every_form(tmp_path):
    rows = {}
    campaign.run_part("scans", range(42), 5, tmp_path, lambda number, *row: rows.__setitem__(number, row))
    assert sorted(rows) == list(range(42))
    outcomes = [outcome for _, outcome, _ in rows.values()]
    assert not [row for row in rows.values() if row[1].startswith("fault")]
    assert "refused" in outcomes and "right" in outcomes


def test_a_wrong_result_is_a_fault(tmp_path, monkeypatch):
    """A reader that turns the scan round without a word is found out."""
    real = campaign_scans.scans.open_scan

    def turned(*args):
        scan = real(*args)
        return dataclasses.replace(scan, read=lambda start, stop: scan.read(start, stop)[::-1])

    monkeypatch.setattr(campaign_scans.scans, "open_scan", turned)
    rows = []
    campaign.run_part("scans", range(21), 5, tmp_path, lambda *row: rows.append(row))
    assert {outcome for _, _, outcome, _ in rows} == {"refused", "fault: wrong"}


def abort():
    faulthandler.disable()  # its report of what is meant to happen would only frighten
    os.abort()


def test_what_crashes_hangs_or_raises_costs_its_own_act(monkeypatch):
    monkeypatch.setattr(forked, "SECONDS", 4)  # an abort takes seconds on a busy machine
    acts = {1: abort, 2: lambda: time.sleep(60), 3: lambda: 1 / 0}
    answers = {}
    forked.run_all(
        range(5),
        lambda number: acts.get(number, lambda: "done")(),
        lambda *row: answers.__setitem__(row[0], row[1:]),
    )
    assert answers == {
        0: ("done", ""), 1: (None, "ends with -6"), 2: (None, "hangs"), 3: (None, "ends with 1"), 4: ("done", ""),
    }  # fmt: skip
    forked.run_all([1], os.abort, pytest.fail, deadline=time.monotonic() - 1)


def test_values_of_json_are_exchanged_one_at_a_time(tmp_path):
    path, random = tmp_path / "a.json", np.random.default_rng(0)
    changed = set()
    for _ in range(300):
        path.write_text('{"a": {"b": [1, 2]}, "c": "x"}')
        changed.add(campaign_runs.mutate(path, random).split(" ")[0])
    assert {"a", "b", "c", "empty", "bytes", "cut"} <= changed


def test_kills_are_shared_out_and_half_a_file_is_seen(tmp_path):
    kinds = [campaign_kills.kind_of(number)[0] for number in range(campaign_kills.COUNT)]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "train": 36, "prepare": 40, "predict": 40, "evaluate": 16, "two processes": 8,
    }  # fmt: skip
    (tmp_path / "a.json").write_text('{"a": 1}')
    (tmp_path / ".b.json.77.part").write_text("{")
    assert campaign_kills.check_whole(tmp_path) == ""
    (tmp_path / "b.json").write_text('{"a"')
    assert campaign_kills.check_whole(tmp_path).startswith("b.json: ")


def test_the_table_counts_outcomes_by_part():
    rows = [
        {"part": "scans", "number": 0, "what": "mha: cut", "outcome": "refused", "more": ""},
        {"part": "scans", "number": 1, "what": "nii: cut", "outcome": "refused", "more": ""},
        {"part": "kills", "number": 0, "what": "train: SIGKILL", "outcome": "fault: wrong", "more": "x"},
    ]
    report = campaign.summarise([row | {"seed": 0, "commit": "abc"} for row in rows], 0)
    assert report["parts"]["scans"]["commits"] == ["abc"] and report["parts"]["runs"]["commits"] == []
    assert report["parts"]["scans"]["outcomes"] == {"refused": 2}
    assert report["parts"]["scans"]["kinds"] == {"mha": 1, "nii": 1}
    assert [row["more"] for row in report["faults"]] == ["x"]
    assert "| mutated scans | 2 | 0 | 2 |" in campaign.format_table(report)
