"""Writes what a run measured: a page of tables, and plots of speed against recall."""

import math
import statistics
from pathlib import Path

from bench.peer import PEERS

OURS = "elanus"
RECALLS = (0.95, 0.98, 0.99, 0.995)
FILTERED_RECALL = 0.99
# A tick of the clock by which CPU time is counted.
SHORTEST_S = 0.01


def figure(number: float) -> str:
    """Three digits that count."""
    if number is None or math.isnan(number):
        return "–"
    if number >= 100:
        digits = 10 ** max(0, math.floor(math.log10(number)) - 2)
        return f"{round(number / digits) * digits:,.0f}"
    return f"{number:.3g}"


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["", *(f"| {' | '.join(map(str, line))} |" for line in lines), ""]


def at_recall(points: list[tuple[float, float]], recall: float) -> float | None:
    """Speed where a curve of (recall, speed) reaches `recall`, between its points on a logarithmic
    scale; a curve that begins above gives its quickest point, one that ends below none."""
    points = sorted(points)
    if not points or points[-1][0] < recall:
        return None
    best = max(speed for found, speed in points if found >= recall)
    for (low, slow), (high, quick) in zip(points, points[1:]):
        if low < recall <= high:
            share = (recall - low) / (high - low)
            best = max(best, math.exp(math.log(slow) * (1 - share) + math.log(quick) * share))
    return best


def curve(rows: list[dict], peer: str, number: int | None = None) -> list[tuple[float, float]]:
    """One peer's (recall, speed), of one round or of the medians."""
    speed = lambda row: row["qps_cpu"] if number is None else row["rounds"][number]  # noqa: E731
    return [(row["recall"], speed(row)) for row in rows if row["peer"] == peer]


def ratio(rows: list[dict], peer: str, recall: float, rounds: int) -> str:
    """How many times as quick ours is: the median of the rounds, and their range."""
    pairs = [
        (at_recall(curve(rows, OURS, number), recall), at_recall(curve(rows, peer, number), recall))
        for number in range(rounds)
    ]
    ratios = [ours / theirs for ours, theirs in pairs if ours and theirs]
    return spread(ratios)


def spread(ratios: list[float]) -> str:
    if not ratios:
        return "–"
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def equal_recall(rows: list[dict], recalls, rounds: int) -> list[str]:
    peers = list(dict.fromkeys(row["peer"] for row in rows))
    lines = []
    for peer in peers:
        cells = [peer]
        for recall in recalls:
            cells += [figure(at_recall(curve(rows, peer), recall)), ratio(rows, peer, recall, rounds)]
        lines.append(cells)
    head = ["", *(cell for recall in recalls for cell in (f"QPS at {recall}", "elanus is × as quick"))]
    return table(head, lines)


def points(rows: list[dict]) -> list[str]:
    cells = [
        [
            row["peer"], row["width"], f"{row['recall']:.4f}", figure(row["qps_cpu"]),
            figure(row["p50_us"]), figure(row["p99_us"]),
        ]
        for row in sorted(rows, key=lambda row: (row["peer"] != OURS, row["peer"], row["width"]))
    ]
    return table(["", "width", "recall@10", "QPS", "p50 µs", "p99 µs"], cells)


def built(rows: dict[str, dict]) -> list[str]:
    cells = [
        [
            name, figure(row["build_cpu_s"]), figure(row["build_cpu_s"] / max(rows[OURS]["build_cpu_s"], SHORTEST_S)),
            f"{figure(row['index_mb'])} (the index)" if "index_mb" in row else f"{figure(row['grown_mb'])} (the process)",
        ]
        for name, row in rows.items()
    ]
    return table(["", "build, CPU s", "of elanus' time", "memory grown by MB"], cells)


def against(rows: list[dict], peer: str) -> str:
    ours = next((row["rounds"] for row in rows if row["peer"] == OURS), [])
    theirs = next((row["rounds"] for row in rows if row["peer"] == peer), [])
    return spread([a / b for a, b in zip(ours, theirs)])


def filtered(rows: list[dict], rounds: int) -> list[str]:
    cells = []
    for name in dict.fromkeys(row["filter"] for row in rows):
        same = [row for row in rows if row["filter"] == name]
        for peer in dict.fromkeys(row["peer"] for row in same):
            cells.append([
                filter_name(name), f"{same[0]['share']:.1%}", peer,
                figure(at_recall(curve(same, peer), FILTERED_RECALL)), ratio(same, peer, FILTERED_RECALL, rounds),
            ])
    head = ["filter", "allowed", "", f"QPS at {FILTERED_RECALL}", "elanus is × as quick"]
    return table(head, cells)


def filter_name(name: str) -> str:
    return name.replace("_", " ").replace("p", " %")


def filtered_points(rows: list[dict]) -> list[str]:
    cells = [
        [
            filter_name(row["filter"]), row["peer"], row["width"], f"{row['recall']:.4f}",
            figure(row["qps_cpu"]), figure(row["p50_us"]), figure(row["p99_us"]),
        ]
        for row in sorted(rows, key=lambda row: (row["filter"], row["peer"] != OURS, row["peer"], row["width"]))
    ]
    return table(["filter", "", "width", "recall@10", "QPS", "p50 µs", "p99 µs"], cells)


def flat(rows: list[dict], about: dict) -> list[str]:
    cells = [
        [
            row["peer"], f"{row['recall']:.4f}", figure(row["qps_cpu"]),
            figure(row["qps_cpu"] * about["rows"] * about["dim"] * 4 / 1e9), against(rows, row["peer"]),
        ]
        for row in rows
    ]
    head = ["", "recall@10", "QPS", "GB/s", "elanus is × as quick"]
    return ["### Every row looked at, one query at a time", *table(head, cells)]


def alone(run: dict, about: dict) -> list[str]:
    idle, meanwhile, raw_mb = run["idle"], run["meanwhile"], about["rows"] * about["dim"] * 4 / 1e6
    growing = [[figure(idle["qps"]), figure(meanwhile["qps"]), f"{meanwhile['qps'] / idle['qps']:.0%}", figure(idle["p99_ms"]), figure(meanwhile["p99_ms"])]]
    opened = [
        [
            how, figure(one["ready_ms"]), figure(one["first_ms"]), f"{one['recall']:.4f}", figure(one["qps"]),
            figure(one["memory"]["resident_mb"]), f"{one['memory']['resident_mb'] / raw_mb:.2f}", figure(one["memory"]["mapped_resident_mb"]),
        ]
        for how, one in run["opened"].items()
    ]
    return [
        "## A node by itself",
        "",
        "One connection, ef 32. Half of the rows are there and indexed, then the others come at 5,000 a second, 500 in a call:",
        *table(["QPS before", "QPS meanwhile", "share", "p99 ms before", "p99 ms meanwhile"], growing),
        f"Started again with all rows, whose vectors take {raw_mb:.0f} MB. Mapped pages are the kernel's to drop:",
        *table(
            ["graph", "ready ms", "first search ms", "recall@10", "QPS", "memory of its own, MB", "of the vectors", "mapped and resident, MB"],
            opened,
        ),
    ]


def threads(rows: list[dict]) -> list[str]:
    cells = []
    for name in dict.fromkeys(row["peer"] for row in rows):
        one, two = (next(r for r in rows if (r["peer"], r["threads"]) == (name, n)) for n in (1, 2))
        cells.append([name, figure(one["qps"]), figure(two["qps"]), f"{two['qps'] / one['qps']:.2f}"])
    return table(["", "QPS, one thread", "QPS, two", "ratio"], cells)


def wire(run: dict) -> list[str]:
    filled = [
        [
            one["server"], figure(one["insert"]["rows_per_s"]), figure(one["insert"]["rows_per_server_cpu_s"]),
            figure(one["insert"]["p99_ms"]), figure(one["index"]["wall_s"]), figure(one["index"]["cpu_s"]),
            figure(one["index"]["memory"]["resident_mb"]), figure(one["index"]["memory"]["mapped_resident_mb"]),
        ]
        for one in run["loaded"]
    ]
    head = ["", "insert rows/s", "per server CPU s", "p99 ms of 1,000 rows", "flush and index s", "CPU s", "resident MB", "mapped and resident MB"]
    lines = table(head, filled)
    asked = run["searched"]
    key = lambda row: (row["what"], row["ef"], row["concurrency"])  # noqa: E731
    lite = {key(row): row["qps"] for row in asked if row["server"] != OURS}
    order = list(dict.fromkeys(row["what"] for row in asked))
    cells = [
        [
            row["what"], row["ef"] or "–", row["concurrency"], row["server"], f"{row['recall']:.4f}", figure(row["qps"]),
            figure(row["p50_ms"]), figure(row["p99_ms"]), figure(row["qps_per_server_cpu_s"]),
            figure(row["qps"] / lite[key(row)]) if row["server"] == OURS and key(row) in lite else "",
        ]
        for row in sorted(asked, key=lambda row: (order.index(row["what"]), row["ef"] or 0, row["concurrency"], row["server"]))
    ]
    head = ["", "ef", "connections", "", "recall@10", "QPS", "p50 ms", "p99 ms", "QPS per server CPU s", "× milvus-lite"]
    return lines + table(head, cells)


def page(name: str, run: dict) -> str:
    about, dense = run["about"], run["dense"]
    versions = ", ".join(f"{package} {version}" for package, version in sorted(run["versions"].items()))
    what = [f"- {name}: {PEERS[name].__doc__}." for name in PEERS if any(name in d["built"] for d in [dense, *run["sparse"].values()])]
    lines = [
        "# Benchmark results",
        "",
        f"Written by `make bench` on {run['when']} in {run['minutes']:.0f} minutes, at commit {run['commit']}, on {run['machine']}; "
        f"load average before it {run['load']:.1f}.",
        "",
        f"{about['rows']:,} rows of {about['dim']} dimensions and {about['queries']:,} queries: {about['what']}, seed {about['seed']}. "
        f"{run['rounds']} rounds in which everybody has a turn, medians. Speed in process is queries per second of CPU time, "
        "of one thread where nothing else is said. A result counts that is as close as the last true one.",
        "",
        f"{versions}. Graphs have M 16 and efConstruction 200, inner product, top 10.",
        "",
        "- elanus: this project's indexes, without a server.",
        *what,
        *(f"- absent: {package}. {reason}" for package, reason in run["absent"].items()),
        "",
        "What was tried and rejected is in [notes.md](notes.md).",
        "",
        "## Dense",
        "",
        f"![Queries per second against recall]({name}-dense.svg)",
        *equal_recall(dense["curves"], RECALLS, run["rounds"]),
        "A peer whose narrowest setting is above a recall is given its speed there.",
        "",
        "### Building, one thread",
        *built(dense["built"]),
        "### Two threads, width 64, by the clock",
        *threads(dense["threads"]),
        *(flat(run["flat"]["rows"], about) if run["flat"] else []),
        "### Filtered",
        *filtered(dense["filtered"], run["rounds"]),
        *filtered_points(dense["filtered"]),
        "### All points",
        *points(dense["curves"]),
    ]
    labels = {"splade": "learned weights (SPLADE)", "bm25": "BM25 weights"}
    for field, found in run["sparse"].items():
        label = labels[field]
        lines += [
            f"## Sparse, {label}",
            "",
            "Width: percent of a query left out (elanus), terms that count (Seismic).",
            "",
            f"![Queries per second against recall]({name}-{field}.svg)",
            *equal_recall(found["curves"], (0.97, 0.995, 1.0), run["rounds"]),
            *built(found["built"]),
            *points(found["curves"]),
        ]
    if run["million"]:
        lines += ["## Sparse, a million rows made of the real ones", ""]
        for field, found in run["million"].items():
            lines += [f"{labels[field]}, one thread; width: percent of a query left out.", *built(found["built"]), *points(found["curves"])]
    if run["wire"]:
        lines += [
            "## Over the wire",
            "",
            "`elanus bench` drives both servers on the same machine, one request in flight on each connection; learned sparse "
            "weights beside the dense rows; hybrid is the dense search at ef 64 and the sparse one, 50 results each, fused by rank.",
            *wire(run["wire"]),
        ]
    lines += alone(run["alone"], about)
    return "\n".join(lines)


def draw(rows: list[dict], lowest: float, path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "elanus"
    picture, axes = pyplot.subplots(figsize=(7, 4.5))
    for name in dict.fromkeys(row["peer"] for row in rows):
        found = sorted(curve(rows, name))
        axes.plot(
            *zip(*found), marker="o", markersize=3, linewidth=2.5 if name == OURS else 1.2, label=name
        )
    axes.set(xlabel="recall@10", ylabel="queries per second of CPU time", yscale="log", xlim=(lowest, 1.002))
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    picture.tight_layout()
    picture.savefig(path, metadata={"Date": None})
    pyplot.close(picture)


def write(folder: Path, name: str, run: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw(run["dense"]["curves"], 0.85, folder / f"{name}-dense.svg")
    for field, found in run["sparse"].items():
        draw(found["curves"], 0.75, folder / f"{name}-{field}.svg")
    (folder / f"{name}.md").write_text(page(name, run) + "\n")
    print(f"wrote {folder / name}.md and its plots", flush=True)
