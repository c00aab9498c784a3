"""Our node and milvus-lite behind the same load generator, `elanus bench`, taking turns."""

import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from demo.fetch_models import DEFAULT_DIR
from demo.node import Node, binary

SERVER_READY_S = 60
INSERTED_A_SECOND = 5_000
LITE = "milvus-lite==3.2.2"


class Absent(Exception):
    """A server that does not start; the text says why."""


class Lite:
    """A milvus-lite server."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._log = (folder.parent / "lite.log").open("wb")
        command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", folder]
        command += ["--host", "127.0.0.1", "--port", self._port]
        self._process = subprocess.Popen(
            list(map(str, command)), stdout=self._log, stderr=self._log, start_new_session=True
        )
        self.pid = self._process.pid

    def __enter__(self) -> "Lite":
        deadline = time.monotonic() + SERVER_READY_S
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return self
            if self._process.poll() is not None:
                break
            time.sleep(0.2)
        self.__exit__()
        last = Path(self._log.name).read_text(errors="replace").strip().splitlines()[-1:]
        raise Absent(f"its server did not listen: {' '.join(last)}")

    def __exit__(self, *_exception: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


def bench(server, command: str, folder: Path, *options: object) -> list[dict]:
    """The lines that `elanus bench` prints."""
    arguments = [binary(), "bench", command, folder, "--uri", server.uri, "--pid", server.pid, *options]
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"elanus bench {command}: {done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def searches(quick: bool, sparse: str | None) -> list[tuple[str, list]]:
    """What is asked, by a name for the table. A slow server is asked at fewer concurrencies."""
    beams, all_of_them = ["--ef", "32,64"], ["--concurrency", "1,4,8"]
    alone = ["--concurrency", "1"]
    asked = [("dense", [*beams, "--truth", "gt_dense.npy", *(all_of_them if quick else ["--concurrency", "1,4"])])]
    for share, cut in (("1 %", 10), ("10 %", 100), ("50 %", 500)):
        truth = f"gt_{share.replace(' %', 'p')}.npy"
        filtered = ["--ef", "128", "--filter", f"price < {cut}", "--truth", truth, *alone]
        asked.append((f"dense, {share} allowed", filtered))
    if sparse:
        named = ["--sparse", sparse]
        asked += [
            ("sparse", ["--leg", "sparse", *named, "--truth", f"gt_{sparse}.npy", *alone]),
            ("hybrid", ["--leg", "hybrid", *named, "--ef", "64", "--truth", "gt_hybrid.npy", *alone]),
            ("dense, 50 results", ["--ef", "64", "--limit", "50", "--truth", "gt_dense.npy", *alone]),
            ("sparse, 50 results", ["--leg", "sparse", *named, "--limit", "50", "--truth", f"gt_{sparse}.npy", *alone]),
        ]
    return asked


def measure(folder: Path, rounds: int, seconds: float, lite: bool) -> dict:
    """Rows of two tables: how each server was filled, and how it answers."""
    sparse = "splade" if (folder / "splade.npy").exists() else None
    columns = ["--sparse", sparse] if sparse else []
    loaded, asked, absent = [], {}, {}
    with tempfile.TemporaryDirectory() as scratch, Node(Path(scratch) / "node", DEFAULT_DIR) as node:
        servers = [("elanus", node)]
        other = Lite(Path(scratch) / "lite") if lite else None
        try:
            if other:
                try:
                    servers.append(("milvus-lite", other.__enter__()))
                except Absent as why:
                    print(f"   milvus-lite is left out: {why}", flush=True)
                    other, absent = None, {LITE: str(why)}
            for name, server in servers:
                print(f"   {name}: fill", flush=True)
                inserted, built = bench(server, "load", folder, *columns)
                loaded.append({"server": name, "insert": inserted, "index": built})
            for number in range(rounds):
                for at in range(len(searches(True, sparse))):
                    for name, server in servers:
                        quick = name == "elanus"
                        # One round of the slow one says enough.
                        if number and not quick:
                            continue
                        what, options = searches(quick, sparse)[at]
                        for line in bench(server, "search", folder, "--seconds", seconds, *options):
                            key = (what, line.get("ef"), line["concurrency"], name)
                            asked.setdefault(key, []).append(line)
                print(f"   wire, round {number + 1} of {rounds}", flush=True)
        finally:
            if other:
                other.__exit__()
        shutil.rmtree(Path(scratch) / "lite", ignore_errors=True)
    searched = [row(key, lines) for key, lines in asked.items()]
    return {"loaded": loaded, "searched": searched, "absent": absent}


def alone(folder: Path, seconds: float) -> dict:
    """What only a node of one's own is asked: to search while rows come in, to start again, and to
    keep its indexes mapped."""
    rows = json.loads((folder / "about.json").read_text())["rows"]
    search = ["--ef", "32", "--concurrency", "1"]
    # Rows come until then.
    growing_s = min(seconds, rows / 2 / INSERTED_A_SECOND - 1)
    opened = {}
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch) / "node"
        with Node(kept, DEFAULT_DIR) as node:
            bench(node, "load", folder, "--rows", rows // 2)
            idle = bench(node, "search", folder, "--seconds", seconds, *search)[0]
            more = ["--append", rows // 2, "--rate", INSERTED_A_SECOND, "--batch", INSERTED_A_SECOND // 10]
            command = [binary(), "bench", "load", folder, "--uri", node.uri, *more]
            inserting = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
            meanwhile = bench(node, "search", folder, "--seconds", growing_s, *search)[0]
            if inserting.poll() is not None:
                raise RuntimeError("the rows were inserted before the search had ended")
            inserting.communicate()
        search += ["--truth", "gt_dense.npy"]
        for how, options in (("in memory", []), ("mapped", ["--mapped"])):
            with Node(kept, DEFAULT_DIR) as node:
                bench(node, "load", folder, "--replace", *options)
            with Node(kept, DEFAULT_DIR) as node:
                opened[how] = bench(node, "search", folder, "--seconds", seconds, *search)[0] | {"ready_ms": node.ready_ms}
    return {"rows": rows, "idle": idle, "meanwhile": meanwhile, "opened": opened}


def row(key: tuple, lines: list[dict]) -> dict:
    what, ef, concurrency, server = key
    numbers = (name for name, value in lines[0].items() if isinstance(value, (int, float)))
    middle = {name: statistics.median(line[name] for line in lines) for name in numbers}
    return middle | {"what": what, "ef": ef, "concurrency": concurrency, "server": server}

