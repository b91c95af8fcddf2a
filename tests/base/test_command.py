"""One clear line for a user's mistake, a traceback for ours."""

import os
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from auxseg.base.command import EXIT_USER_ERROR, _guarded, take_positional
from auxseg.base.errors import InputError, check_choice

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def guarded(main, *argv):
    return _guarded(main, ["program", *argv])


def raising(error):
    def main(argv):
        raise error

    return main


def test_what_main_returns_is_the_status():
    assert guarded(lambda argv: 7) == 7
    assert guarded(lambda argv: None) is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (InputError("data.size: got (0, 0)\nexpected more"), "error: data.size: got (0, 0) expected more"),
        (
            FileNotFoundError(2, "No such file or directory", "scan.mhd"),
            "No such file or directory (scan.mhd)",
        ),
        (OSError(28, "No space left on device", "run/cases.csv"), "No space left on device (run/cases.csv)"),
        (PermissionError(13, "Permission denied", "run"), "Permission denied (run)"),
    ],
)
def test_mistake_gets_one_line_and_status_2(error, words, capsys):
    assert guarded(raising(error)) == EXIT_USER_ERROR
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_stray_argument_is_refused(capsys):
    assert guarded(lambda argv: 0, "configs/phantom.py") == EXIT_USER_ERROR
    assert "got the argument 'configs/phantom.py', expected only flags" in capsys.readouterr().err


@pytest.fixture
def own_flags(monkeypatch):
    values = flags.FlagValues()
    flags.DEFINE_string("input", None, "", flag_values=values)
    flags.DEFINE_string("output", None, "", flag_values=values)
    monkeypatch.setattr(flags, "FLAGS", values)
    values(["program"])
    return values


def test_arguments_stand_for_flags_in_their_order(own_flags):
    assert take_positional(["program", "CT", "OUT", "more"], ("input", "output")) == ["program", "more"]
    assert (own_flags.input, own_flags.output) == ("CT", "OUT")
    own_flags.output = None
    assert take_positional(["program", "CT2"], ("input", "output")) == ["program"]
    assert (own_flags.input, own_flags.output) == ("CT2", None)


def test_an_argument_and_its_flag_are_one_too_many(own_flags, capsys):
    own_flags(["program", "--input=a"])
    with pytest.raises(SystemExit) as stop:
        take_positional(["program", "b"], ("input",))
    assert stop.value.code == EXIT_USER_ERROR
    assert "--input: given twice, as 'a' and as 'b'" in capsys.readouterr().err


def test_a_flag_without_dashes_is_named_as_one(own_flags, capsys):
    own_flags(["program", "--input=a"])
    with pytest.raises(SystemExit):
        take_positional(["program", "output=b"], ("input", "output"))
    assert "got 'output=b'; a flag begins with two dashes: --output=b" in capsys.readouterr().err


def test_interruption_has_its_own_status(capsys):
    assert guarded(raising(KeyboardInterrupt())) == 130
    assert "interrupted" in capsys.readouterr().err


def test_our_own_faults_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        guarded(lambda argv: 1 / 0)


def test_wrong_choice_lists_the_names():
    assert check_choice("data.split", "paper", ("paper", "folds")) == "paper"
    with pytest.raises(InputError, match="data.split: got 'papre', expected one of 'paper', 'folds'"):
        check_choice("data.split", "papre", ("paper", "folds"))


def test_help_is_no_fault():
    command = [sys.executable, "-m", "auxseg.doctor", "--help"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert process.returncode == 0 and "--scans" in process.stdout


def test_a_setting_that_is_not_there_is_named():
    command = [sys.executable, "-m", "auxseg.main", "--config=configs/smoke.py", "--config.model.sse=True"]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert process.returncode == EXIT_USER_ERROR
    assert "error: the settings have no 'sse'. Did you mean \"se\"" in process.stderr
    assert process.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "expected", "left"),
    [
        (["a"], ("a", []), []),
        (["a", "b", "c"], ("a", ["b", "c"]), []),
        ([], (None, []), []),
    ],
)
def test_a_list_takes_all_arguments_that_are_left(monkeypatch, given, expected, left):
    values = flags.FlagValues()
    flags.DEFINE_string("one", None, "", flag_values=values)
    flags.DEFINE_list("rest", [], "", flag_values=values)
    values(["program"])
    monkeypatch.setattr(flags, "FLAGS", values)
    assert take_positional(["program", *given], ("one", "rest")) == ["program", *left]
    assert (values.one, values.rest) == expected


@pytest.mark.parametrize("closed", ["2>&-", "1>&-", "0<&- 1>&- 2>&-"])
def test_a_closed_stream_is_no_fault(tmp_path, closed):
    code = (
        "import sys\n"
        "from auxseg.base import command, progress\n"
        "def main(argv):\n"
        "    for _ in progress.track([1, 2], total=2, label='a', unit='b'): print('x', file=sys.stderr)\n"
        "    with open(sys.argv[-1], 'w') as file:\n"
        "        import os; os.write(2, b'stray')\n"
        "        file.write('kept')\n"
        "    print('done')\n"
        "command.run(main, positional=())\n"
    )
    (tmp_path / "run.py").write_text(code.replace("sys.argv[-1]", repr(str(tmp_path / "file"))))
    done = subprocess.run(
        f"{sys.executable} {tmp_path / 'run.py'} {closed}", shell=True, cwd=ROOT, env=ENVIRONMENT
    )
    assert done.returncode == 0
    assert (tmp_path / "file").read_text() == "kept"


def test_a_name_that_is_no_text_can_be_printed(tmp_path):
    code = "from auxseg.base import command\ncommand.run(lambda argv: print('M\\udcfcller'))\n"
    (tmp_path / "run.py").write_text(code)
    done = subprocess.run(
        [sys.executable, tmp_path / "run.py"], capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT
    )
    assert (done.returncode, done.stdout) == (0, "M\\udcfcller\n"), done.stderr


def test_a_message_is_one_line_whatever_is_quoted_in_it():
    assert str(InputError("got a: 1\n, expected 2")) == "got a: 1 , expected 2"
