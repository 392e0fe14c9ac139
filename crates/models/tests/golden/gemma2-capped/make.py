"""Gemma 2 with its score cap, in numpy and float64: writes golden.safetensors beside this file.

../gemma2/golden.safetensors was computed by an attention that leaves the cap of the scores out
(transformers' SDPA path); this is the model as its configuration and its paper describe it.
Needs numpy:  python make.py
"""
import json
import pathlib
import struct

import numpy as np

here = pathlib.Path(__file__).parent
config = json.loads((here / "../gemma2/config.json").read_text())


def read(path):
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header, out = json.loads(raw[8 : 8 + size]), {}
    for name, t in header.items():
        if name != "__metadata__":
            a, b = t["data_offsets"]
            kind = {"F32": "<f4", "I64": "<i8"}[t["dtype"]]
            out[name] = np.frombuffer(raw[8 + size + a : 8 + size + b], kind).reshape(t["shape"])
    return out


w = {k: v.astype(np.float64) for k, v in read(here / "../gemma2/model.safetensors").items()}
golden = read(here / "../gemma2/golden.safetensors")
H, KV, D, EPS = config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"], config["rms_norm_eps"]


def norm(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * (1 + weight)


def rotate(x):
    angle = np.outer(np.arange(len(x)), config["rope_parameters"]["rope_theta"] ** (-np.arange(0, D, 2) / D))
    cos, sin = np.tile(np.cos(angle), 2)[:, None], np.tile(np.sin(angle), 2)[:, None]
    turned = np.concatenate([-x[..., D // 2 :], x[..., : D // 2]], -1)
    return x * cos + turned * sin


def cap(x, limit):
    return x if limit is None else limit * np.tanh(x / limit)


def logits(ids):
    n = len(ids)
    x = w["model.embed_tokens.weight"][ids] * np.sqrt(config["hidden_size"])
    for i, kind in enumerate(config["layer_types"]):
        p = lambda name: w[f"model.layers.{i}.{name}.weight"]
        h = norm(x, p("input_layernorm"))
        q = rotate((h @ p("self_attn.q_proj").T).reshape(n, H, D))
        k = rotate((h @ p("self_attn.k_proj").T).reshape(n, KV, D)).repeat(H // KV, 1)
        v = (h @ p("self_attn.v_proj").T).reshape(n, KV, D).repeat(H // KV, 1)
        scores = np.einsum("qhd,khd->hqk", q, k) * config["query_pre_attn_scalar"] ** -0.5
        scores = cap(scores, config["attn_logit_softcapping"])
        distance = np.arange(n)[:, None] - np.arange(n)
        seen = distance >= 0
        if kind == "sliding_attention":
            seen &= distance < config["sliding_window"]
        scores = np.where(seen, scores, -np.inf)
        e = np.exp(scores - scores.max(-1, keepdims=True))
        a = np.einsum("hqk,khd->qhd", e / e.sum(-1, keepdims=True), v).reshape(n, H * D)
        x = x + norm(a @ p("self_attn.o_proj").T, p("post_attention_layernorm"))
        h = norm(x, p("pre_feedforward_layernorm"))
        g = h @ p("mlp.gate_proj").T
        g = 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)))
        x = x + norm((g * (h @ p("mlp.up_proj").T)) @ p("mlp.down_proj").T, p("post_feedforward_layernorm"))
    return cap(norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T, config["final_logit_softcapping"])


ids = golden["input_ids"]
greedy = list(golden["greedy"][:16])
while len(greedy) < 40:
    greedy.append(int(logits(np.array(greedy))[-1].argmax()))
parts = {"greedy": np.array(greedy, "<i8"), "input_ids": ids.astype("<i8"), "logits": logits(ids).astype("<f4")}
config["attn_logit_softcapping"] = None
print("without the cap, against the other file:", np.abs(logits(ids) - golden["logits"]).max())
header, data = {}, b""
for name, value in parts.items():
    raw = value.tobytes()
    kind = "F32" if value.dtype.kind == "f" else "I64"
    header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(raw)]}
    data += raw
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
(here / "golden.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
