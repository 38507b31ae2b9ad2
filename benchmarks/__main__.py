"""Run every benchmark and rewrite docs/benchmarks.md.

    python -m benchmarks [--quick]

The page is rewritten whole, also where a claim does not hold: it then says so, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "benchmarks.md"


def main(arguments: list[str]) -> int:
    """Run the scripts one after the other; 0 where every claim of every one holds, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="run all, rewrite docs/benchmarks.md")
    parser.add_argument("--quick", action="store_true", help="smaller runs, for two cores and two minutes each")
    options = parser.parse_args(arguments)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for script in sorted(FOLDER.glob("[!_]*.py")):
            path = Path(folder) / f"{script.stem}.json"
            command = [sys.executable, str(script), "--json", str(path)] + ["--quick"] * options.quick
            subprocess.run(command, check=False)
            if not path.exists():
                print(f"{script}: ended without a result; {PAGE} is left as it was", file=sys.stderr)
                return 1
            results.append(json.loads(path.read_text()))
    today = datetime.datetime.now(datetime.UTC).date()
    PAGE.write_text(page(results, today, options.quick), encoding="utf-8")
    return 0 if all(claim["holds"] is not False for result in results for claim in result["claims"]) else 1


def page(results: list[dict[str, Any]], day: datetime.date, quick: bool) -> str:
    """The Markdown page of ``results``, the scripts' JSON.

    A claim whose ``holds`` is null could not be measured on the machine, and is shown as such.
    """
    command = "python -m benchmarks" + " --quick" * quick
    lines = ["# Benchmarks", "", f"Written by `{command}` on {day.isoformat()}; do not edit."]
    lines += ["Each ratio is ours to the peer's, measured in turns in one run: medians of the rounds.", ""]
    verdicts = {True: "holds", False: "**does not hold**", None: "not measured on this machine"}
    for result in results:
        machine = result["machine"]
        versions = ", ".join(f"{library} {version}" for library, version in result["versions"].items())
        lines += [f"## {result['name']}", ""]
        gpu = f", {machine['gpu']}" if machine["gpu"] else ""
        lines += [f"Machine: {machine['processor']}, {machine['cores']} cores{gpu}, {machine['memory_gb']} GB memory"]
        lines[-1] += f", {machine['system']}. Versions: {versions}."
        if result["rows"]:
            lines += ["", "| what | ours | peer | ratio | unit | peer is |", "|---|---:|---:|---:|---|---|"]
        for row in result["rows"]:
            numbers = f"{row['ours']:,.0f} | {row['peer']:,.0f} | {row['ratio']:.2f}"
            lines.append(f"| {row['what']} | {numbers} | {row['unit']} | {row['peer_name']} |")
        lines += ["", "| claim | target | measured | |", "|---|---:|---:|---|"]
        for claim in result["claims"]:
            measured = "" if claim["measured"] is None else f"{claim['measured']:.2f}"
            lines.append(f"| {claim['claim']} | {claim['target']:g} | {measured} | {verdicts[claim['holds']]} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
