"""How far rounded networks' outputs are from f32 ones', all run by onnxruntime (docs/vision.md).

    pip install onnx onnxruntime numpy
    python3 int8_error.py net.onnx net-int8.onnx

Rounds net.onnx with onnxruntime's own static quantisation, as net-onnxruntime.onnx beside it, and
prints the error of that and of the given file: root of the mean square over four inputs of noise,
over that of the f32 outputs.
"""

import sys

import numpy as np
import onnxruntime
from onnxruntime import quantization


def session(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def noise(shape, seeds):
    return [np.random.default_rng(seed).standard_normal(shape).astype(np.float32) for seed in seeds]


class Noise(quantization.CalibrationDataReader):
    def __init__(self, name, shape):
        self.all = iter([{name: x} for x in noise(shape, range(4))])

    def get_next(self):
        return next(self.all, None)


def main():
    net, rounded = sys.argv[1:]
    own = net.removesuffix(".onnx") + "-onnxruntime.onnx"
    f32 = session(net)
    source = f32.get_inputs()[0]
    quantization.quantize_static(
        net,
        own,
        Noise(source.name, source.shape),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    for path in [own, rounded]:
        other, off, size = session(path), 0.0, 0.0
        for x in noise(source.shape, range(10, 14)):
            a = f32.run(None, {source.name: x})[0]
            b = other.run(None, {other.get_inputs()[0].name: x})[0]
            off, size = off + ((a - b) ** 2).sum(), size + (a**2).sum()
        print(f"{path}: off by {(off / size) ** 0.5:.2%}")


main()
