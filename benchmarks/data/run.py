"""Curation of synthetic chat rows: minutes, memory, and what of the planted rows is found.

    python -m benchmarks.data --rows 100000 1000000 --folder runs/bench-data --page docs/benchmarks-data.md

Memory is the most that all processes of the stage have together, with pages that they share counted once (PSS). Recall
is of pairs at or above the threshold of which one row was dropped, precision of dropped rows which repeat another.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.data.report import HEAD, Measured, page
from benchmarks.data.synthetic import Planted, write_rows
from benchmarks.speed.measure import machine
from data_schemas.files import write_atomically

ROOT = Path(__file__).parents[2]
THRESHOLD = 0.8
EVERY_SECONDS = 1.0
DUPLICATES = frozenset(["exact_duplicate", "near_duplicate"])


KINDS = ("exact", "near", "contaminated", "german")


def measure(num_rows: int, folder: Path) -> Measured:
    """Writes the rows, runs the stage on them, and compares what it dropped with what was planted."""
    shutil.rmtree(folder / "curated", ignore_errors=True)  # of the benchmark's last run
    rows, evaluation, planted = write_rows(folder, num_rows)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    peak = _run_stage(rows, evaluation, folder / "curated")
    seconds, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    with (folder / "curated" / "dropped.jsonl").open(encoding="utf-8") as file:
        dropped = {int(line["place"].rpartition(":")[2]): line["rule"] for line in map(json.loads, file)}
    return _compare(num_rows, seconds / 60, cpu / 60, peak / 2**30, dropped, planted)


def _run_stage(rows: Path, evaluation: Path, output: Path) -> int:
    """Runs the stage in processes of its own. Returns the most memory that they had together, in bytes."""
    stage = [sys.executable, str(ROOT / "stages" / "curate.py"), "--instructions", str(rows), "--languages", "en"]
    keys = ["--evaluation_prompts", str(evaluation), "--output_dir", str(output), "--report_to", "none"]
    process = subprocess.Popen([*stage, *keys], cwd=ROOT)
    peak = 0
    while process.poll() is None:
        peak = max(peak, _memory(psutil.Process(process.pid)))
        time.sleep(EVERY_SECONDS)
    if process.returncode:
        raise SystemExit(f"the stage ended with exit code {process.returncode}; its log is above")
    return peak


def _memory(root: psutil.Process) -> int:
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:  # it ended
            continue
    return total


def _compare(
    num_rows: int, minutes: float, cpu: float, peak: float, dropped: dict[int, str], planted: Sequence[Planted]
) -> Measured:
    expected = {kind: [row for row in planted if row.kind == kind] for kind in KINDS}
    expected["near"] = [row for row in expected["near"] if row.similarity >= THRESHOLD]
    repeats = {line for row in (*expected["exact"], *expected["near"]) for line in (row.line, row.partner)}
    duplicates = {line for line, rule in dropped.items() if rule in DUPLICATES}
    found = {
        kind: (sum(_is_found(row, dropped, duplicates) for row in rows), len(rows)) for kind, rows in expected.items()
    }
    hits = found["exact"][0] + found["near"][0]
    by_others = dropped.keys() - duplicates
    other = sum(row.kind in ("base", "exact", "near") and row.line in by_others for row in planted)
    wrong = len(duplicates) - hits  # rows that repeat none, and pairs of which both rows are dropped
    assert wrong >= len(duplicates - repeats)
    return Measured(num_rows, minutes, cpu, peak, found, len(duplicates), wrong, other)


def _is_found(row: Planted, dropped: dict[int, str], duplicates: set[int]) -> bool:
    if row.kind == "german":
        return dropped.get(row.line, "").endswith("_language")
    if row.kind == "contaminated":
        return dropped.get(row.line) in ("tulu3_8gram", "llama3_exact_prompt")
    return bool({row.line, row.partner} & duplicates)


def main() -> None:
    """Prints the table, a line for each number of rows, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-data"), help="a folder for each number of rows")
    parser.add_argument("--page", type=Path, help="the Markdown file to write")
    arguments = parser.parse_args()
    print(HEAD, flush=True)
    runs = []
    for num_rows in arguments.rows:
        runs.append(measure(num_rows, arguments.folder / str(num_rows)))
        print(runs[-1].line, flush=True)
    if arguments.page:
        write_atomically(arguments.page, page(runs, machine()))


if __name__ == "__main__":
    main()
