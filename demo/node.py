"""Runs a node of one's own: the release binary, on free ports, on a directory given."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

READY_WITHIN_S = 30.0
END_WITHIN_S = 5.0


class NodeFailed(Exception):
    """The node did not start, or ended by itself; the text carries the end of its log."""


def binary() -> Path:
    """The release binary: ELANUS_BIN, or where cargo puts it."""
    given = os.environ.get("ELANUS_BIN")
    target = Path(os.environ.get("CARGO_TARGET_DIR", "target"))
    path = Path(given) if given else ROOT / target / "release" / "elanus"
    if not path.is_file():
        raise NodeFailed(f"there is no node at {path}: cargo build --release --bin elanus")
    return path


class Node:
    """A running node; leaving the `with` block stops it."""

    def __init__(self, data_dir: Path, model_dir: Path):
        self.data_dir = data_dir
        self.model_dir = model_dir
        self.address = ""
        self.ready_ms = 0.0
        self._log = data_dir.parent / f"{data_dir.name}.log"
        self._process: subprocess.Popen | None = None

    @property
    def uri(self) -> str:
        return f"http://{self.address}"

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def command(self) -> list[str]:
        return [
            *(str(binary()), "serve"),
            *("--data-dir", str(self.data_dir)),
            *("--model-dir", str(self.model_dir)),
            *("--listen", "127.0.0.1:0"),
            *("--ops-listen", "127.0.0.1:0"),
        ]

    def __enter__(self) -> "Node":
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C reaches the demo, and the demo stops the node.
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._await_ready(begin + READY_WITHIN_S)
        except BaseException:
            self.stop()
            raise
        self.ready_ms = (time.monotonic() - begin) * 1000
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    def stop(self) -> float:
        """Asks the node to end and returns how many seconds it took."""
        begin = time.monotonic()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(END_WITHIN_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
                raise NodeFailed(f"the node did not end within {END_WITHIN_S:.0f} s and was killed") from None
        return time.monotonic() - begin

    def _await_ready(self, deadline: float) -> None:
        # The file of an earlier node names another process.
        endpoint = self.data_dir / "endpoint.json"
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise NodeFailed(f"the node ended with status {self._process.returncode}\n{self._log_tail()}")
            try:
                known = json.loads(endpoint.read_bytes())
            except (OSError, ValueError):
                known = {}
            if known.get("pid") == self._process.pid:
                self.address = known["grpc"]
                return
            time.sleep(0.005)
        raise NodeFailed(f"the node was not ready within {READY_WITHIN_S:.0f} s\n{self._log_tail()}")

    def _log_tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-12:])
