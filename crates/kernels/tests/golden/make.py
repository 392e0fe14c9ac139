"""Writes golden blocks: random bytes of each block type and what PyPI's `gguf` decodes them to.

    pip install gguf numpy && python make.py

TYPE.bin holds blocks of random bytes whose half-precision scales are ordinary numbers;
TYPE.f32 the little-endian f32 values that `gguf.quants.dequantize` gives.
"""

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize

# Type, bytes in a block, offsets of half-precision scales, blocks
TYPES = [
    (T.Q8_0, 34, [0], 4),
    (T.Q4_0, 18, [0], 4),
    (T.Q4_1, 20, [0, 2], 4),
    (T.Q5_0, 22, [0], 4),
    (T.Q5_1, 24, [0, 2], 4),
    (T.Q2_K, 84, [80, 82], 2),
    (T.Q3_K, 110, [108], 2),
    (T.Q4_K, 144, [0, 2], 2),
    (T.Q5_K, 176, [0, 2], 2),
    (T.Q6_K, 210, [208], 2),
    (T.IQ4_NL, 18, [0], 4),
    (T.IQ4_XS, 136, [0], 2),
]

rng = np.random.default_rng(7)
for kind, size, scales, count in TYPES:
    blocks = rng.integers(0, 256, (count, size), dtype=np.uint8)
    for at in scales:
        values = rng.normal(0, 0.05, (count, 1)).astype(np.float16)
        blocks[:, at : at + 2] = values.view(np.uint8)
    name = kind.name.lower()
    blocks.tofile(f"{name}.bin")
    dequantize(blocks, kind).astype("<f4").tofile(f"{name}.f32")
