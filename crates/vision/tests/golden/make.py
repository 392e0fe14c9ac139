"""Writes the files beside it: small ONNX networks, and what onnxruntime makes of a seeded input.

    pip install onnx onnxruntime numpy && python make.py

Each NAME.onnx has NAME.golden: the input's values, then each output's, f32 little endian.
"""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

rng = np.random.default_rng(7)


class Net:
    def __init__(self, name, opset, shape):
        self.name, self.opset, self.shape = name, opset, shape
        self.nodes, self.constants, self.outputs, self.count = [], [], [], 0

    def const(self, values, dtype=np.float32):
        self.count += 1
        name = f"c{self.count}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def weights(self, *shape):
        return self.const(rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]) or 1))

    def add(self, op, inputs, outputs=1, **attributes):
        self.count += 1
        names = [f"v{self.count}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, f"n{self.count}", **attributes))
        return names[0] if outputs == 1 else names

    def out(self, *values):
        self.outputs += values

    def write(self):
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)
        outputs = [helper.make_tensor_value_info(v, TensorProto.FLOAT, None) for v in self.outputs]
        graph = helper.make_graph(self.nodes, self.name, [x], outputs, self.constants)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )
        onnx.save(model, f"{self.name}.onnx")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(model.SerializeToString(), options)
        x = rng.standard_normal(self.shape).astype(np.float32)
        y = session.run(None, {"x": x})
        with open(f"{self.name}.golden", "wb") as file:
            for values in [x, *y]:
                file.write(np.ascontiguousarray(values, np.float32).tobytes())
        print(self.name, [list(v.shape) for v in y])


def convolutions():
    net = Net("convolutions", 17, [1, 6, 11, 9])
    w = net.weights
    plain = net.add("Conv", ["x", w(5, 6, 3, 3), w(5)], pads=[1, 1, 1, 1])
    uneven = net.add("Conv", ["x", w(4, 6, 3, 2)], pads=[0, 1, 2, 0], strides=[2, 1])
    wide = net.add("Conv", ["x", w(4, 6, 3, 3)], dilations=[2, 3], pads=[2, 3, 2, 3])
    groups = net.add("Conv", ["x", w(8, 3, 3, 3)], group=2, pads=[1, 1, 1, 1])
    depth = net.add("Conv", ["x", w(6, 1, 5, 5), w(6)], group=6, pads=[2, 2, 2, 2], strides=[2, 2])
    same = net.add("Conv", ["x", w(3, 6, 3, 3)], auto_pad="SAME_UPPER", strides=[2, 2])
    lower = net.add("Conv", ["x", w(3, 6, 4, 4)], auto_pad="SAME_LOWER")
    up = net.add("ConvTranspose", ["x", w(6, 4, 2, 2), w(4)], strides=[2, 2])
    more = net.add(
        "ConvTranspose", ["x", w(6, 3, 3, 3)], strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]
    )
    grouped = net.add("ConvTranspose", ["x", w(6, 2, 3, 3)], group=3, dilations=[2, 1])
    norm = net.add(
        "BatchNormalization",
        [plain, net.const([1, 2, 0.5, -1, 1.5]), w(5), w(5), net.const([1, 0.5, 2, 1, 0.1])],
        epsilon=1e-3,
    )
    act = net.add("HardSwish", [norm])
    both = net.add("Conv", [act, w(5, 5, 1, 1)])
    net.out(uneven, wide, groups, depth, same, lower, up, more, grouped, net.add("Add", [both, act]))
    net.write()


def pools():
    net = Net("pools", 17, [2, 3, 10, 7])
    for op, more in [("MaxPool", {}), ("AveragePool", {}), ("AveragePool", {"count_include_pad": 1})]:
        net.out(net.add(op, ["x"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], **more))
    for op in ["MaxPool", "AveragePool"]:
        net.out(net.add(op, ["x"], kernel_shape=[3, 2], strides=[2, 3], ceil_mode=1))
    net.out(net.add("GlobalAveragePool", ["x"]), net.add("GlobalMaxPool", ["x"]))
    for op in ["ReduceMean", "ReduceMax", "ReduceMin"]:
        net.out(net.add(op, ["x"], axes=[1, -1], keepdims=0))
    net.out(net.add("ReduceSum", ["x", net.const([2], np.int64)]))
    arg = net.add("ArgMax", ["x"], axis=1)
    net.out(net.add("Cast", [arg], to=TensorProto.FLOAT))
    net.out(net.add("Softmax", ["x"], axis=1), net.add("LogSoftmax", ["x"], axis=-1))
    net.write()


def arithmetic():
    net = Net("arithmetic", 17, [1, 4, 5, 3])
    c = net.const
    for op in ["Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "Neg", "Relu"]:
        net.out(net.add(op, ["x"]))
    for op in ["Round", "Sigmoid", "Sin", "Softplus", "Tanh", "Elu"]:
        net.out(net.add(op, ["x"]))
    square = net.add("Mul", ["x", "x"])
    one = net.add("Add", [square, c(0.5)])
    net.out(net.add("Sqrt", [one]), net.add("Log", [one]), net.add("Reciprocal", [one]))
    net.out(net.add("Pow", [one, c(1.5)]), net.add("Pow", [c(2.0), "x"]))
    net.out(net.add("LeakyRelu", ["x"], alpha=0.3), net.add("PRelu", ["x", net.weights(4, 1, 1)]))
    net.out(net.add("Clip", ["x", c(-0.5), c(0.7)]), net.add("Clip", ["x", "", c(0.7)]))
    channel, pixel = net.weights(4, 1, 1), net.weights(1, 1, 5, 3)
    for op in ["Add", "Sub", "Mul", "Div"]:
        net.out(net.add(op, ["x", channel]), net.add(op, [pixel, "x"]), net.add(op, ["x", one]))
    mean = net.add("GlobalAveragePool", ["x"])
    net.out(net.add("Mul", ["x", mean]), net.add("Sub", [mean, "x"]), net.add("Max", ["x", mean, c(0.1)]))
    net.out(net.add("Min", [one, "x"]), net.add("Sum", ["x", one, channel]))
    hard = net.add("Div", [net.add("Clip", [net.add("Add", ["x", c(3)]), c(0), c(6)]), c(6)])
    net.out(net.add("Mul", ["x", hard]), net.add("Mul", ["x", net.add("Sigmoid", ["x"])]))
    net.write()


def movement():
    net = Net("movement", 17, [1, 8, 6, 4])
    i = lambda *x: net.const(list(x), np.int64)
    net.out(net.add("Slice", ["x", i(1, -1), i(100, -100), i(1, 2), i(2, -2)]))
    net.out(net.add("Slice", ["x", i(2), i(6), i(1)]))
    net.out(*net.add("Split", ["x", i(3, 5)], outputs=2, axis=1))
    net.out(net.add("Transpose", ["x"], perm=[0, 2, 3, 1]), net.add("Transpose", ["x"]))
    for mode in ["constant", "edge", "reflect"]:
        inputs = ["x", i(0, 0, 1, 2, 0, 0, 2, 1)] + ([net.const(0.25)] if mode == "constant" else [])
        net.out(net.add("Pad", inputs, mode=mode))
    net.out(net.add("Gather", ["x", i(3, 0, -1)], axis=1))
    net.out(net.add("Gather", ["x", net.const(2, np.int64)], axis=2))
    for mode in ["DCR", "CRD"]:
        net.out(net.add("DepthToSpace", ["x"], blocksize=2, mode=mode))
    net.out(net.add("SpaceToDepth", ["x"], blocksize=2), net.add("Tile", ["x", i(1, 1, 2, 1)]))
    net.out(net.add("Concat", ["x", net.add("Relu", ["x"]), "x"], axis=1))
    net.out(net.add("Concat", ["x", net.add("Relu", ["x"])], axis=-2))
    one = net.add("ReduceMax", ["x"], axes=[2, 3])
    net.out(net.add("Expand", [one, i(1, 8, 3, 2)]), net.add("Squeeze", [one, i(2, 3)]))
    net.out(net.add("Unsqueeze", ["x", i(0, -1)]), net.add("Flatten", ["x"], axis=2))
    shape = net.add("Shape", ["x"])
    height = net.add("Gather", [shape, net.const(2, np.int64)])
    twice = net.add("Mul", [height, net.const(2, np.int64)])
    to = net.add("Concat", [i(0, -1), net.add("Unsqueeze", [twice, i(0)])], axis=0)
    net.out(net.add("Reshape", ["x", to]))
    flat = net.add("Reshape", ["x", i(1, 8, -1)])
    net.out(net.add("Transpose", [flat], perm=[0, 2, 1]))
    net.write()


def resizes():
    net = Net("resizes", 17, [1, 3, 5, 7])
    f = lambda *x: net.const(list(x))
    for mode, coordinates, nearest in [
        ("nearest", "asymmetric", "floor"),
        ("nearest", "half_pixel", "round_prefer_floor"),
        ("nearest", "half_pixel", "round_prefer_ceil"),
        ("nearest", "asymmetric", "ceil"),
        ("linear", "half_pixel", "floor"),
        ("linear", "align_corners", "floor"),
        ("linear", "asymmetric", "floor"),
        ("linear", "pytorch_half_pixel", "floor"),
    ]:
        more = {"coordinate_transformation_mode": coordinates, "nearest_mode": nearest}
        net.out(net.add("Resize", ["x", "", f(1, 1, 2, 2)], mode=mode, **more))
        net.out(net.add("Resize", ["x", "", f(1, 1, 1.5, 0.6)], mode=mode, **more))
        sizes = net.const([1, 3, 9, 4], np.int64)
        net.out(net.add("Resize", ["x", "", "", sizes], mode=mode, **more))
    net.write()


def matrices():
    net = Net("matrices", 17, [2, 3, 4, 5])
    w = net.weights
    net.out(net.add("MatMul", ["x", w(5, 6)]), net.add("MatMul", ["x", net.add("Transpose", ["x"], perm=[0, 1, 3, 2])]))
    flat = net.add("Flatten", ["x"])
    net.out(net.add("Gemm", [flat, w(7, 60), w(7)], transB=1, alpha=0.5, beta=2.0))
    hidden = net.add("Relu", [net.add("Gemm", [flat, w(60, 7), w(7)])])
    net.out(net.add("Softmax", [net.add("Gemm", [hidden, w(7, 4)])]))
    net.write()


def old():
    net = Net("old", 9, [1, 3, 6, 5])
    net.out(net.add("Upsample", ["x", net.const([1, 1, 2, 3])], mode="nearest"))
    net.out(net.add("Slice", ["x"], axes=[2, 3], starts=[1, -4], ends=[5, 100]))
    net.out(net.add("Clip", ["x"], min=-0.5, max=0.5), net.add("Softmax", ["x"]))
    net.out(net.add("Pad", ["x"], pads=[0, 0, 1, 1, 0, 0, 0, 2], value=0.5))
    net.out(*net.add("Split", ["x"], outputs=3, axis=1))
    net.out(net.add("Unsqueeze", [net.add("Squeeze", [net.add("ReduceMean", ["x"], axes=[2, 3])], axes=[2, 3])], axes=[1]))
    net.write()


def quantised():
    net = Net("quantised", 17, [1, 3, 12, 10])

    def grid(x, scale, zero):
        args = [net.const(scale), net.const(zero, np.uint8)]
        return net.add("DequantizeLinear", [net.add("QuantizeLinear", [x, *args]), *args])

    def conv(x, outputs, inputs, k, **attributes):
        shape = (outputs, inputs, k, k)
        codes = net.const(rng.integers(-127, 128, shape), np.int8)
        scales = net.const(rng.uniform(0.5, 1.5, outputs) / (60 * np.sqrt(inputs * k * k)))
        zeros = net.const(np.zeros(outputs), np.int8)
        w = net.add("DequantizeLinear", [codes, scales, zeros], axis=0)
        return net.add("Conv", [x, w, net.weights(outputs)], **attributes)

    x = grid("x", 0.03, 128)
    y = grid(net.add("Relu", [conv(x, 16, 3, 3, strides=[2, 2], pads=[1, 1, 1, 1])]), 0.02, 0)
    z = grid(net.add("HardSwish", [conv(y, 16, 1, 3, group=16, pads=[1, 1, 1, 1])]), 0.015, 30)
    z = grid(conv(z, 16, 16, 1), 0.03, 120)
    y = grid(net.add("Add", [y, z]), 0.04, 100)
    mean = grid(net.add("GlobalAveragePool", [y]), 0.02, 110)
    gate = grid(net.add("HardSigmoid", [conv(mean, 16, 16, 1)], alpha=1 / 6, beta=0.5), 1 / 255, 0)
    y = grid(net.add("Mul", [y, gate]), 0.03, 100)
    y = grid(net.add("MaxPool", [y], kernel_shape=[2, 2], strides=[2, 2]), 0.03, 100)
    net.out(y, conv(y, 5, 16, 1))
    net.write()


for make in [convolutions, pools, arithmetic, movement, resizes, matrices, old, quantised]:
    make()
