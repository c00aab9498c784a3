"""A node under test: the real binary in a directory of its own."""

import json
import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS = 60
END_SECONDS = 20


def binary() -> Path:
    """The binary under test: ELANUS_BIN, or the release build of this checkout."""
    path = Path(os.environ.get("ELANUS_BIN") or ROOT / "target/release/elanus")
    if not path.is_file():
        raise SystemExit(
            f"there is no node at {path}: run `cargo build --release --bin elanus`, or set ELANUS_BIN"
        )
    return path


class Node:
    """One data directory and the process that serves it."""

    def __init__(self, home: Path, *flags: str):
        self.data_dir = home / "data"
        self.log = home / "node.log"
        self.flags = flags
        self.process = None
        self.grpc = self.ops = ""

    @property
    def uri(self) -> str:
        return f"http://{self.grpc}"

    def start(self) -> "Node":
        """Starts the process and waits until it is ready."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [
                    binary(),
                    "serve",
                    "--data-dir",
                    self.data_dir,
                    "--listen",
                    "127.0.0.1:0",
                    "--ops-listen",
                    "127.0.0.1:0",
                    *self.flags,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "RUST_BACKTRACE": "1"},
            )
        deadline = time.monotonic() + READY_SECONDS
        while not self._is_ready():
            if self.process.poll() is not None:
                raise RuntimeError(f"the node ended with {self.process.returncode}\n{self.tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the node was not ready in {READY_SECONDS} s\n{self.tail()}")
            time.sleep(0.01)
        return self

    def stop(self) -> float:
        """Sends SIGTERM; returns how many seconds the process took to end."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"the node did not end\n{self.tail()}") from None
        return time.monotonic() - began

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def page(self, path: str) -> tuple[int, str]:
        """Status and body of a page of the ops port."""
        try:
            with urllib.request.urlopen(f"http://{self.ops}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as answer:
            return answer.code, answer.read().decode()

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.said().splitlines()[-lines:])

    def _is_ready(self) -> bool:
        try:
            endpoint = json.loads((self.data_dir / "endpoint.json").read_text())
        except (FileNotFoundError, ValueError):
            return False
        if endpoint["pid"] != self.process.pid:
            return False
        self.grpc, self.ops = endpoint["grpc"], endpoint["ops"]
        try:
            return self.page("/readyz")[0] == 200
        except OSError:
            return False
