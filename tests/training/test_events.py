"""What TensorBoard reads: pictures of the same cases by epoch, settings as text, final scores as hyper-parameters."""

import struct

import numpy as np
import pytest
from tensorboardX.proto import event_pb2, plugin_hparams_pb2

from auxseg.base.classes import CLASS_NAMES, UNKNOWN
from auxseg.training import events
from configs import base


def read_events(folder):
    """Returns the values that a folder's files of events hold, as TensorBoard reads them."""
    values = []
    for path in sorted(folder.glob("events.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + length])
            values += [(event.step, value) for value in event.summary.value]
            content = content[16 + length :]
    return values


def test_cases_are_spread_from_those_with_nodules_to_those_without():
    has_nodule = np.array([False, True, False, True, False, False])
    assert events.choose_cases([0, 1, 2, 3, 4], has_nodule, 2).tolist() == [1, 4]
    assert events.choose_cases([0, 1, 2, 3, 4], has_nodule, 3).tolist() == [1, 0, 4]
    assert events.choose_cases([5, 1], has_nodule, 9).tolist() == [1, 5]


def test_a_picture_is_the_image_the_reference_and_the_prediction():
    grey = np.array([[0.0, 1.0]])
    palette = events.create_palette(CLASS_NAMES)
    picture = events.paint(grey, np.array([[3, 0]], np.uint8), np.array([[0, UNKNOWN]], np.uint8), palette)
    blue = [round(0.45 * value) for value in (0x25, 0x63, 0xEB)]
    unknown = [round(0.55 * 255 + 0.45 * 128)] * 3
    assert picture.shape == (1, 6, 3)
    assert picture[0].tolist() == [[0] * 3, [255] * 3, blue, [255] * 3, [0] * 3, unknown]


def test_settings_and_pictures_are_events(tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 7}')
    with events.open_events(tmp_path, 0) as writer:
        events.write_pictures(writer, {"a": np.zeros((2, 6, 3), np.uint8)}, 3)
    found = {value.tag: (step, value) for step, value in read_events(tmp_path)}
    assert b'"seed": 7' in found["settings/text_summary"][1].tensor.string_val[0]
    step, value = found["val/a"]
    assert step == 3 and (value.image.height, value.image.width) == (2, 6)


def test_final_scores_stand_beside_the_settings_and_are_replaced(tmp_path):
    scores = {"val": {"loss": 0.5, "dice": {"left_lung": 0.75, "nodule": None}}}
    for seed in (3, 4):
        config = base.get_config()
        config.seed = seed
        events.write_scores(tmp_path, config, scores)
    values = [value for _, value in read_events(tmp_path / events.FOLDER)]
    numbers = {value.tag: value.simple_value for value in values if value.HasField("simple_value")}
    assert numbers == {"final/val/loss": 0.5, "final/val/dice/left_lung": pytest.approx(0.75)}
    (start,) = (value for value in values if value.tag == "_hparams_/session_start_info")
    content = plugin_hparams_pb2.HParamsPluginData.FromString(start.metadata.plugin_data.content)
    settings = content.session_start_info.hparams
    assert settings["seed"].number_value == 4 and settings["loss.name"].string_value == "dice_ce"
    assert settings["data.size"].string_value == "[320, 320]"
