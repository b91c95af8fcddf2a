"""Figures: every one drawn, none in pyplot's global state, the counts of multiply-accumulates."""

import math
import sys

import jax
import made_up_run
import numpy as np
import pytest

from auxseg.report import figures, macs, model_card, paper, tables
from auxseg.runs import run_folder


@pytest.fixture(scope="module")
def evaluation():
    return made_up_run.make_evaluation()[0]


def test_no_global_state(evaluation):
    figures.to_png(figures.draw_dice(evaluation))
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_bland_altman_draws_both_units(evaluation):
    figure = figures.draw_bland_altman(evaluation, "left_lung")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    agreement = tables.agreement_table(evaluation)[0]
    first, second = figure.axes
    assert first.get_position().y0 > second.get_position().y0 and figure.get_figwidth() < 6
    assert len(titles) == 2 and f"bias {agreement['bias']:.1f} px" in titles[0] and "mm²" in titles[1]


def test_intervals_wider_than_the_picture_are_not_drawn():
    """Two cases: the grey of their intervals would cover everything."""

    def count_spans(num_cases):
        evaluation, _ = made_up_run.make_evaluation(num_cases=num_cases)
        panel = figures.draw_bland_altman(evaluation, "left_lung").axes[0]
        return len(panel.patches)

    assert count_spans(18) == 3 and count_spans(2) == 0


def test_long_names_are_shortened_in_the_middle():
    uid = "1.3.6.1.4.1.14519.5.2.1.6279.6001.997611074084993415992563148335_0060"
    assert figures.shorten("ID_0003") == "ID_0003"
    short = figures.shorten(uid)
    assert len(short) <= 29 and short.startswith("1.3.6.1.4.1") and short.endswith("148335_0060")


def test_unknown_spacing_draws_pixels_alone():
    evaluation, _ = made_up_run.make_evaluation(num_cases=3, spacing=(math.nan, math.nan))
    assert len(figures.draw_bland_altman(evaluation, "left_lung").axes) == 1


def test_curves_skip_what_is_not_there():
    epochs = made_up_run.make_epochs()
    epochs[3]["val"]["dice"]["nodule"] = None
    del epochs[2]["train"]["accuracy"]
    assert figures.to_png(figures.draw_curves(epochs)).startswith(b"\x89PNG")
    assert figures.draw_curves([]) is None and figures.draw_schedule([]) is None


def test_overlay_has_the_papers_colours():
    reference = np.array([[0, 1, 2, 3, 1]], np.uint8)
    prediction = np.array([[0, 1, 2, 3, 2]], np.uint8)
    colors = figures.overlay(reference, prediction)[0]
    assert colors[0, 3] == 0
    assert colors[1, :3].argmax() == 0 and colors[2, :3].argmax() == 1 and colors[3, :3].argmax() == 2
    red, green, blue, _ = colors[4]
    assert red > 0.9 and green > 0.7 and blue < 0.1


def test_correlation_of_lungs_and_nodules_names_r(evaluation):
    title = figures.draw_lungs_against_nodules(evaluation).axes[0].get_title(loc="left")
    assert title.startswith("R = ") and title.endswith("n = 12")


def test_macs_of_the_papers_network():
    """11.83 GMAC at 320 x 320; every weight of the paper's network has a known place."""
    shapes = _shapes_of_the_paper()
    assert sum(math.prod(shape) for shape in shapes.values()) == 6565441
    assert macs.count_macs(shapes, size_yx=(320, 320), depth=4) == pytest.approx(11.83e9, rel=1e-3)


def _shapes_of_the_paper():
    import types

    from auxseg import models

    settings = {
        "name": "aux_unet",
        "base_width": 64,
        "depth": 4,
        "num_classes": 4,
        "separable": True,
        "se": True,
        "se_ratio": 8,
        "aux": True,
        "aux_width": 128,
        "dtype": "float32",
        "bn_momentum": 0.99,
        "bn_epsilon": 1e-3,
        "lowering": "auto",
    }
    model = models.create_model(types.SimpleNamespace(**settings))
    images = jax.ShapeDtypeStruct((1, 320, 320, 1), np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    return {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def test_macs_by_hand():
    shapes = {
        "encoder_0/unit_0/depthwise": (3, 3, 1),
        "up_0/kernel": (8, 2, 2, 4),
        "mask/kernel": (4, 4),
        "mask/bias": (4,),
        "encoder_0/se/squeeze": (4, 2),
    }
    expected = 9 * 64 + 8 * 4 * 4 * 16 + 16 * 64 + 8
    assert macs.count_macs(shapes, size_yx=(8, 8), depth=1) == expected


def test_macs_of_an_unknown_network():
    assert macs.count_macs({"stem/kernel": (3, 3, 1, 8)}, size_yx=(8, 8), depth=1) is None


def test_model_card_names_what_it_rests_on(tmp_path, evaluation):
    run = run_folder.read_records(made_up_run.write_workdir(tmp_path))
    card = dict(
        model_card.create_card(
            run,
            score_table=tables.score_table(evaluation),
            objects=tables.object_table(evaluation),
            split="test",
        )
    )
    assert card["Intended use"][0].startswith("Not for clinical use.")
    assert any("synthetic" in line for line in card["Data"]) and any(
        "40 cases, which is few" in line for line in card["Limits"]
    )
    assert any("12 cases that have it" in line for line in card["Performance"])
    assert not any("LUNA16" in line for line in card["Limits"])  # of a phantom


def test_airway_taken_for_nodules_is_named(tmp_path, evaluation):
    folder = made_up_run.write_workdir(tmp_path, data={"name": "luna16", "labels": "airway_as_nodule"})
    card = dict(
        model_card.create_card(
            run_folder.read_records(folder),
            score_table=tables.score_table(evaluation),
            objects=tables.object_table(evaluation),
            split="test",
        )
    )
    assert any("airway" in line for line in card["Data"])
    assert any("masks of LUNA16 were made by an algorithm" in line for line in card["Limits"])


def test_the_papers_numbers():
    assert [row["dsc_percent"] for row in paper.TABLE_2[-3:]] == [98.42, 98.77, 98.71]
    bias, low, high = paper.BLAND_ALTMAN_PX["right_lung"]
    assert (low + high) / 2 == pytest.approx(-25.24, abs=0.01) and bias == -125.24
