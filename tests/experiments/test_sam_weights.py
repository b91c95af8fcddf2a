"""Files of weights: what is read, by which names, and what is refused in one line."""

import json
import pickle
import sys

import numpy as np
import pytest
import tiny_sam

from auxseg.base.errors import InputError
from experiments.sam.weights import read_weights, rename

RENAMED = {
    "vision_encoder.pos_embed": "image_encoder.pos_embed",
    "vision_encoder.patch_embed.projection.weight": "image_encoder.patch_embed.proj.weight",
    "vision_encoder.layers.11.layer_norm2.bias": "image_encoder.blocks.11.norm2.bias",
    "vision_encoder.layers.0.attn.rel_pos_h": "image_encoder.blocks.0.attn.rel_pos_h",
    "vision_encoder.layers.0.mlp.lin1.weight": "image_encoder.blocks.0.mlp.lin1.weight",
    "vision_encoder.neck.conv2.weight": "image_encoder.neck.2.weight",
    "vision_encoder.neck.layer_norm2.bias": "image_encoder.neck.3.bias",
    "shared_image_embedding.positional_embedding": "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    "prompt_encoder.point_embed.2.weight": "prompt_encoder.point_embeddings.2.weight",
    "prompt_encoder.no_mask_embed.weight": "prompt_encoder.no_mask_embed.weight",
    "mask_decoder.transformer.layers.1.layer_norm4.weight": "mask_decoder.transformer.layers.1.norm4.weight",
    "mask_decoder.transformer.layer_norm_final_attn.bias": "mask_decoder.transformer.norm_final_attn.bias",
    "mask_decoder.upscale_layer_norm.weight": "mask_decoder.output_upscaling.1.weight",
    "mask_decoder.upscale_conv2.weight": "mask_decoder.output_upscaling.3.weight",
    "mask_decoder.output_hypernetworks_mlps.0.proj_in.weight": (
        "mask_decoder.output_hypernetworks_mlps.0.layers.0.weight"
    ),
    "mask_decoder.output_hypernetworks_mlps.0.layers.0.bias": (
        "mask_decoder.output_hypernetworks_mlps.0.layers.1.bias"
    ),
    "mask_decoder.iou_prediction_head.proj_out.weight": "mask_decoder.iou_prediction_head.layers.2.weight",
}


def test_names_of_transformers_are_the_published_ones():
    found = rename({name: np.ones(i + 1) for i, name in enumerate(RENAMED)})
    assert {name: len(array) for name, array in found.items()} == {
        name: i + 1 for i, name in enumerate(RENAMED.values())
    }
    published = tiny_sam.create_weights()
    assert rename(published).keys() == published.keys()


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pth"])
def test_files(tmp_path, suffix):
    weights, path = tiny_sam.create_weights(), tmp_path / f"tiny{suffix}"
    if suffix == ".npz":
        np.savez(path, **weights, steps=np.array(7))
    elif suffix == ".pth":
        torch = pytest.importorskip("torch", reason="torch is not installed: checkpoints cannot be written")
        torch.save({"model": {name: torch.tensor(array) for name, array in weights.items()}}, path)
    else:
        tiny_sam.write_safetensors(path, weights)
    found = read_weights(path)
    assert found.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(found[name], array)


def test_half_precision_in_safetensors(tmp_path):
    path, entries = tmp_path / "half.safetensors", {}
    half = np.array([1.5, -2.0], "<f2").tobytes()
    brain = (np.array([1.5, -2.0], "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    for name, kind, start in (("a", "F16", 0), ("b", "BF16", 4)):
        entries[name] = {"dtype": kind, "shape": [2], "data_offsets": [start, start + 4]}
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + half + brain)
    found = read_weights(path)
    for name in "ab":
        np.testing.assert_array_equal(found[name], [1.5, -2.0])
        assert found[name].dtype == np.float32


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("suffix", [".pth", ".npz"])
def test_code_in_a_file_is_not_run(tmp_path, suffix):
    path, trace = tmp_path / f"evil{suffix}", tmp_path / "trace"
    if suffix == ".pth":
        pytest.importorskip("torch", reason="torch is not installed: checkpoints cannot be read")
        path.write_bytes(pickle.dumps({"a": Evil(trace)}))
    else:
        np.savez(path, a=np.array([Evil(trace)], dtype=object))
    with pytest.raises(InputError, match="--weights: .*evil"):
        read_weights(path)
    assert not trace.exists()


def test_a_checkpoint_without_torch_is_one_clear_line(tmp_path, monkeypatch):
    (tmp_path / "sam.pth").write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        InputError, match="only PyTorch reads safely: install torch, or convert it to safetensors"
    ):
        read_weights(tmp_path / "sam.pth")


def damage(path, content):
    path.write_bytes(content)
    return path


def test_damaged_and_other_files(tmp_path):
    good = tiny_sam.write_safetensors(
        tmp_path / "good.safetensors", {"a": np.ones(3, np.float32)}
    ).read_bytes()
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}}).encode()
    lying = len(header).to_bytes(8, "little") + header + good[-12:]
    for content in (good[:-1], b"", b"\xff" * 20, lying, good[:8] + b"{" * (len(good) - 8)):
        with pytest.raises(InputError, match="no intact safetensors file"):
            read_weights(damage(tmp_path / "bad.safetensors", content))
    with pytest.raises(InputError, match="does not exist"):
        read_weights(tmp_path / "none.npz")
    with pytest.raises(InputError, match="expected a file that ends in .safetensors"):
        read_weights(damage(tmp_path / "weights.h5", b""))
    with pytest.raises(InputError, match="cannot be read"):
        read_weights(damage(tmp_path / "bad.npz", b"PK"))
