"""Run everything, write the tables of docs/autoscaling.md and draw its plots (`make bench-autoscaling`).

python -m autoscaling.report --docs docs
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from autoscaling import plots
from autoscaling.compare import BY_HAND, HOURS_ALLOWED, OURS, POLICIES, Row, run_all, shortfalls, table, total
from autoscaling.trace_set import ALL

BEGIN, END = "<!-- tables: make bench-autoscaling -->", "<!-- end of tables -->"
SHOWN = (OURS, "KubeAI", *BY_HAND, "HPA, both", "AIBrix KPA, summed", "WVA", "KEDA", "always max")


def tables(rows: Sequence[Row]) -> str:
    held_out = [row for row in rows if row.half == "held-out"]
    tune = [row for row in rows if row.half == "tune"]
    return "\n\n".join(
        [
            "Held-out half, all cold starts:",
            table(held_out),
            _verdict(held_out),
            "Held-out half, misses / replica-hours by kind of trace:",
            _split(held_out, lambda row: row.kind),
            "Held-out half, by cold start:",
            _split(held_out, lambda row: f"{row.cold_start:.0f} s"),
            "The half that was tuned by:",
            table(tune),
        ]
    )


def _verdict(rows: Sequence[Row]) -> str:
    ours = total(rows, OURS)
    allowed = HOURS_ALLOWED * ours.replica_hours
    rivals = [name for name in POLICIES if name not in (OURS, *BY_HAND)]
    near = [one for name in rivals if (one := total(rows, name)).replica_hours <= allowed]
    best = min(near, key=lambda one: one.misses)
    return (
        f"Of the rivals within {HOURS_ALLOWED} times our replica-hours ({allowed:.1f}) the best is {best.policy} with "
        f"{best.misses:,} misses; ours has {ours.misses:,}. Rivals that are better: "
        f"{'; '.join(shortfalls(rows)) or 'none'}."
    )


def _split(rows: Sequence[Row], key: Callable[[Row], str]) -> str:
    groups = list(dict.fromkeys(key(row) for row in rows))
    lines = [f"| autoscaler | {' | '.join(groups)} |", f"|---|{'---:|' * len(groups)}"]
    for name in SHOWN:
        parts = [total([row for row in rows if key(row) == group], name) for group in groups]
        cells = " | ".join(f"{part.misses:,} / {part.replica_hours:.0f}" for part in parts)
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def fill(page: str, text: str) -> str:
    """The page with `text` between the marks."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", required=True, type=Path, metavar="FOLDER", help="holds autoscaling.md")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    args = parser.parse_args(argv)
    rows = run_all(ALL, POLICIES, jobs=args.jobs)
    page = args.docs / "autoscaling.md"
    page.write_text(fill(page.read_text(), tables(rows)))
    plots.draw_all(rows, args.docs)
    held_out = [row for row in rows if row.half == "held-out"]
    print(f"{table(held_out)}\n\n{_verdict(held_out)}")
    return 1 if shortfalls(held_out) else 0


if __name__ == "__main__":
    sys.exit(main())
