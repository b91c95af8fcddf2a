"""Table 2 again: its arms, their widths, and the paper's figures beside ours; training is made up."""

import pytest
from test_runner import calls, npz, small_protocol  # noqa: F401

from auxseg.base import files
from auxseg.base.errors import InputError
from auxseg.training import loop
from configs import base
from experiments.studies import ablations, comparators, runner, table2


@pytest.mark.parametrize("name", ["plain", "unet_plus_plus"])
def test_widths_at_the_papers_size_are_the_published_ones(name):
    system = comparators.SYSTEMS[name]
    assert table2.find_width(base.get_config(), system, 6_577_217) == system.matched_width


def test_arms():
    changes = {"model.base_width": 8, "model.depth": 2, "data.name": "npz"}
    config = runner.override(base.get_config(), changes)
    target = comparators.count_values(config, comparators.SYSTEMS["aux_unet"], 8)
    assert target == ablations.count_parameters(config)
    arms, titles, paper = table2.create_arms(config, width="both", extra_data="second")
    assert next(iter(arms)) == "aux_unet" and arms.keys() == titles.keys() == paper.keys()
    assert not any("unet3d" in arm for arm in arms)  # these data have no slabs
    luna16 = runner.override(config, {"data.name": "luna16"})
    slabs = table2.create_arms(luna16, width="published")[0]["unet3d_published"]
    assert slabs == {"model.name": "unet3d", "model.depth": 3, "model.base_width": 4, "data.slab": 7}
    assert arms["unet_published"] == {"model.name": "unet", "model.base_width": 8}
    assert arms["unet_extra"] == arms["unet_matched"] | {"data.extra_dir": "second"}
    for arm in ("unet_matched", "attention_res_unet_matched"):
        count = ablations.count_parameters(runner.override(config, arms[arm]))
        assert 0.6 < count / target < 1.6
    assert paper["attention_res_unet_matched"] == 81.0 and paper["unet_extra"] == 92.6
    assert paper["aux_unet"] == 98.42 and paper["unet_matched"] is None
    found = table2.create_effects({arm: titles[arm] for arm in ("aux_unet", "unet_matched", "unet_extra")})
    assert [effect.key for effect in found] == ["unet_matched", "unet_extra", "second_data"]
    assert all(sum(effect.weights.values()) == 0 for effect in found)


def test_a_study_puts_the_papers_figures_beside_ours(npz, tmp_path, calls, monkeypatch):  # noqa: F811
    fake = loop.train
    scores = {"pooled_dsc": 0.9, "dice": {"background": 0.99, "left_lung": 0.8, "nodule": None}}
    scores["dice_cases"] = {"background": 9, "left_lung": 9, "nodule": 0}

    def trained(config, workdir, *, finish):
        fake(config, workdir, finish=finish)
        files.write_json(
            workdir / "summary.json", {"seconds": 1.0, "parameters": 123, "scores": {"test": scores}}
        )

    monkeypatch.setattr(loop, "train", trained)
    protocol = small_protocol(npz, seeds=(1,))
    found = table2.study(
        protocol, tmp_path, only=("aux_unet", "attention_res_unet_published"), width="published"
    )
    assert calls == ["aux_unet-f0-s1", "attention_res_unet_published-f0-s1"]
    assert [row["paper_percent"] for row in found["rows"]] == [98.42, 81.0]
    text = (tmp_path / "table2.md").read_text(encoding="utf-8")
    assert "| the paper, % | pooled DSC, % | left lung (cases) | nodule (cases) | runs |" in text
    assert "| 123 | 98.42 | 90.00 | 0.800 (9) | - (0) | 1 |" in text
    assert "what it prints for each system" in text and (tmp_path / "summary.md").is_file()
    assert not any(
        name.endswith("_matched") for name in table2.create_arms(protocol.config, width="published")[0]
    )
    with pytest.raises(InputError, match="--arms: got 'unet3d_matched'"):
        table2.study(protocol, tmp_path, only=("unet3d_matched",), width="published")
