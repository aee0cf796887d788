"""The command line: measure, print the table, write the results and the picture."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tests.bench import against_raw, growth, metg, peers, report, told
from tests.bench.machine import commit, describe
from tests.bench.plan import Plan, full, quick
from tests.bench.rows import Row, Selection


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="The engine against raw standard-library baselines, in one run on this machine.",
    )
    parser.add_argument("--quick", action="store_true", help="smaller graphs, fewer rounds: below a minute")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help=f"a group ({', '.join(report.TITLES)}) or one of its rows (threads/chain); may be given several times",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("bench-output"), metavar="DIR", help="folder for results and picture"
    )
    parser.add_argument(
        "--peers", type=Path, metavar="FILE", help="results of other engines, as docs/performance.md describes"
    )
    options = parser.parse_args()
    unknown = [name for name in options.only if name.partition("/")[0] not in report.TITLES]
    if unknown:
        parser.error(f"--only: no group {unknown[0]!r}; there are {', '.join(report.TITLES)}")
    if options.peers is not None and not options.peers.is_file():
        parser.error(f"--peers: no file {str(options.peers)!r}")
    return options


def measure(plan: Plan, options: argparse.Namespace) -> Iterator[Row]:
    selection = Selection(tuple(options.only))
    measured = []
    for group in (against_raw, growth, told, metg):
        for row in group.measure(plan, selection):
            measured.append(row)
            yield row
    if options.peers is not None:
        yield from peers.measure(options.peers, measured, selection)


def head(plan: Plan, options: argparse.Namespace, begun: float) -> dict[str, Any]:
    """What the rows do not say."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "quick": options.quick,
        "machine": describe(),
        "seconds": round(time.perf_counter() - begun, 1),
        "waited_for_quiet_s": round(plan.patience.waited, 1),
    }


def main() -> int:
    options = arguments()
    plan = quick() if options.quick else full()
    begun = time.perf_counter()
    rows = []
    for row in measure(plan, options):
        rows.append(row)
        print(f"\r\033[K{len(rows)}: {row.group}/{row.name}" if sys.stderr.isatty() else ".", end="", file=sys.stderr)
    print(file=sys.stderr)
    if not rows:
        print("nothing was measured: no such row", file=sys.stderr)
        return 2
    facts = head(plan, options, begun)
    options.output.mkdir(parents=True, exist_ok=True)
    results, picture = options.output / "results.json", options.output / "bench.png"
    report.write(results, facts, rows)
    print(report.table(rows))
    print(f"\n{report.summary(rows)}")
    print(
        f"measured in {facts['seconds']:.0f} s, of which {facts['waited_for_quiet_s']:.0f} waiting for a quiet machine"
    )

    from tests.bench import plot  # slow

    plot.draw(picture, facts, rows)
    print(f"results: {results}\npicture: {picture}")
    return 0 if all(row.value is not None for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
