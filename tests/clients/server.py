"""A running `sedge serve`."""

import os
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120  # seconds; a debug build on a busy machine is slow


def binary() -> Path:
    """$SEDGE_BIN, or the newest build."""
    named = os.environ.get("SEDGE_BIN")
    if named:
        return Path(named).resolve()
    built = [path for kind in ("debug", "release") if (path := ROOT / "target" / kind / "sedge").exists()]
    if not built:
        raise FileNotFoundError("no sedge: run 'cargo build', or name one in SEDGE_BIN")
    return max(built, key=lambda path: path.stat().st_mtime)


class Server:
    """Serves the built-in model on a free port until it is stopped."""

    def __init__(self, *arguments: str):
        command = [str(binary()), "serve", "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.output = ""
        self.url = ""
        found = threading.Event()
        threading.Thread(target=self._read, args=(found,), daemon=True).start()
        if not found.wait(PATIENCE) or not self.url:
            self.process.kill()
            raise RuntimeError(f"sedge printed no address:\n{self.output}")
        self.wait_for(lambda: self.status("/ready") == 200, "being ready")

    def _read(self, found: threading.Event) -> None:
        for line in self.process.stdout:
            self.output += line
            address = re.search(r"http://[^\s/]+", line)
            if address and not self.url:
                self.url = address.group()
                found.set()
        found.set()

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as response:
            return response.read().decode()

    def status(self, path: str) -> int:
        """The status of a GET; 0 without an answer."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as response:
                return response.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def metric(self, name: str) -> float:
        """The sum over models of a counter or gauge."""
        found = re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", self.get("/metrics"), re.MULTILINE)
        assert found, f"no metric {name}"
        return sum(map(float, found))

    def wait_for(self, wish, what: str) -> None:
        until = time.monotonic() + PATIENCE
        while not wish():
            assert time.monotonic() < until, f"waited in vain for {what}:\n{self.output}"
            time.sleep(0.02)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """Ends the server; its exit code."""
        if self.process.poll() is None:
            self.terminate()
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
