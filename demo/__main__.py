"""The node end to end, on real models and real texts: text in, hybrid search out.

    make demo
    .venv/bin/python -m demo "open a zip archive" "sum of floats without rounding"

Starts the release binary with its embedded defaults, has it embed the documentation of the Python
standard library, and asks in plain English. Questions on the command line replace those below.
"""

import contextlib
import os
import platform
import sys
import textwrap
import time
from pathlib import Path

from demo import fetch_models, library
from demo.corpus import collect
from demo.node import ROOT, Node, NodeFailed

WIDTH = 96
COLUMN = 29
SHOWN = 5

ASKED = (
    "make a temporary directory",
    "compress bytes",
    "parse command line arguments",
    "delete a folder and everything in it",
    "run another program and capture its output",
    "what is the current working directory",
)

DATA_DIR = ROOT / ".demo" / "data"


def say(line: str = "") -> None:
    print(line, flush=True)


def heading(title: str) -> None:
    say(f"\n== {title}")


class Bar:
    """Progress of the insert: one line redrawn on a terminal, a line for each tenth elsewhere."""

    def __init__(self, total: int):
        self._total = total
        self._terminal = sys.stdout.isatty()
        self._tenth = 0

    def __call__(self, rows: int, seconds: float) -> None:
        rate = rows / max(seconds, 1e-9)
        left = (self._total - rows) / rate
        filled = 30 * rows // self._total
        line = (
            f"   [{'#' * filled}{'.' * (30 - filled)}] {rows:>5,} of {self._total:,} texts, "
            f"{rate:4.0f}/s, {left:3.0f} s left"
        )
        if self._terminal:
            print(f"\r{line}", end="\n" if rows == self._total else "", flush=True)
        elif rows * 10 // self._total > self._tenth:
            self._tenth = rows * 10 // self._total
            say(line)


def main(asked: list[str]) -> int:
    begin = time.monotonic()
    if not all(fetch_models.present(model, fetch_models.DEFAULT_DIR) for model in fetch_models.MODELS):
        say("The models are not here: make models")
        return 1
    heading("node")
    try:
        with Node(DATA_DIR, fetch_models.DEFAULT_DIR) as node:
            say(f"   ready after {node.ready_ms:.0f} ms on {node.address}, everything in {_short(DATA_DIR)}")
            with contextlib.closing(library.MilvusClient(node.uri)) as client:
                show(client, asked)
            heading("stop")
            say(f"   the node ended after {node.stop():.2f} s")
    except NodeFailed as failed:
        say(f"   {failed}")
        return 1
    seconds = time.monotonic() - begin
    farewell(seconds)
    return 0


def show(client: library.MilvusClient, asked: list[str]) -> None:
    heading("texts")
    began = time.monotonic()
    documents = collect()
    say(
        f"   {len(documents):,} documentation strings of the standard library of Python "
        f"{platform.python_version()}, read in {time.monotonic() - began:.1f} s"
    )

    heading("insert")
    say(f"   dense   {library.DENSE_MODEL}, made by the node")
    say(f"   sparse  {library.SPARSE_MODEL}, made by the node")
    seconds = library.prepare(client, documents, Bar(len(documents)))
    if seconds is None:
        say(f"   these {len(documents):,} texts are in the collection already")
    else:
        rate = len(documents) / seconds
        say(f"   {len(documents):,} texts embedded by both models and stored in {seconds:.1f} s, {rate:.0f} a second")

    known = {question.ask: question.answers for question in library.questions(documents)}
    began = time.monotonic()
    library.fused(client, "warm up")
    first_ms = (time.monotonic() - began) * 1000
    heading(f"search (the first one took {first_ms:.0f} ms{', loading the models' if seconds is None else ''})")
    say("   A * marks a known answer, where the demo knows one.")
    for ask in asked or ASKED:
        side_by_side(client, ask, known.get(ask, frozenset()))

    heading("search under a filter")
    compressed = 'kind == "function" and module in ["gzip", "lzma", "zipfile"]'
    filtered(client, "read a compressed file", compressed)
    filtered(client, "is the connection still open", 'module like "asyncio%" and kind != "module"')

    heading("how good is it")
    quality(client, list(library.questions(documents)))


def side_by_side(client: library.MilvusClient, ask: str, answers: frozenset[str]) -> None:
    found = [search(client, ask) for search in (library.dense, library.sparse, library.fused)]
    say(f'\n   "{ask}"')
    titles = [f"{leg}, {hits.ms:.1f} ms" for leg, hits in zip(("dense", "sparse", "fused"), found)]
    say("        " + "  ".join(f"{title:<{COLUMN}}" for title in titles).rstrip())
    for rank in range(SHOWN):
        cells = []
        for hits in found:
            name = hits.names[rank] if rank < len(hits.names) else ""
            mark = "*" if name in answers else " "
            cells.append(f"{mark}{_fit(name, COLUMN - 1):<{COLUMN - 1}}")
        say(f"     {rank + 1} " + "  ".join(cells).rstrip())
    best = found[2]
    if best.names:
        quote(best.names[0], best.texts[0])


def filtered(client: library.MilvusClient, ask: str, condition: str) -> None:
    hits = library.fused(client, ask, limit=SHOWN, filter=condition)
    say(f'\n   "{ask}"')
    say(f"   where {condition}   ({hits.ms:.1f} ms)")
    for rank, (name, text) in enumerate(zip(hits.names, hits.texts), start=1):
        say(f"     {rank}  {_fit(name, 36):<36}  {_fit(text, WIDTH - 46)}")


def quality(client: library.MilvusClient, asked: list[library.Question]) -> None:
    say(f"   {len(asked)} questions with known answers (demo/questions.json). recall@10: for how many of them")
    say("   a known answer is among the first ten. MRR: the mean of 1/rank of the first known answer.\n")
    say("              recall@10     MRR   not among the first ten")
    for leg, search in (("dense", library.dense), ("sparse", library.sparse), ("fused", library.fused)):
        result, missed = library.measure(client, asked, search)
        lines = textwrap.wrap("; ".join(question.ask for question in missed) or "-", WIDTH - 36)
        say(f"   {leg:<8} {result.recall_at_10:>10.3f}  {result.mrr_at_10:>7.3f}   {lines[0]}")
        for line in lines[1:]:
            say(" " * 35 + line)


def quote(name: str, text: str) -> None:
    lines = textwrap.wrap(f"{name}: {text}", WIDTH - 8)
    for line in lines[:2]:
        say(f"        {line}")


def farewell(seconds: float) -> None:
    say(f"\nDone in {seconds:.0f} s. To run the node for good, with these models:\n")
    node = os.environ.get("ELANUS_BIN", "target/release/elanus")
    say(f"   {_short(Path(node))} serve --data-dir elanus-data --model-dir {_short(fetch_models.DEFAULT_DIR)}\n")
    say('and from Python: MilvusClient("http://localhost:19530"). README.md shows the rest.')


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def _fit(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 2] + ".."


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("\ninterrupted; the node was stopped, and what was inserted stays", file=sys.stderr)
        sys.exit(130)
