"""Classes by name and value."""

import pytest

from auxseg.base import classes
from auxseg.base.errors import InputError


def test_left_and_right_change_places_in_the_mirror():
    assert classes.mirrored() == (0, 2, 1, 3)
    assert classes.mirrored(("background", "nodule")) == (0, 1)
    assert classes.mirrored(("background", "right_lung", "nodule", "left_lung")) == (0, 3, 2, 1)
    # A side without its twin stays: there is no value that it could change to.
    assert classes.mirrored(("background", "left_lung", "lung")) == (0, 1, 2)


def test_a_class_that_is_not_there_has_a_value_that_no_pixel_has():
    assert classes.value_of("nodule", ("background", "nodule")) == 1
    assert classes.value_of("nodule", ("background", "lung")) == classes.NO_CLASS == 254


@pytest.mark.parametrize(
    "names",
    [
        ("background",),
        ("lung", "background"),
        ("background", "lung", "lung"),
        ("background", "Left lung"),
        ("background", 3),
        "background",
        ("background", *(f"class_{i}" for i in range(15))),
    ],
)
def test_names_that_are_none_are_refused(names):
    with pytest.raises(InputError, match="data.classes: got .* expected 2 to 15 different names"):
        classes.check_classes(names)


def test_every_name_has_a_colour_and_always_the_same():
    assert classes.COLOURS["left_lung"] == "#d6303a"
    assert classes.COLOURS["airway"] == classes.COLOURS["airway"]
    assert len(classes.to_rgb(classes.COLOURS["airway"])) == 3
