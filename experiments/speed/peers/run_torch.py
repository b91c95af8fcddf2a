"""PyTorch, channels last, eager and compiled, and ONNX Runtime on PyTorch's export."""

from __future__ import annotations

import functools
import io
import math
import os

import torch
from torch.nn import functional

from experiments.speed.peers.task import (
    ADAM_EPSILON,
    AUX_WEIGHT,
    LEARNING_RATE,
    create_config,
    make_batch,
    read_variables,
)
from experiments.speed.peers.torch_unet import create_torch_unet


def create(name, task):
    """Returns {kind: function} like `run_jax.create` for 'torch', 'torch_compile', 'onnxruntime'."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = create_torch_unet(create_config(task), read_variables(task.weights))
    if name == "onnxruntime":
        return {"infer": functools.partial(_create_onnx, model, task)}
    compiled = torch.compile(model) if name == "torch_compile" else model
    initial = {key: value.clone() for key, value in model.state_dict().items()}
    return {
        "train": functools.partial(
            _create_train, compiled, functools.partial(model.load_state_dict, initial), task
        ),
        "infer": functools.partial(_create_infer, compiled, task),
    }


def _images(batch_size, size):
    images, masks, labels = map(torch.from_numpy, make_batch(batch_size, size))
    return images.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last), masks.long(), labels


def _loss(outputs, masks, labels):
    """Returns the loss of `run_jax`."""
    probabilities = torch.softmax(outputs.mask_logits, 1)
    truth = functional.one_hot(masks, probabilities.shape[1]).permute(0, 3, 1, 2).float()
    overlap = (probabilities * truth).sum((2, 3))
    dice = (2.0 * overlap + 1.0) / (probabilities.sum((2, 3)) + truth.sum((2, 3)) + 1.0)
    entropy = functional.cross_entropy(outputs.mask_logits, masks)
    aux = functional.binary_cross_entropy_with_logits(outputs.class_logits, labels)
    return 1.0 - dice.mean() + entropy + AUX_WEIGHT * aux


def _create_train(model, restore, task, batch_size):
    restore()  # a smaller batch may have trained it
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), LEARNING_RATE, eps=ADAM_EPSILON)
    images, masks, labels = _images(batch_size, task.size)
    num_steps = 0

    def step():
        nonlocal num_steps
        num_steps += 1
        # Keras adds epsilon to the root of the uncorrected moment, PyTorch to that of the corrected one.
        for group in optimiser.param_groups:
            group["eps"] = ADAM_EPSILON / math.sqrt(1.0 - 0.999**num_steps)
        optimiser.zero_grad()
        loss = _loss(model(images), masks, labels)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def _create_infer(model, task, batch_size):
    model.eval()
    images = _images(batch_size, task.size)[0]

    def call():
        with torch.inference_mode():
            model(images)

    return call


class _MasksOnly(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images).mask_logits


def _create_onnx(model, task, batch_size):
    import onnxruntime

    images = _images(batch_size, task.size)[0].contiguous()
    buffer = io.BytesIO()
    torch.onnx.export(_MasksOnly(model.eval()), (images,), buffer, input_names=["images"], dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(buffer.getvalue(), options, ["CPUExecutionProvider"])
    feed = {"images": images.numpy()}
    return lambda: session.run(None, feed) is None
