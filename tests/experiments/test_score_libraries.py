"""The table of disagreements: our column is what the tests of the scores say, whatever else is installed."""

import fakes
import pytest

from experiments.checks import score_libraries


@pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")
def test_our_column(tmp_path):
    out = tmp_path / "table.md"
    fakes.call(score_libraries.main, out=str(out))
    rows = [
        line.split(" | ") for line in out.read_text(encoding="utf-8").splitlines() if line.startswith("| ")
    ]
    ours = {row[0].strip("| "): row[1] for row in rows}
    assert ours["both empty"] == ours["false positive"] == "nan / nan / nan / nan"
    assert ours["missed"] == "0.000 / 49.244 / 49.244 / 0.000"
    assert ours["identical"] == "1.000 / 0.000 / 0.000 / 1.000"
