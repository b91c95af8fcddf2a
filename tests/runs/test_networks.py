"""A network of Table 2 through the whole line: trained with its dropout, judged, explained."""

import fakes
from test_loop import small_config

from auxseg.evaluation import evaluate_run
from auxseg.training import loop


def test_a_network_is_trained_judged_and_explained(tmp_path):
    """The one that has a random part of its own in training."""
    folder = fakes.write_npz(tmp_path / "npz", fakes.two_discs(24))
    settings = {"model__name": "bidirectional_unet", "model__base_width": 2, "train__num_epochs": 1}
    summary = loop.train(small_config(folder, **settings), tmp_path / "run", finish=evaluate_run.finish)
    assert summary["epochs"] == 1 and set(summary["scores"]) == {"val", "test"}
    _, page = evaluate_run.report_run(tmp_path / "run", split="test", explained=(("case000", "left_lung"),))
    text = page.read_text(encoding="utf-8")
    assert "bidirectional_unet:" in text and "Grad-CAM of the class left lung in case000" in text
