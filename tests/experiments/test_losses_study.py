"""The study of the losses: its arms are losses that there are, and each differs from the paper's as it says."""

from auxseg.runs import run_folder
from auxseg.training.losses import create_segmentation_loss
from configs import base
from experiments.studies import losses, runner


def test_every_arm_is_a_loss_that_can_be_made():
    arms = losses.create_arms(base.get_config().data.classes)
    assert set(arms) == set(losses.TITLES) and next(iter(arms)) == "dice_ce"
    config = base.get_config()
    same = runner.override(config, arms["dice_ce"])
    assert not run_folder.list_differences(*map(run_folder.config_to_dict, (config, same)))  # the paper's
    for changes in arms.values():
        assert callable(create_segmentation_loss(runner.override(config, changes).loss))


def test_the_losses_that_the_paper_names_are_there():
    arms = losses.create_arms(base.get_config().data.classes)
    assert {"iou", "hybrid", "weighted_ce", "tversky"} <= set(arms)
    assert arms["weighted_ce"]["loss.class_weights"] == (1.0, 1.0, 1.0, 30.0)
    two = losses.create_arms(("background", "nodule"))
    assert two["weighted_ce"]["loss.class_weights"] == (1.0, 30.0)


def test_each_loss_is_compared_with_the_papers():
    found = losses.create_effects(losses.TITLES)
    assert len(found) == len(losses.TITLES) - 1
    assert all(effect.weights["Dice + cross-entropy"] == -1 for effect in found)
