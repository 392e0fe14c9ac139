"""Pictures over HTTP, with curl and with the standard library."""

import base64
import json
import shutil
import struct
import subprocess
import urllib.error
import urllib.request
import zlib

import pytest

from server import PATIENCE, Server


def png(width: int, height: int) -> bytes:
    """A picture whose red grows to the right and whose green grows downwards."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (
        b"\0" + b"".join(bytes((x * 255 // width, y * 255 // height, 90)) for x in range(width))
        for y in range(height)
    )
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.fixture(scope="module")
def seeing():
    """A server of networks with random weights, and of no language model."""
    names = ["net=mobilenet-v3-small,size=64", "boxes=ssdlite-mobilenet-v2", "pixels=lraspp-mobilenet-v3-small,size=128"]
    server = Server(*(part for name in names for part in ("--vision", name)))
    yield server
    server.stop()


def ask(server, task: str, body: dict | bytes, kind: str = "application/json") -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{server.url}/v1/vision/{task}", data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_picture_and_its_data_url_are_the_same(seeing):
    picture = png(80, 60)
    url = "data:image/png;base64," + base64.b64encode(picture).decode()
    status, plain = ask(seeing, "classify?top=3", picture, "image/png")
    assert status == 200 and len(plain["labels"]) == 3
    status, wrapped = ask(seeing, "classify", {"image": url, "top": 3, "model": "net"})
    assert status == 200 and wrapped["labels"] == plain["labels"]
    assert (plain["model"], plain["width"], plain["height"]) == ("net", 80, 60)


def test_boxes_lie_in_the_picture(seeing):
    status, seen = ask(seeing, "detect?threshold=0&top=7", png(80, 60), "image/png")
    assert status == 200 and 0 < len(seen["boxes"]) <= 7
    for found in seen["boxes"]:
        left, top, right, bottom = found["box"]
        assert 0 <= left < right <= 80 and 0 <= top < bottom <= 60


def test_a_mask_has_all_pixels(seeing):
    status, seen = ask(seeing, "segment", png(80, 60), "image/png")
    assert status == 200
    assert sum(seen["mask"]["runs"][1::2]) == 80 * 60
    assert sum(part["share"] for part in seen["mask"]["classes"]) == pytest.approx(1, abs=1e-3)


def test_what_cannot_be_read_is_blamed(seeing):
    cut = png(80, 60)[:200]
    for body, kind, expected in [
        (cut, "image/png", (400, "image")),
        ({"image": "https://example.org/a.png"}, "application/json", (400, "image")),
        ({"image": "data:image/png;base64,", "tops": 1}, "application/json", (400, "tops")),
        ({"image": "data:image/png;base64,", "model": "boxes"}, "application/json", (400, "model")),
        ({"image": "data:image/png;base64,", "model": "none"}, "application/json", (404, "model")),
        (png(8, 8), "image/gif", (415, None)),
    ]:
        status, answer = ask(seeing, "classify", body, kind)
        assert (status, answer["error"]["param"]) == expected, answer


def test_networks_are_listed_and_counted(seeing):
    models = {model["id"]: model for model in json.loads(seeing.get("/v1/models"))["data"]}
    assert [(models[name]["task"], models[name]["random"]) for name in ("net", "boxes", "pixels")] == [
        ("classify", True), ("detect", True), ("segment", True),
    ]
    before = seeing.metric("sedge_vision_seconds_count")
    ask(seeing, "classify", png(8, 8), "image/png")
    assert seeing.metric("sedge_vision_seconds_count") == before + 1
    assert seeing.get("/").count("vision.js") == 1


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_printed_request_works(seeing, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(png(80, 60))
    line = next(line for line in seeing.output.splitlines() if "curl " in line)
    command = ["sh", "-c", line[line.index("curl ") :]]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, cwd=tmp_path)
    assert json.loads(done.stdout)["task"] == "classify"


def test_a_text_model_does_not_see(server):
    status, answer = ask(server, "detect", png(8, 8), "image/png")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    status, answer = ask(server, "detect?model=seedling", png(8, 8), "image/png")
    assert (status, answer["error"]["param"]) == (400, "model")
