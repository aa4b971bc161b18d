"""From symptom to verdict, for one target: what was measured, what was found wrong, and which rule decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from firedoor.catalogue import nearest
from firedoor.errors import SpecError
from firedoor.report.words import percent, points, visible

__all__ = ["explanation"]

EFFECTS = {
    "void": "its cells leave every rate",
    "mask": "a sign of hidden gradients: rules out a good verdict",
    "cap": "may show a break, never a defence",
    "note": "printed only",
}
FIGURES = (
    ("clean accuracy", "clean_accuracy", percent),
    ("clean drop against the control", "clean_drop", points),
    ("right under the worst transferred pair", "worst_pair", percent),
    ("right under all transferred examples", "worst_case", percent),
    ("naive white box: the gradient as it stands", "naive_white_box_accuracy", percent),
    ("adaptive white box: through its own defence", "white_box_accuracy", percent),
    ("noise floor", "noise_floor", percent),
)
BAD = ("fail", "suspect", "void")


def explanation(summary: Mapping[str, Any], target: str) -> list[str]:
    """Lines of plain text. Errors: SpecError for a target that the report does not have."""
    names = [t["name"] for t in summary["targets"]]
    if target not in names:
        known = ", ".join(visible(n) for n in names)
        raise SpecError(f"the report has no target {visible(target)!r}.{nearest(target, names)} It has: {known}.")
    row = summary["targets"][names.index(target)]
    lines = [
        f"{visible(target)}: {row['verdict']}",
        f"{visible(summary['threat']['text'])}, bar {summary['bar']:.0%}",
        "",
        "Measured",
    ]
    lines += [f"  {label}: {show(row[key])}" for label, key, show in FIGURES if row[key] is not None]
    lines += [f"  strongest attack, {where}: {visible(what)}" for where, what in row["strongest"].items() if what]
    for title, wanted in (("Signs that fired", BAD), ("Not run", ("not_run",))):
        some = [s for s in row["symptoms"] if s["status"] in wanted]
        lines += ["", title if some else f"{title}: none"]
        for effect, meaning in EFFECTS.items():
            of_it = [s for s in some if s["effect"] == effect]
            if of_it:
                lines.append(f"  {effect}: {meaning}")
            lines += [f"    {s['id']} {visible(s['name'])}, {s['status']}: {visible(s['text'])}{_examples(s)}" for s in of_it]
    passed = sorted(
        {s["id"] for s in row["symptoms"] if s["status"] == "pass"},
        key=lambda i: (i[0], int("0" + "".join(filter(str.isdigit, i)))),
    )
    lines += ["", f"Passed: {', '.join(passed) or 'none'}", "", "Rules, in order; the first that fits decides"]
    for step in row["chain"]:
        lines.append(f"  {step['rule']}. {step['asks']} {'YES' if step['fits'] else 'no'}: {visible(step['found'])}")
    lines += ["", f"{row['verdict']}, because"]
    lines += [f"  {visible(reason)}" for reason in row["reasons"]]
    lines.append(
        f"  rungs reached: up to {row['rung_reached']}; "
        + ("; ".join(map(visible, summary["not_tested"])) or "nothing is left untested")
    )
    return lines


def _examples(symptom: Mapping[str, Any]) -> str:
    ids = symptom["examples"]
    return f" [examples {', '.join(visible(i) for i in ids[:3])}{' ...' if len(ids) > 3 else ''}]" if ids else ""
