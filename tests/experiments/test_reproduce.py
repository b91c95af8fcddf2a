"""From data to every table and figure: the whole chain on a tiny phantom, and what it says before it starts."""

import pytest

from auxseg.base import files
from auxseg.base.errors import InputError
from configs import smoke
from experiments.studies import reproduce, runner


def quick_protocol(folder, **settings):
    config = smoke.get_config()
    with config.unlocked():
        config.data.cache_dir = str(folder / "cache")
        config.data.phantom.num_slices = 16
        config.data.phantom.matrix = 64
        config.train.num_devices = 1
    return runner.Protocol(data="phantom", quick=True, seeds=(1,), config=config, **settings)


def test_the_whole_chain_on_a_phantom(tmp_path, capsys):
    protocol = quick_protocol(tmp_path)
    page = reproduce.reproduce(protocol, tmp_path / "out")
    out = capsys.readouterr().out
    assert out.index("different runs are left: at most about") < out.index("== seeds")
    items = files.read_json(tmp_path / "out" / "results.json")
    assert all((tmp_path / "out" / item["file"]).is_file() for item in items)
    shown = {item["paper"].split(" (")[0] for item in items}
    figures = {"Figs 5, 7, 9", "Figs 6, 8, 10", "Fig 12", "Fig 13", "Fig 14", "Table 3", "section 4, Table 2"}
    assert (
        figures <= shown and {step.what for name, step in reproduce.STEPS.items() if name != "seeds"} <= shown
    )
    rates = next(item for item in items if item["paper"].startswith("Table 3"))
    assert rates["ours"] == "1-1: 0.001" and rates["printed"].startswith("1-12: 0.001, 13-21: 0.0005")
    counted = next(item for item in items if item["paper"].startswith("section 3.1"))
    assert "SE 6,555,648, attention 1,684,275,200, ratio 257" in counted["ours"]
    text = page.read_text(encoding="utf-8")
    assert "bias -59.21 px" in text and 'href="seeds/runs/anatomy-seed1/report/index.html"' in text
    # The same once more: nothing is left to run, and studies shared what they have in common.
    folders = {name: len(list((tmp_path / "out" / name / "runs").glob("*"))) for name in reproduce.STEPS}
    assert folders["ablations"] == folders["losses"] == folders["table2"] == 1
    reproduce.announce(protocol, tmp_path / "out", reproduce.STEPS, 1)
    again = capsys.readouterr().out
    assert "different runs are left" not in again and again.count(" 0 left") == len(reproduce.STEPS)


def test_crops_are_refused(tmp_path):
    with pytest.raises(InputError, match="--data: got crops, which have no lungs"):
        reproduce.reproduce(runner.Protocol(data="crops", data_dir=str(tmp_path)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_the_data_cannot_show_is_left_out_by_name():
    steps, left_out = reproduce.choose_steps((), runner.Protocol(data="npz"))
    assert "paper_labels" not in steps and "airway" in left_out["paper_labels"]
    with pytest.raises(InputError, match="--steps: got 'figure'"):
        reproduce.choose_steps(("figure",), runner.Protocol())


@pytest.mark.parametrize(("data", "split", "names"), [("luna16", "paper", 6), ("npz", "train_val_test", 3)])
def test_the_papers_runs_have_its_seeds_and_split(data, split, names):
    planned = reproduce.plan_seeds(runner.Protocol(data=data, data_dir="somewhere"))
    assert len(planned) == names
    for run in planned:
        config, seed = run.config, int(run.name[-1])
        assert (config.seed, config.train.order_seed, config.data.split_seed) == (seed, seed, seed)
        assert config.data.split == split and config.eval.num_panels > 0
