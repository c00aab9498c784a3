"""Our indexes and node beside their peers on the same rows, taking turns in one run.

    make bench
    make bench BENCH="--rounds 7"
    make bench BENCH="--rows 500000 --dim 768 --peers hnswlib --rounds 2"     (half an hour)

Writes docs/benchmarks/results.md and plots beside it. In-process speed is queries per second of CPU
time, so that other work on the machine counts little, and the median of rounds in which each peer
had its turn; a ratio is the median of the rounds' ratios.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from bench import data, report, wire
from bench.peer import DENSE, FLAT, PEERS, SPARSE
from demo.node import binary

OURS = "elanus"
WIDTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256)
LEAVES = (4, 8, 12, 16, 24, 32, 48, 64, 96)
FILTER_WIDTHS, TWO_THREADS_WIDTH = (64, 128, 256, 512), 64
SPARSE_WIDTHS = {OURS: (0, 10, 20, 30, 40), "qdrant-sparse": (0,), "seismic": (4, 6, 8, 10, 12, 20, 40, 60)}
SPARSE_FIELDS = ("splade", "bm25")


class Refused(Exception):
    """A peer cannot index the data; says why."""


class Peer:
    """A process that has built its index and waits for commands."""

    def __init__(self, name: str, command: list):
        self.name = name
        self._process = subprocess.Popen(
            list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=data.ROOT
        )
        self.built = self._answer()
        if reason := self.built.get("refused"):
            self.end()
            raise Refused(reason)
        print(f"   {name}: built in {self.built['build_cpu_s']:.1f} s of CPU time", flush=True)

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}")
        return json.loads(line)

    def search(self, width: int, truth: str, mask: str = "-", threads: int = 1) -> dict | None:
        self._process.stdin.write(f"search {width} {truth} {mask} {threads}\n")
        self._process.stdin.flush()
        answer = self._answer()
        return None if "unsupported" in answer else answer

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait()


class Field:
    """Those who search one field; they end together."""

    def __init__(self, folder: Path, field: str, peers: list[str], absent: dict[str, str], *options: str):
        """Peers that cannot index the field are left out; `absent` gets the reason."""
        print(f"== {field} {' '.join(options)}".rstrip(), flush=True)
        ours = [binary(), "bench", "index", folder, "--field", field, *options]
        self.peers = [Peer(OURS, ours)]
        for name in peers:
            try:
                self.peers.append(Peer(name, [sys.executable, "-m", "bench.peer", name, folder, field]))
            except Refused as refused:
                absent[f"{name} on {field}"] = str(refused)
                print(f"   {name} is left out: {refused}", flush=True)

    def __enter__(self) -> list[Peer]:
        return self.peers

    def __exit__(self, *_exception: object) -> None:
        for peer in self.peers:
            peer.end()


class Rounds:
    """Answers by what was asked, a list of the rounds' each."""

    def __init__(self):
        self.of: dict[tuple, list[dict]] = {}

    def add(self, key: tuple, answer: dict | None) -> None:
        if answer is not None:
            self.of.setdefault(key, []).append(answer)

    def rows(self, *names: str) -> list[dict]:
        """A row for each thing asked: the medians, and the rounds' speeds."""
        return [
            dict(zip(names, key))
            | {name: statistics.median(one[name] for one in answers) for name in answers[0]}
            | {"rounds": [one["qps_cpu"] for one in answers]}
            for key, answers in self.of.items()
        ]


def dense(folder: Path, peers: list[str], rounds: int, absent: dict[str, str]) -> dict:
    curves, filtered, both = Rounds(), Rounds(), Rounds()
    masks = sorted(folder.glob("mask_*.npy"))
    with Field(folder, "dense", peers, absent) as processes:
        for number in range(rounds):
            for at in range(len(WIDTHS)):
                for peer in processes:
                    width = (LEAVES if peer.name == "scann" else WIDTHS)[at]
                    curves.add((peer.name, width), peer.search(width, "gt_dense.npy"))
            for mask in masks:
                name = mask.stem.removeprefix("mask_")
                for width in FILTER_WIDTHS:
                    for peer in processes:
                        answer = peer.search(width, f"gt_{name}.npy", mask.name)
                        filtered.add((name, peer.name, width), answer)
            for threads in (1, 2):
                for peer in processes:
                    if peer.name in (OURS, "hnswlib"):
                        answer = peer.search(TWO_THREADS_WIDTH, "gt_dense.npy", "-", threads)
                        both.add((peer.name, threads), answer)
            print(f"   round {number + 1} of {rounds}", flush=True)
        built = {peer.name: peer.built for peer in processes}
    shares = {mask.stem.removeprefix("mask_"): float(np.load(mask).mean()) for mask in masks}
    kept = [row | {"share": shares[row["filter"]]} for row in filtered.rows("filter", "peer", "width")]
    return {
        "built": built,
        "curves": curves.rows("peer", "width"),
        "filtered": kept,
        "threads": both.rows("peer", "threads"),
    }


def flat(folder: Path, peers: list[str], rounds: int, absent: dict[str, str]) -> dict:
    found = Rounds()
    with Field(folder, "dense", peers, absent, "--flat") as processes:
        for _ in range(rounds):
            for peer in processes:
                found.add((peer.name,), peer.search(0, "gt_dense.npy"))
    return {"rows": found.rows("peer")}


def sparse(folder: Path, field: str, peers: list[str], rounds: int, absent: dict[str, str]) -> dict:
    found = Rounds()
    with Field(folder, field, peers, absent) as processes:
        for number in range(rounds):
            for peer in processes:
                for width in SPARSE_WIDTHS[peer.name]:
                    found.add((peer.name, width), peer.search(width, f"gt_{field}.npy"))
            print(f"   round {number + 1} of {rounds}", flush=True)
        built = {peer.name: peer.built for peer in processes}
    return {"built": built, "curves": found.rows("peer", "width")}


def installed(wanted: list[str], lite: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Version of each package that a wanted peer needs, and why others are absent."""
    packages = dict.fromkeys(PEERS[name].package for name in wanted)
    if lite:
        packages[wire.LITE] = None
    there, absent = {}, {}
    for package in packages:
        name, version = package.split("==")
        try:
            if importlib.metadata.version(name) == version:
                there[name] = version
                continue
        except importlib.metadata.PackageNotFoundError:
            pass
        print(f"== install {package}", flush=True)
        command = [sys.executable, "-m", "pip", "install", "--quiet", package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            there[name] = version
        else:
            reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            absent[package] = reasons[-1] if reasons else f"pip ended with {done.returncode}"
    return there, absent


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB"


def commit() -> str:
    command = ["git", "-C", str(data.ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", type=int, help="made-up rows in place of the real ones: the graph, and a node by itself"
    )
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement over the wire")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}")
    parser.add_argument("--out", type=Path, default=data.ROOT / "docs" / "benchmarks")
    args = parser.parse_args()
    wanted = [name for name in args.peers.split(",") if name]
    if unknown := set(wanted) - set(PEERS):
        parser.error(f"unknown peers {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    there, absent = installed(wanted, lite=not args.rows)
    wanted = [name for name in wanted if PEERS[name].package.split("==")[0] in there]
    if args.rows:
        folder, name = data.made_up(args.rows, args.dim), f"results-{args.rows}-x-{args.dim}"
    else:
        data.webster()
        folder, name = data.WEBSTER, "results"
    load, began = os.getloadavg()[0], time.monotonic()
    chosen = lambda kind: [name for name in wanted if name in kind]  # noqa: E731
    run = {
        "dense": dense(folder, chosen(DENSE), args.rounds, absent),
        "flat": None,
        "sparse": {
            field: sparse(folder, field, chosen(SPARSE), args.rounds, absent)
            for field in SPARSE_FIELDS
            if (folder / f"{field}.npy").exists()
        },
        "million": {},
        "wire": None,
    }
    if not args.rows:
        run["flat"] = flat(folder, chosen(FLAT), args.rounds, absent)
        data.million()
        run["million"] = {field: sparse(data.MILLION, field, [], args.rounds, absent) for field in SPARSE_FIELDS}
        print("== over the wire", flush=True)
        run["wire"] = wire.measure(folder, args.rounds, args.seconds, "milvus-lite" in there)
    print("== a node by itself", flush=True)
    run["alone"] = wire.alone(folder, args.seconds)
    run |= {
        "when": datetime.date.today().isoformat(),
        "minutes": (time.monotonic() - began) / 60,
        "load": load,
        "machine": machine(),
        "commit": commit(),
        "about": json.loads((folder / "about.json").read_text()),
        "rounds": args.rounds,
        "versions": there,
        "absent": absent | (run["wire"] or {}).get("absent", {}),
    }
    report.write(args.out, name, run)


if __name__ == "__main__":
    main()
