"""How long streams wait for a token while the memory of their model changes (docs/stack.md).

    sedge serve -m stack.gguf --memory 20MB --port 8123
    python3 resize_under_load.py http://127.0.0.1:8123 stack 12000000 20000000

Four streams generate, first undisturbed, then while the memory is set to the two sizes in turn
twice a second; twice over. Needs nothing but Python.
"""

import json
import statistics
import sys
import threading
import time
import urllib.request

STREAMS = 4


def call(url, fields, method="POST"):
    data = json.dumps(fields).encode()
    headers = {"content-type": "application/json"}
    return urllib.request.urlopen(urllib.request.Request(url, data, headers, method=method))


def stream(server, model, gaps, stop):
    fields = {"model": model, "prompt": "The river ran", "max_tokens": 200, "stream": True}
    while not stop.is_set():
        last = None
        with call(f"{server}/v1/completions", fields | {"ignore_eos": True}) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    now = time.perf_counter()
                    if last:
                        gaps.append((now, now - last))
                    last = now


def load(server, model, sizes, seconds):
    gaps, stop, changes = [], threading.Event(), []
    threads = [
        threading.Thread(target=stream, args=(server, model, gaps, stop)) for _ in range(STREAMS)
    ]
    for thread in threads:
        thread.start()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        time.sleep(0.5)
        if sizes:
            size = sizes[len(changes) % 2]
            start = time.perf_counter()
            call(f"{server}/v1/models/{model}/memory", {"bytes": size}, "PUT").read()
            changes.append((size, start, time.perf_counter()))
    stop.set()
    for thread in threads:
        thread.join()
    waits = sorted(gap * 1e3 for _, gap in gaps)
    at = lambda share: waits[int(share * (len(waits) - 1))]
    print(f"{len(waits)} tokens: median {at(0.5):.1f}, p99 {at(0.99):.1f}, longest {at(1):.1f} ms")
    for size in sizes:
        own = [(start, end) for changed, start, end in changes if changed == size]
        took = [(end - start) * 1e3 for start, end in own]
        worst = [
            max([gap for now, gap in gaps if start <= now <= end + 0.05], default=0) * 1e3
            for start, end in own
        ]
        print(
            f"  to {size / 1e6:g} MB, {len(own)} times: answered after {statistics.median(took):.1f}"
            f" ms, at most {max(took):.1f}; longest wait meanwhile"
            f" {statistics.median(worst):.1f}, at most {max(worst):.1f} ms"
        )


def main():
    server, model, *sizes = sys.argv[1:]
    for _ in range(2):
        load(server, model, [], 8)
        load(server, model, [int(size) for size in sizes], 12)


main()
