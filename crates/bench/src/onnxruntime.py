"""Runs ONNX models with onnxruntime for `sedge bench vision`.

Each line of standard input is a JSON object that asks, each line of standard output one that
answers: {"model": PATH, "threads": N}, then {"inputs": [BASE64 of f32, ...]}, which runs once and
gives the outputs, then {"seconds": S}, which runs for at least so long and gives each run's time.
"""

import base64
import json
import sys
import time

import numpy
import onnxruntime


def open_session(path, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def main():
    session, feed = None, {}
    for line in sys.stdin:
        ask = json.loads(line)
        try:
            if "model" in ask:
                session = open_session(ask["model"], ask["threads"])
                answer = {"version": onnxruntime.__version__}
            elif "inputs" in ask:
                feed = {}
                for value, (text, shape) in zip(session.get_inputs(), ask["inputs"]):
                    raw = numpy.frombuffer(base64.b64decode(text), numpy.float32)
                    feed[value.name] = raw.reshape(shape)
                outputs = session.run(None, feed)
                raw = [numpy.ascontiguousarray(x, numpy.float32).tobytes() for x in outputs]
                answer = {"outputs": [base64.b64encode(x).decode() for x in raw]}
            else:
                times, end = [], time.perf_counter() + ask["seconds"]
                while not times or time.perf_counter() < end:
                    start = time.perf_counter()
                    session.run(None, feed)
                    times.append(time.perf_counter() - start)
                answer = {"times": times}
        except Exception as error:  # whatever it is, the asker wants to know
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


main()
