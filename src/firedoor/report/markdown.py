"""The report as GitHub Markdown: the verdict table and the key points, for a pull request or a wiki.

Every string of the study is escaped so that it shows as written: no markup, no link, no mention, no table cell of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from firedoor.report.tables import TargetRow, extra_facts, reading, target_rows
from firedoor.report.words import percent, visible

__all__ = ["escape", "render"]

COLUMNS = (
    ("clean accuracy", "clean_accuracy"),
    ("clean drop", "clean_drop"),
    ("worst pair", "worst_pair"),
    ("worst case", "worst_case"),
    ("held-out worst pair", "worst_pair_held_out"),
    ("highest transfer rate", "max_transfer_rate"),
    ("noise floor", "noise_floor"),
    ("white box", "white_box_accuracy"),
    ("naive white box", "naive_white_box_accuracy"),
    ("train cost", "train_multiple"),
    ("inference cost", "inference_multiple"),
    ("train memory", "train_memory"),
    ("inference memory", "inference_memory"),
)


def render(summary: Mapping[str, Any]) -> str:
    """The whole report.md."""
    rows = target_rows(summary)
    head = ["target", "family", "verdict", *(name for name, _ in COLUMNS), "first reason"]
    lines = [f"# {escape(summary['name'])}", ""]
    if summary["description"]:
        lines += [escape(summary["description"]), ""]
    lines += [
        f"**Threat:** {escape(summary['threat']['text'])}. **Images:** {escape(summary['n_evaluation'])}. "
        f"**Bar:** {100 * summary['bar']:.0f} % of what a target gets right.",
        "",
        escape(reading(summary)),
        "",
        "A verdict holds at this threat, against the attacks that were run, and no further.",
        "",
        "## Verdicts",
        "",
        f"| {' | '.join(head)} |",
        f"|{'|'.join([' --- '] * len(head))}|",
        *(_row(r) for r in rows),
        "",
        "## Reasons",
        "",
    ]
    for r in rows:
        lines.append(f"- **{escape(r.name)}**, {r.verdict}: {escape('; '.join(r.reasons) or 'no reason given')}")
        signs = [
            f"{s['id']} {s['name']} ({s['status'].replace('_', ' ')})"
            for s in r.symptoms
            if s["status"] in ("fail", "suspect", "void")
        ]
        if signs:
            lines.append(f"  - signs: {escape(', '.join(signs))}")
    lines += ["", "## Not tested", "", *(f"- {escape(t)}" for t in summary["not_tested"] or ["nothing was declared"])]
    lines += ["", "## Sources", "", "| source | rung | split | clean accuracy | description |", "| --- | --- | --- | --- | --- |"]
    for s in summary["sources"]:
        split = "seen" if s["seen"] else "held out"
        cells = (escape(s["name"]), escape(s["rung"]), split, str(percent(s["clean_accuracy"])), escape(s["description"]))
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "## Attacks",
        "",
        "| attack | family | year | G | role | split | reference |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for a in summary["attacks"]:
        split = "seen" if a["seen"] else "held out"
        known = [escape("" if a[k] is None else a[k]) for k in ("name", "family", "year", "G", "role")]
        lines.append(f"| {' | '.join([*known, split, escape(a['reference'] or '')])} |")
    lines += ["", "## Provenance", "", *(f"- {escape(k)}: {escape(v)}" for k, v in extra_facts(summary["provenance"]))]
    return "\n".join(lines) + "\n"


def escape(text: Any) -> str:
    """One line of Markdown that shows `text` literally."""
    flat = " ".join(visible(text).split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    flat = re.sub(r"([\\`*_{}\[\]#+!|~$])", r"\\\1", flat)
    flat = re.sub(r"^(\d*)([-=.)])", r"\1\\\2", flat)
    flat = re.sub(r"(?i)(https?|ftp|mailto|xmpp):", r"\1&#58;", flat)
    return re.sub(r"(?i)www\.", "www&#46;", flat.replace("@", "&#64;"))


def _row(r: TargetRow) -> str:
    name = escape(r.name) + (f" ({', '.join(r.tags)})" if r.tags else "")
    cells = [name, escape(r.family), f"**{r.verdict}**"]
    for _, key in COLUMNS:
        at = f" at {escape(r.worst_at)}" if key == "worst_pair" and r.worst_at else ""
        cells.append(f"{r.figures[key]}{at}")
    return f"| {' | '.join([*cells, escape(r.reasons[0] if r.reasons else '')])} |"
