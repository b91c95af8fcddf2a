"""The benchmark of a step in 3D: its slab and its table by hand, and PyTorch's network gives the same where it is there."""

import numpy as np
import pytest

from auxseg.models import aux_unet3d, create_model
from experiments.speed import slab_step
from experiments.speed.peers.task import make_batch


def test_the_mask_is_that_of_the_middle_slice():
    slab, mask, labels = slab_step.make_slab(4, 16)
    images, masks, _ = make_batch(4, 16)
    assert slab.shape == (1, 16, 16, 4) and mask.shape == (1, 16, 16)
    np.testing.assert_array_equal(slab[0, ..., 2], images[2, ..., 0])
    np.testing.assert_array_equal(mask[0], masks[2])
    assert labels.tolist() == [[float((masks[2] == value).any()) for value in range(4)]]


def test_the_table_has_the_least_of_each():
    found = {"cpu_s": [3.0, 2.0], "clock_s": [5.0, 6.0], "peak_gb": 1.5}
    report = {"slices": 32, "size": 160, "machine": {"processor": "none", "cores": 2}}
    report["made_by"] = {"command": "python -m experiments.speed.slab_step --widths=16"}
    report["rows"] = [{"width": 16, "auxseg": found, "torch": found}]
    assert "| 16 | torch | 2.0 | 5.0 | 1.50 |" in list(slab_step.format_table(report))
    report["rows"][0]["auxseg"] = found | {"cpu_s": [], "clock_s": []}
    assert "| 16 | auxseg | not timed | not timed | 1.50 |" in list(slab_step.format_table(report))
    del report["rows"][0]["torch"]
    assert not [line for line in slab_step.format_table(report) if "torch" in line]


def test_losses_that_differ_void_the_comparison(monkeypatch):
    losses = {"auxseg": [1.0, 0.9], "torch": [1.0, 0.8]}
    monkeypatch.setattr(
        slab_step.machine, "measure_apart", lambda _, asked: {"losses": losses[asked.split(",")[0]]}
    )
    with pytest.raises(slab_step.InputError, match="losses at width 8 differ by 0.1"):
        slab_step.compare([8], 4, 16, 1)
    assert slab_step.compare([8], 4, 16, 1, ["torch"]) == [{"width": 8, "torch": {"losses": [1.0, 0.8]}}]
    with pytest.raises(slab_step.InputError, match="--dtype: got 'bfloat16'"):
        slab_step.compare([8], 4, 16, 1, dtype="bfloat16")


def test_pytorch_s_network_gives_the_same():
    torch = pytest.importorskip("torch")
    from experiments.speed.peers.torch_unet3d import create_torch_unet3d

    config, slab = slab_step.create_config(4), slab_step.make_slab(8, 16)[0]
    variables = slab_step.create_variables(4, 8)
    expected = create_model(config).apply(variables, slab)
    peer = create_torch_unet3d(config, variables, aux_unet3d.count_halvings(8, config.depth)).eval()
    with torch.inference_mode():
        found = peer(torch.from_numpy(slab).permute(0, 3, 1, 2)[:, None])
    np.testing.assert_allclose(found.mask_logits.permute(0, 2, 3, 1), expected.mask_logits, atol=1e-4)
    np.testing.assert_allclose(found.class_logits, expected.class_logits, atol=1e-4)
