"""A plan as a person reads it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vcc_fm.ground.words import many


def print_plan(plan: dict[str, Any], console: Console) -> None:
    """Show a plan to a person."""
    table = Table("stage", "state", "writes", title=f"plan of {escape(plan['recipe'])}", title_justify="left")
    for stage in plan["stages"]:
        table.add_row(stage["stage"], "done" if stage["done"] else "to do", escape(_outputs(stage["outputs"])))
    console.print(table)
    lines = Table.grid(padding=(0, 2))
    for name, text in _lines(plan):
        lines.add_row(f"[bold]{escape(name)}[/bold]", escape(text))
    console.print(lines)
    notes = [(plan.get("proteins") or {}).get("note"), *(plan.get("split") or [{"warnings": []}])[0]["warnings"]]
    for source in (plan.get("cells") or {"sources": []})["sources"]:
        notes += [f"{source['name']}: {doubt}" for doubt in source["values"].get("doubts", [])]
    notes += (plan.get("asked") or {"notes": []})["notes"]
    for note in filter(None, notes):
        console.print(f"[yellow]note[/yellow] {escape(note)}", highlight=False, soft_wrap=True)
    for problem in plan["problems"]:
        console.print(f"[red]problem[/red] {escape(problem)}", highlight=False, soft_wrap=True)
    if not plan["problems"]:
        console.print("nothing stands in the way")


def _outputs(paths: list[str]) -> str:
    """Up to two paths, or the first of them (one or two a fold) and how many there are besides."""
    return "\n".join(paths) if len(paths) < 3 else f"{paths[0]}\nand {len(paths) - 1} more, to {paths[-1]}"


def _asked(asked: dict[str, Any]) -> str:
    return (
        f"{many(asked['perturbations'], 'perturbation')} in {many(asked['contexts'], 'context')}: "
        f"{many(asked['groups'], 'group')}, {many(asked['cells'], 'cell')}; {asked['scored']:,} of the groups have a "
        "truth to score"
    )


def _lines(plan: dict[str, Any]) -> list[tuple[str, str]]:
    lines = [("to fetch", f"{place}; what is in it is planned when it is here") for place in plan["to_fetch"]]
    if cells := plan.get("cells"):
        kind = " (simulated)" if cells["simulated"] else ""
        lines.append(
            (
                "cells",
                f"{cells['cells']:,}{kind}, {many(cells['perturbations'], 'perturbation')}, "
                f"{many(cells['batches'], 'batch', 'batches')}, contexts {', '.join(cells['contexts'])}",
            )
        )
        for source in cells["sources"]:
            parts = {**source["dropped"], **source["repairs"]}
            said = "; ".join(f"{reason}: {count:,}" for reason, count in parts.items())
            lines.append(
                (
                    f"  {source['name']}",
                    f"{many(source['cells'], 'cell')}, {many(source['genes'], 'gene')}, values "
                    f"{source['values']['found']}" + (f"; {said}" if said else ""),
                )
            )
        lines.append(("gene axis", many(cells["genes"], "gene")))
    for fold in plan.get("split", []):
        said = "; ".join(
            f"{role} {many(count['groups'], 'group')}, {many(count['cells'], 'cell')}"
            for role, count in fold["counts"].items()
            if count["groups"]
        )
        lines.append((f"split, fold {fold['fold']}", said))
    if asked := plan.get("asked"):
        lines.append(("asked", _asked(asked)))
    if proteins := plan.get("proteins"):
        without = proteins["targets_without_sequence"]
        lines.append(
            (
                "proteins",
                f"{proteins['targets'] - len(without)} of {proteins['targets']} targets and "
                f"{proteins['axis_with_sequence']:,} genes of the axis have a sequence"
                + (f"; without: {', '.join(without[:6])}{' …' * (len(without) > 6)}" if without else ""),
            )
        )
        lines += [("", line.strip()) for line in proteins["coverage"] if line.startswith("  ambiguous")]
    if decoder := plan.get("decoder"):
        lines.append(
            (
                "decoder",
                f"{decoder['backbone']}, base {decoder['base']}: {decoder['trainable']:,} of "
                f"{decoder['parameters']:,} parameters train",
            )
        )
    if resources := plan.get("resources"):
        lines.append(
            (
                "about",
                f"{resources['cell_store_gb']} GB cell store, {resources['cell_embeddings_gb']} GB cell "
                f"embeddings, {resources['batch_gb_per_process']} GB for a batch on each process",
            )
        )
    lines.append(("processes", f"{plan['processes']['processes']} on {plan['processes']['device']}"))
    return lines
