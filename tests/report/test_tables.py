from __future__ import annotations

from firedoor.report import plots, tables


def test_control_first_then_verdicts_in_order_and_exhibits_last(summary):
    rows = tables.target_rows(summary)
    assert rows[0].tags[0] == "control"
    exhibits = ["exhibit" in r.tags for r in rows]
    assert exhibits == sorted(exhibits)
    tested = [(r.rank, -(r.figures["worst_pair"].value or -1.0)) for r in rows[1:] if "exhibit" not in r.tags]
    assert tested == sorted(tested)
    assert len(rows) == len(summary["targets"])


def test_failed_tests_stand_first(summary):
    rank = tables.STATUS_ORDER
    for row in tables.target_rows(summary):
        statuses = [rank[s["status"]] for s in row.symptoms]
        assert statuses == sorted(statuses)


def test_the_grid_holds_every_cell_once(summary):
    drawn = tables.grid(summary)
    squares = [q for g in drawn.groups for row in g.rows for q in row.squares if q]
    assert len(squares) == len(summary["cells"])
    assert [g.source for g in drawn.groups[-2:]] == [tables.ITSELF, tables.NAIVE]
    assert all(len(row.squares) == len(summary["targets"]) for g in drawn.groups for row in g.rows)


def test_void_and_not_run_are_no_zeros(summary):
    cell = next(c for c in summary["cells"] if c["rung"] == "S0" and not c["void"] and c["transfer_rate"])
    others = [c for c in summary["cells"] if c is not cell and (c["source"], c["attack"]) == (cell["source"], cell["attack"])]

    def shown():
        (group,) = tables.grid(summary | {"cells": [cell, *others]}).groups
        return group.rows[0].squares[[t["name"] for t in summary["targets"]].index(cell["target"])]

    cell["transfer_rate"] = {"value": 0.0, "low": 0.0, "high": 0.01, "n": 900}
    zero = shown()
    cell.update(void=True, reason="not above noise at home")
    void = shown()
    cell.update(void=False, transfer_rate=None, reason="access too low")
    missing = shown()
    assert (zero.kind, zero.text) == ("h0", "0.0")
    assert (void.kind, void.text) == ("void", "void")
    assert missing.kind == "none"
    assert len({zero.text, void.text, missing.text}) == 3
    assert "not above noise at home" in void.note
    assert "access too low" in missing.note


def test_the_worst_pair_of_each_target_is_outlined_once(summary):
    drawn = tables.grid(summary)
    count = sum("worst" in q.kind for g in drawn.groups for row in g.rows for q in row.squares if q)
    assert count == sum(t["worst_pair_at"] is not None for t in summary["targets"])


def test_the_reading_counts_no_exhibit_and_no_control(summary):
    tested = [t for t in summary["targets"] if not t["exhibit"] and not t["control"]]
    text = tables.reading(summary)
    assert text.startswith(f"Of {len(tested)} targets under test")
    robust = sum(t["verdict"] == "ROBUST" for t in tested)
    assert f"{robust or 'none'} ROBUST" in text


def test_the_reading_of_a_study_without_good_news(summary):
    for t in summary["targets"]:
        t.update(verdict="EXPOSED", worst_pair=None)
    text = tables.reading(summary)
    assert "none ROBUST, none TRANSFER-ONLY" in text
    assert "keeps" not in text


def _mark(key, clean, worst, exhibit=False):
    return plots.Mark(key, key, "none", clean, worst, clean, clean, worst, worst, 1.0, key, exhibit)


def test_the_front_is_what_no_other_beats():
    a, b, c, d, e = _mark("a", 99, 1), _mark("b", 95, 50), _mark("c", 94, 49), _mark("d", 80, 60), _mark("e", 99, 99, exhibit=True)
    assert plots.front([a, b, c, d, e]) == (d, b, a)
    assert plots.front([]) == ()


def test_a_chart_holds_one_mark_per_target_and_only_known_attributes(summary):
    points = plots.marks(summary, {})
    drawn = str(plots.pareto(points, 0.5, 880, 430, "p"))
    assert drawn.count('data-note="') == len(points) == 21
    assert "style=" not in drawn
    assert "url(" not in drawn
    assert "http" not in drawn
    assert "<script" not in drawn


def test_one_target_and_no_target_can_be_drawn():
    assert plots.pareto([_mark("t0", 100, 0)], 0.0, 300, 300, "p") is not None
    assert plots.pareto([], 0.5, 300, 300, "p") is None


def test_a_detector_shows_its_false_positives_beside_both_readings(summary):
    name = next(t["name"] for t in summary["targets"] if t["detector"])
    rows = {r.name: dict(r.facts) for r in tables.target_rows(summary)}
    assert rows[name]["Clean images rejected (false positives)"].startswith("5.0 %")
    assert rows[name]["White box, if rejecting an adversarial example counts as right"] == "not measured"
    assert sum(any("rejecting" in k for k in facts) for facts in rows.values()) == 1, "no other target rejects anything"
