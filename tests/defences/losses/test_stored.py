"""What a loss looks up is what is counted as its cost."""

from __future__ import annotations

from typing import Any

import pytest
from defence_fakes import Ascent, DictStore, Fixed, Toy

from firedoor.craft import Craft
from firedoor.defences.losses.alarm import Alarm
from firedoor.defences.losses.clean import CrossEntropy
from firedoor.defences.losses.ensemble_at import EnsembleAT
from firedoor.defences.losses.firebreak import Firebreak
from firedoor.defences.losses.guided_denoising import GuidedDenoising
from firedoor.defences.losses.pubdef import PubDef
from firedoor.defences.losses.stored import crafts_for
from firedoor.spec import canonical

DATA = Toy(n=9)
SOURCES = (Fixed(DATA, 7), Fixed(DATA, 8))
ONE, TWO = Ascent(), Ascent(steps=2)


@pytest.mark.parametrize(
    ("loss", "n"),
    [
        (PubDef(SOURCES, ONE, DATA), 2),
        (PubDef(SOURCES, ONE, DATA, crafts=3), 6),
        (PubDef(SOURCES, ONE, DATA, part="source"), 2),
        (EnsembleAT(SOURCES, ONE, DATA, ONE), 2),
        (GuidedDenoising(SOURCES[0], SOURCES, ONE, DATA), 2),
        (Firebreak(SOURCES, (ONE, TWO), DATA), 4),
        (Alarm(SOURCES, (ONE, TWO), DATA), 4),
        (CrossEntropy(), 0),
    ],
    ids=lambda v: type(v).__name__,
)
def test_every_craft_that_a_loss_looks_up_is_named(loss: Any, n: int) -> None:
    store = DictStore()
    loss.start(store, DATA.split(getattr(loss, "part", "target")))
    made = {key for key in store.kept if key.startswith("craft")}
    assert made == {"craft" + canonical(craft.inputs()) for craft in crafts_for(loss)}
    assert len(made) == n


def test_a_craft_for_evaluation_is_none_of_them() -> None:
    assert Craft(SOURCES[0], ONE, DATA) not in crafts_for(PubDef(SOURCES, ONE, DATA))
