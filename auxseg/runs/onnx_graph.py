"""The Auxiliary U-Net, or the U-Net, as an ONNX graph, written operator by operator from its weights.

Batch norm is folded into the convolution before it. Inside, arrays are [N, C, H, W]; the graph takes and
gives the layout of `auxseg`: images [N, H, W] in HU, probabilities [N, H, W, C].
"""

from __future__ import annotations

import numpy as np

from auxseg.base.classes import classes_of
from auxseg.datasets import scale

OPSET = 17
"""Of the operators in the graph: read by ONNX Runtime 1.12 and later."""
_IR_VERSION = 8


class _Graph:
    """Nodes and weights as they are added; every method returns the name of its output."""

    def __init__(self):
        self.nodes, self.weights = [], []

    def add(self, kind, *inputs, name=None, **attributes):
        from onnx import helper

        output = name or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, array, name=None):
        from onnx import numpy_helper

        name = name or f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def conv(self, images, kernel, bias=None, **attributes):
        """Adds a convolution; kernel float32 [F, C, kh, kw]."""
        inputs = [images, self.constant(np.float32(kernel))]
        inputs += [] if bias is None else [self.constant(np.float32(bias))]
        return self.add("Conv", *inputs, kernel_shape=list(kernel.shape[2:]), **attributes)

    def dense(self, features, kernel, bias):
        """Adds a 1x1 convolution with weights [C, F]."""
        return self.conv(features, np.asarray(kernel).T[:, :, None, None], bias)


def create_model(config, variables, metadata):
    """Returns the ONNX ModelProto of a trained network, checked by onnx itself.

    Args:
        config: the run's settings; `model.name` is 'aux_unet' or 'unet'.
        variables: the run's weights.
        metadata: {str: str} to keep in the file.
    """
    import onnx
    from onnx import TensorProto, helper

    graph = _Graph()
    rows, columns = config.data.size if scale.seen_scale(config.data)[0] is None else ("H", "W")
    mask, classes = _network(graph, config, variables["params"], variables["batch_stats"])
    num_classes = len(classes_of(config.data))
    slices = [config.data.slab] if config.data.slab > 1 else []
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", rows, columns, *slices])]
    results = [
        helper.make_tensor_value_info(mask, TensorProto.FLOAT, ["N", rows, columns, num_classes]),
        helper.make_tensor_value_info(classes, TensorProto.FLOAT, ["N", num_classes]),
    ]
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "auxiliary_unet", inputs, results, graph.weights),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="auxseg",
    )
    helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _network(graph, config, params, stats):
    """Adds all nodes and returns the names of the mask's and the classes' probabilities."""
    model = config.model
    features, skips = _window(graph, config.data.window_hu, config.data.slab), []
    for level in range(model.depth):
        name = f"encoder_{level}"
        skips.append(_block(graph, features, params[name], stats[name], model.bn_epsilon))
        features = graph.add("MaxPool", skips[-1], kernel_shape=[2, 2], strides=[2, 2])
    features = _block(graph, features, params["bottleneck"], stats["bottleneck"], model.bn_epsilon)
    bottom = features
    for level in reversed(range(model.depth)):
        features = _upsample(graph, features, params[f"up_{level}"])
        features = graph.add("Concat", features, skips[level], axis=1)
        name = f"decoder_{level}"
        features = _block(graph, features, params[name], stats[name], model.bn_epsilon)
    logits = graph.dense(features, params["mask"]["kernel"], params["mask"]["bias"])
    masks = graph.add("Softmax", logits, axis=1)
    masks = graph.add("Transpose", masks, perm=[0, 2, 3, 1], name="mask_probabilities")
    return masks, _class_head(graph, bottom, logits, params.get("aux"))


def _window(graph, window_hu, slab):
    """Adds the mapping of HU to [0, 1] and puts the channels, which are a slab's slices, before rows and columns."""
    low, high = (np.float32(v) for v in window_hu)
    shifted = graph.add("Sub", "images", graph.constant(low))
    scaled = graph.add("Div", shifted, graph.constant(np.float32(high - low)))
    clipped = graph.add("Clip", scaled, graph.constant(np.float32(0)), graph.constant(np.float32(1)))
    if slab > 1:
        return graph.add("Transpose", clipped, perm=[0, 3, 1, 2])
    return graph.add("Unsqueeze", clipped, graph.constant(np.array([1], np.int64)))


def _block(graph, features, params, stats, epsilon):
    for name in ("unit_0", "unit_1"):
        features = _unit(graph, features, params[name], stats[name], epsilon)
    if "se" not in params:
        return features
    weights = params["se"]
    means = graph.add("GlobalAveragePool", features)
    hidden = graph.add("Relu", graph.dense(means, weights["squeeze"], weights["squeeze_bias"]))
    scale = graph.add("Sigmoid", graph.dense(hidden, weights["excite"], weights["excite_bias"]))
    return graph.add("Mul", features, scale)


def _unit(graph, features, params, stats, epsilon):
    """Adds a convolution, separable or not, with batch norm folded in, and ReLU."""
    factor = np.asarray(params["scale"]) / np.sqrt(np.asarray(stats["variance"]) + epsilon)
    bias = (np.asarray(params["bias"]) - np.asarray(stats["mean"])) * factor + np.asarray(params["offset"])
    if "depthwise" in params:
        kernel = np.transpose(params["depthwise"], (2, 0, 1))[:, None]
        features = graph.conv(features, kernel, group=len(kernel), pads=[1, 1, 1, 1])
        return graph.add("Relu", graph.dense(features, np.asarray(params["pointwise"]) * factor, bias))
    kernel = np.transpose(np.asarray(params["ordinary"]) * factor, (3, 2, 0, 1))
    return graph.add("Relu", graph.conv(features, kernel, bias, pads=[1, 1, 1, 1]))


def _upsample(graph, features, params):
    kernel = graph.constant(np.transpose(np.float32(params["kernel"]), (0, 3, 1, 2)))
    bias = graph.constant(np.float32(params["bias"]))
    return graph.add("ConvTranspose", features, kernel, bias, kernel_shape=[2, 2], strides=[2, 2])


def _class_head(graph, bottom, logits, params):
    """Adds the auxiliary head's probabilities; zeros where the network has none."""
    if params is None:
        means = graph.add("Flatten", graph.add("GlobalAveragePool", logits))
        return graph.add("Mul", means, graph.constant(np.float32(0)), name="class_probabilities")
    means = graph.add("GlobalAveragePool", bottom)
    hidden = graph.add("Relu", graph.dense(means, params["hidden"], params["hidden_bias"]))
    flat = graph.add("Flatten", graph.dense(hidden, params["kernel"], params["bias"]))
    return graph.add("Sigmoid", flat, name="class_probabilities")
