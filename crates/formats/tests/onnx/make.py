"""Writes kinds.onnx, external.onnx and external.bin with the format's own package: pip install onnx==1.23.2 numpy."""

import numpy as np
import onnx
from onnx import TensorProto as T
from onnx import helper, numpy_helper

TYPES = {
    "f32": (T.FLOAT, [0.5, -1.0]),
    "f64": (T.DOUBLE, [0.1, -2.0]),
    "f16": (T.FLOAT16, [0.5, -65504.0]),
    "i64": (T.INT64, [-(2**63), 2**63 - 1]),
    "i32": (T.INT32, [-(2**31), 2**31 - 1]),
    "i16": (T.INT16, [-(2**15), 2**15 - 1]),
    "i8": (T.INT8, [-128, 127]),
    "u64": (T.UINT64, [0, 2**64 - 1]),
    "u32": (T.UINT32, [0, 2**32 - 1]),
    "u16": (T.UINT16, [0, 2**16 - 1]),
    "u8": (T.UINT8, [0, 255]),
    "bool": (T.BOOL, [0, 1]),
}
tensors = []
for name, (kind, values) in TYPES.items():
    tensors.append(helper.make_tensor(f"{name}.fields", kind, [2], values))
    raw = np.array(values, helper.tensor_dtype_to_np_dtype(kind)).tobytes()
    tensors.append(helper.make_tensor(f"{name}.raw", kind, [1, 2], raw, raw=True))
tensors.append(helper.make_tensor("none", T.FLOAT, [0, 3], []))

branch = helper.make_graph(
    [helper.make_node("Identity", ["x"], ["z"])],
    "branch",
    [],
    [helper.make_tensor_value_info("z", T.FLOAT, None)],
)
nodes = [
    # Not in the order of computing.
    helper.make_node("Add", ["b", "f32.fields"], ["y"], name="last"),
    helper.make_node("Clip", ["a", "", "f32.fields"], ["b", ""], domain="ai.onnx"),
    helper.make_node(
        "Every", ["x"], ["a"], domain="made.up",
        int=-3, float=0.25, string="ä", ints=[1, -2], floats=[0.5], strings=["p", ""],
        tensor=numpy_helper.from_array(np.array(7, np.int64)), graph=branch,
    ),
]  # fmt: skip
inputs = [
    helper.make_tensor_value_info("f32.fields", T.FLOAT, [2]),
    helper.make_tensor_value_info("x", T.FLOAT, ["batch", 3, -1, 0, None]),
]
outputs = [helper.make_tensor_value_info("y", T.FLOAT16, None)]
graph = helper.make_graph(nodes, "kinds", inputs, outputs, tensors)
sets = [helper.make_opsetid("made.up", 2), helper.make_opsetid("", 17)]
model = helper.make_model(graph, producer_name="onnx", opset_imports=sets, ir_version=8)
helper.set_model_props(model, {"stride": "32"})
onnx.save(model, "kinds.onnx")

weights = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "w")
graph = helper.make_graph(
    [helper.make_node("MatMul", ["x", "w"], ["y"])],
    "external",
    [helper.make_tensor_value_info("x", T.FLOAT, [1, 2])],
    [helper.make_tensor_value_info("y", T.FLOAT, [1, 3])],
    [weights],
)
model = helper.make_model(graph, opset_imports=sets[1:], ir_version=8)
onnx.save(model, "external.onnx", save_as_external_data=True, size_threshold=0, location="external.bin")
