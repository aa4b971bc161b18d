"""Tiers are suites by name: each builds for every threat, grows upwards, and stands in a study file."""

from __future__ import annotations

import pytest

from firedoor import catalogue, tiers
from firedoor.data import Digits
from firedoor.errors import SpecError
from firedoor.study import from_table
from firedoor.threat import L0, L1, L2, Linf, Threat
from firedoor.tiers import OWN, TIERS, TRANSFER, attacks_of

TABLE = {
    "data": {"type": "Digits"},
    "threat": {"type": "Linf", "eps": "40/255"},
    "architecture": {"type": "SmallCNN"},
    "fit": {},
    "sources": {"s": {"seed": 1}},
    "targets": {"t": {}},
}


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.5), L1(3.0), L0(5), Linf(0.1, targeted=True)], ids=str)
def test_each_tier_holds_the_one_below(threat: Threat) -> None:
    before: set[str] = set()
    for tier in TIERS:
        transfer, own = attacks_of(tier, threat, Digits())
        assert before < {*transfer, *own}
        assert all(a.threat == threat for a in (*transfer.values(), *own.values()))
        before = {*transfer, *own}


def test_linf_leaves_out_only_what_is_made_for_l2() -> None:
    wanted = {n for tables in (TRANSFER, OWN) for t in tables.values() for n in t}
    transfer, own = attacks_of("T2", Linf(0.1), Digits())
    assert wanted - {*transfer, *own} == {"CW", "DDN"}
    assert set(OWN["T2"]) <= set(attacks_of("T2", L2(0.5), Digits())[1])


def test_every_norm_has_a_white_box_on_cross_entropy_and_on_the_margin() -> None:
    for tier in TIERS:
        assert {"APGD_CE", "APGD_margin"} <= set(attacks_of(tier, L1(3.0), Digits())[1])
        counted = attacks_of(tier, L0(5), Digits())[1]
        assert {"PGD_CE", "PGD_margin"} <= set(counted)
        assert not {"PGD_CE", "PGD_margin"} & set(attacks_of(tier, Linf(0.1), Digits())[1]), "it stands in for APGD"
    assert set(attacks_of("T0", L1(3.0), Digits())[1]) == set(OWN["T0"])
    assert {(a.objective, a.gradients) for a in attacks_of("T0", L0(5), Digits())[1].values()} == {
        ("cross_entropy", 100),
        ("margin", 100),
    }
    assert attacks_of("T0", L0(5), Digits(), {"PGD_CE": {"steps": 3}})[1]["PGD_CE"].steps == 3


def test_upper_tiers_take_more_neighbours() -> None:
    assert attacks_of("T0", Linf(0.1), Digits())[0]["VMI_FGSM"].gradients == 10 + 9 * 5
    assert attacks_of("T1", Linf(0.1), Digits())[0]["VMI_FGSM"].gradients == 10 + 9 * 20
    assert attacks_of("T0", Linf(0.1), Digits(), {"VMI_FGSM": {"n": 2}})[0]["VMI_FGSM"].gradients == 28


def test_published_tiers_agree_with_the_catalogue() -> None:
    listed = {e.name: e.tier for e in catalogue.entries("attacks")}
    for table in (TRANSFER, OWN):
        for tier, entries in table.items():
            for name, fields in entries.items():
                cheapest = listed[fields.get("type", name)]
                assert cheapest is not None
                assert cheapest <= tier, f"{name} stands in {tier}, the catalogue says {cheapest}"


def test_a_study_file_names_its_tier() -> None:
    study = from_table({**TABLE, "tier": "T0", "attacks": {"MI_FGSM": {"steps": 3}}})
    assert set(study.attacks) == set(TRANSFER["T0"])
    assert set(study.white_box) == set(OWN["T0"])
    assert study.attacks["MI_FGSM"].gradients == 3, "an entry of the file replaces that of the tier"
    with pytest.raises(SpecError, match="tier must be one of T0, T1, T2, got 'T3'"):
        from_table({**TABLE, "tier": "T3"})


def test_the_list_of_tiers_holds_each_entry_with_what_the_tier_makes_of_it() -> None:
    rows = {(r["tier"], r["attack"]): r for r in tiers.listed()}
    assert len(rows) == sum(len(t) for table in (tiers.TRANSFER, tiers.OWN) for t in table.values())
    assert rows["T0", "VMI_FGSM"]["G"] == 55, "five neighbours"
    assert rows["T1", "VMI_FGSM"]["G"] == 190, "twenty"
    assert rows["T2", "Square"]["queries"] == 5000
