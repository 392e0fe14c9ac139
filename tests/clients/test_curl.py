"""The commands that people copy."""

import json
import shutil
import subprocess

import pytest

from server import PATIENCE

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def curl(*arguments: str, stdin: bytes | None = None) -> tuple[int, str]:
    """Status and body."""
    command = ["curl", "-sS", "--max-time", str(PATIENCE), "-w", "\n%{http_code}", *arguments]
    done = subprocess.run(command, capture_output=True, input=stdin, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr.decode()
    body, _, status = done.stdout.decode().rpartition("\n")
    return int(status), body


def test_the_printed_request_works(server):
    line = next(line for line in server.output.splitlines() if "curl " in line)
    done = subprocess.run(["sh", "-c", line[line.index("curl ") :]], capture_output=True, timeout=PATIENCE)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"]


def test_a_stream_is_shown_as_it_comes(server):
    request = json.dumps({"messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 5})
    status, body = curl("-N", server.url + "/v1/chat/completions", "--json", request)
    events = [line for line in body.splitlines() if line]
    assert status == 200 and all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]"


def test_a_body_of_100_mb_is_refused(server):
    body = b'{"prompt": "' + b"a" * 100_000_000 + b'"}'
    for headers in ([], ["-H", "Expect:"]):
        status, answer = curl(
            server.url + "/v1/completions", "-H", "Content-Type: application/json", *headers, "--data-binary", "@-",
            stdin=body,
        )
        assert (status, json.loads(answer)["error"]["code"]) == (413, "request_too_large")


def test_the_page_and_the_metrics_are_there(server):
    assert curl(server.url + "/")[1].lstrip().lower().startswith("<!doctype html>")
    assert "sedge_requests_running" in curl(server.url + "/metrics")[1]
