"""SAM: its parts by hand, the whole against another implementation where that is installed."""

import importlib.util

import jax
import numpy as np
import pytest
import tiny_sam

from auxseg.base.errors import InputError
from experiments.sam.model import (
    PIXEL_MEAN,
    PIXEL_STD,
    SamSettings,
    _image_attention,
    _join_windows,
    _split_windows,
    decode_masks,
    encode_boxes,
    encode_images,
    preprocess,
    read_settings,
)
from experiments.sam.weights import read_weights


@pytest.fixture(scope="module")
def weights():
    return tiny_sam.create_weights()


@pytest.fixture(scope="module")
def settings(weights):
    return read_settings(weights)


def test_sizes_are_read_from_the_weights(settings):
    assert settings == SamSettings(32, 8, 3, 2, (3, 0, 3), 2)


@pytest.mark.parametrize("missing", ["image_encoder.pos_embed", "image_encoder.blocks.1.attn.rel_pos_h"])
def test_other_weights_are_refused(weights, missing):
    with pytest.raises(InputError, match=f"no {missing} in them; they are not those of a SAM"):
        read_settings({name: array for name, array in weights.items() if name != missing})


def test_image_attention_by_loops(weights):
    """One query at a time: scaled products, plus the query's products with the rows of both tables."""
    name, heads = "image_encoder.blocks.0.attn", tiny_sam.HEADS
    tokens = np.random.default_rng(1).normal(size=(1, 3, 3, tiny_sam.WIDTH)).astype(np.float32)
    joint = tokens @ weights[f"{name}.qkv.weight"].T + weights[f"{name}.qkv.bias"]
    query, key, value = np.split(joint[0], 3, -1)
    size, mixed = tiny_sam.WIDTH // heads, np.zeros((3, 3, tiny_sam.WIDTH))
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for y, x in np.ndindex(3, 3):
            logits = np.zeros((3, 3))
            for row, column in np.ndindex(3, 3):
                logits[row, column] = query[y, x, part] @ key[row, column, part] / np.sqrt(size)
                logits[row, column] += query[y, x, part] @ weights[f"{name}.rel_pos_h"][y - row + 2]
                logits[row, column] += query[y, x, part] @ weights[f"{name}.rel_pos_w"][x - column + 2]
            shares = np.exp(logits) / np.exp(logits).sum()
            mixed[y, x, part] = np.einsum("rc,rcd->d", shares, value[..., part])
    expected = mixed @ weights[f"{name}.proj.weight"].T + weights[f"{name}.proj.bias"]
    np.testing.assert_allclose(_image_attention(weights, name, tokens, heads)[0], expected, atol=1e-5)


def test_windows_are_split_and_joined():
    tokens = np.arange(2 * 4 * 5 * 1, dtype=np.float32).reshape(2, 4, 5, 1)
    windows, padded = _split_windows(tokens, 3)
    assert windows.shape == (2 * 4, 3, 3, 1) and padded == (6, 6)
    np.testing.assert_array_equal(windows[1, :, :2, 0], tokens[0, :3, 3:, 0])
    assert (windows[1, :, 2] == 0).all()
    np.testing.assert_array_equal(_join_windows(windows, padded, tokens.shape), tokens)


def test_tokens_of_a_box_by_hand(weights, settings):
    matrix = weights["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    box = np.array([[3.5, 7.5, 15.5, 31.5]], np.float32)
    found = encode_boxes(weights, box, settings)
    for corner, point in enumerate(((4 / 32, 8 / 32), (16 / 32, 32 / 32))):
        angles = 2 * np.pi * ((2 * np.array(point) - 1) @ matrix)
        expected = np.concatenate([np.sin(angles), np.cos(angles)])
        kind = weights[f"prompt_encoder.point_embeddings.{2 + corner}.weight"][0]
        np.testing.assert_allclose(found[0, corner], expected + kind, atol=1e-5)


def test_masks_depend_on_image_and_box(weights, settings):
    images = np.random.default_rng(0).random((2, 20, 20), np.float32)

    def segment(weights, images, boxes):
        embeddings = encode_images(weights, preprocess(images, settings), settings)
        return decode_masks(weights, embeddings, boxes, settings)

    boxes = np.array([[2, 3, 20, 25], [2, 3, 20, 25]], np.float32)
    masks, scores = jax.jit(segment)(weights, images, boxes)
    assert masks.shape == (2, 16, 16) and scores.shape == (2,)
    assert np.isfinite(masks).all() and np.abs(masks[0] - masks[1]).max() > 1e-3
    other, _ = jax.jit(segment)(weights, images, boxes + np.array([[0, 0, 0, 0], [8, 0, 8, 0]], np.float32))
    np.testing.assert_allclose(other[0], masks[0], atol=1e-5)
    assert np.abs(other[1] - masks[1]).max() > 1e-3


def test_preprocessing_by_hand(settings):
    found = preprocess(np.full((1, 16, 16), 0.5, np.float32), settings)
    assert found.shape == (1, 32, 32, 3)
    np.testing.assert_allclose(found[0, 7, 9], (127.5 - np.array(PIXEL_MEAN)) / PIXEL_STD, rtol=1e-5)


@pytest.mark.skipif(
    not (importlib.util.find_spec("transformers") and importlib.util.find_spec("torch")),
    reason="transformers and torch are not installed: there is no other implementation to compare with",
)
def test_the_whole_against_transformers(tmp_path):
    """A tiny random model of the same architecture: embedding, mask and predicted IoU."""
    import torch
    import transformers

    torch.manual_seed(0)
    vision = transformers.SamVisionConfig(
        hidden_size=24, output_channels=32, num_hidden_layers=3, num_attention_heads=2, image_size=80,
        window_size=3, global_attn_indexes=[1], mlp_dim=40, num_pos_feats=16,
    )  # fmt: skip
    prompt = transformers.SamPromptEncoderConfig(hidden_size=32, image_size=80)
    decoder = transformers.SamMaskDecoderConfig(hidden_size=32, mlp_dim=48, iou_head_hidden_dim=32)
    model = transformers.SamModel(
        transformers.SamConfig(
            vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0 if parameter.ndim > 1 else 0.5, 0.3)
        images = torch.randn(2, 3, 80, 80)
        boxes = torch.tensor([[[3.0, 5.0, 60.0, 70.0]], [[20.0, 1.0, 40.0, 33.0]]])
        expected = model(pixel_values=images, input_boxes=boxes, multimask_output=False)
        embedding = model.get_image_embeddings(images)
    torch.save(model.state_dict(), tmp_path / "tiny.pth")
    weights = read_weights(tmp_path / "tiny.pth")
    settings = read_settings(weights)
    found = encode_images(weights, images.numpy().transpose(0, 2, 3, 1), settings)
    np.testing.assert_allclose(found, embedding.numpy().transpose(0, 2, 3, 1), atol=1e-4)
    masks, scores = decode_masks(weights, found, boxes[:, 0].numpy(), settings)
    np.testing.assert_allclose(masks, expected.pred_masks[:, 0, 0].numpy(), atol=1e-3)
    np.testing.assert_allclose(scores, expected.iou_scores[:, 0, 0].numpy(), atol=1e-3)
