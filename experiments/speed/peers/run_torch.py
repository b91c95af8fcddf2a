"""PyTorch, channels last, eager and compiled, and ONNX Runtime and OpenVINO on PyTorch's export.

In bfloat16 PyTorch runs under autocast and OpenVINO by its own choice of layers; ONNX Runtime has only float32 on CPUs of
this kind.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os

import torch
from torch.nn import functional

from auxseg.models.interface import Outputs
from experiments.speed.peers.task import (
    ADAM_EPSILON,
    AUX_WEIGHT,
    LEARNING_RATE,
    create_config,
    make_batch,
    read_variables,
)
from experiments.speed.peers.torch_unet import create_torch_unet

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def create(name, task):
    """Returns {kind: function} like `run_jax.create` for 'torch', 'torch_compile', 'onnxruntime', 'openvino'."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = create_torch_unet(create_config(task), read_variables(task.weights)).to(DEVICE)
    if name in ("onnxruntime", "openvino"):
        create_call = {"onnxruntime": _create_onnx, "openvino": _create_openvino}[name]
        return {"infer": functools.partial(create_call, model, task)}
    compiled = torch.compile(model) if name == "torch_compile" else model
    initial = {key: value.clone() for key, value in model.state_dict().items()}
    return {
        "train": functools.partial(
            _create_train, compiled, functools.partial(model.load_state_dict, initial), task
        ),
        "infer": functools.partial(_create_infer, compiled, task),
    }


def create_half_forwards(settings, variables, batch_size, size_yx):
    """Returns {name: images float32 [N, 1, H, W] -> mask logits [N, C, H, W]} in bfloat16, of what is installed.

    Args:
        settings, variables: of the network, as `create_torch_unet` takes them.
        batch_size, size_yx: of the images.
    """
    model = create_torch_unet(settings, variables).eval()
    example = torch.zeros((batch_size, 1, *size_yx))

    def forward(images):
        given = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), _autocast("bfloat16"):
            return model(given).mask_logits.float().numpy()

    found = {"torch": forward}
    with contextlib.suppress(ImportError):
        compiled = _compile_openvino(model, example, "bfloat16")
        found["openvino"] = lambda images: compiled(images)[0]
    return found


def _autocast(dtype):
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=dtype == "bfloat16")


def _images(batch_size, size):
    images, masks, labels = (torch.from_numpy(array).to(DEVICE) for array in make_batch(batch_size, size))
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
        with _autocast(task.dtype):
            outputs = model(images)
        loss = _loss(Outputs(*(one.float() for one in outputs)), masks, labels)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def _create_infer(model, task, batch_size):
    model.eval()
    images = _images(batch_size, task.size)[0]

    def call():
        with torch.inference_mode(), _autocast(task.dtype):
            model(images)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

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


def _compile_openvino(model, example, dtype):
    """Returns OpenVINO's program for one shape of images, made for the least time of one call."""
    import openvino

    program = openvino.convert_model(_MasksOnly(model.eval()), example_input=example, input=[example.shape])
    precision = {"float32": openvino.Type.f32, "bfloat16": openvino.Type.bf16}[dtype]
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)),
    }
    return openvino.compile_model(program, "CPU", options)


def _create_openvino(model, task, batch_size):
    images = _images(batch_size, task.size)[0].contiguous()
    compiled, given = _compile_openvino(model, images, task.dtype), images.numpy()
    return lambda: compiled(given) is None
