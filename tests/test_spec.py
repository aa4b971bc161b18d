"""Recipes to dicts, TOML and fingerprints, and back; what a study file may and may not say."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firedoor import spec
from firedoor.errors import SpecError
from firedoor.study import from_table
from firedoor.threat import L2, Linf, Threat


class Mode(Enum):
    FAST = 1
    SLOW = 2


@dataclass(frozen=True)
class Inner:
    decay: float = 1.0
    seed: int = 3


@dataclass(frozen=True)
class Recipe:
    threat: Threat
    steps: int = 10
    step_size: float | None = None
    name: str = "plain"
    keep: bool = False
    rule: Literal["sign", "raw"] = "sign"
    mode: Mode = Mode.FAST
    parts: tuple[Inner, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    batch_size: int = field(default=256, metadata={"key": False})
    seed: int = 0


@dataclass(frozen=True)
class Versioned:
    version: ClassVar[int] = 2
    n: int = 1


@dataclass(frozen=True)
class Content:
    folder: str = "a"
    content: ClassVar[str] = "one"

    def digest(self) -> str:
        return self.content


FULL = Recipe(L2(0.5, targeted=True), 3, 0.1, 'ümlaut "q" \\ \n]', True, "raw", Mode.SLOW, (Inner(0.0), Inner(0.5, 7)), (4, 0.25))


def read(table: object, cls: type = Recipe, context: object = None, names: object = None) -> object:
    return spec.from_value(cls, table, "study", context or {}, names or {})


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize("recipe", [FULL, Recipe(Linf(8 / 255)), Recipe(Linf(0.0), step_size=1e-300)])
def test_a_recipe_survives_dict_and_toml(recipe: Recipe) -> None:
    table = spec.to_dict(recipe)
    assert read(table) == recipe
    written = spec.to_toml({"study": {"attacks": {"first": table}}})
    again = read(tomllib.loads(written)["study"]["attacks"]["first"])
    assert again == recipe
    assert spec.fingerprint(again) == spec.fingerprint(recipe)


def test_the_dict_names_the_type_and_every_default() -> None:
    table = spec.to_dict(Recipe(Linf(0.1)))
    assert list(table) == ["type", *(f.name for f in fields(Recipe))]
    assert table["type"] == "Recipe"
    assert table["threat"] == {"type": "Linf", "eps": 0.1, "targeted": False}
    assert table["mode"] == "FAST"
    assert table["parts"] == []


VALUES = st.recursive(
    st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), VALUES, max_size=4))
def test_any_table_survives_toml(table: dict[str, object]) -> None:
    assert tomllib.loads(spec.to_toml(table)) == table


def test_none_is_left_out_of_toml() -> None:
    assert tomllib.loads(spec.to_toml({"a": None, "b": {"c": None, "d": 1}})) == {"b": {"d": 1}}


@given(VALUES)
def test_canonical_text_does_not_know_the_order_of_keys(value: object) -> None:
    def turned(v: object) -> object:
        if isinstance(v, dict):
            return {k: turned(v[k]) for k in reversed(v)}
        return [turned(i) for i in v] if isinstance(v, list) else v

    assert spec.canonical(turned(value)) == spec.canonical(value)


# ---------------------------------------------------------------- fingerprints


OTHER = {
    "threat": Linf(0.2),
    "steps": 11,
    "step_size": 0.1,
    "name": "other",
    "keep": True,
    "rule": "raw",
    "mode": Mode.SLOW,
    "parts": (Inner(),),
    "pair": (1, 2.5),
    "seed": 1,
}


@pytest.mark.parametrize("name", OTHER)
def test_every_field_changes_the_fingerprint(name: str) -> None:
    recipe = Recipe(Linf(0.1))
    changed = replace(recipe, **{name: OTHER[name]})
    assert spec.fingerprint(changed) != spec.fingerprint(recipe)
    assert len(spec.fingerprint(recipe)) == 64


def test_the_list_of_changes_above_is_complete() -> None:
    assert set(OTHER) == {f.name for f in fields(Recipe) if f.metadata.get("key", True)}


def test_a_field_outside_the_key_does_not_change_the_fingerprint_but_is_kept() -> None:
    recipe = Recipe(Linf(0.1))
    assert spec.fingerprint(replace(recipe, batch_size=1)) == spec.fingerprint(recipe)
    assert spec.to_dict(replace(recipe, batch_size=1))["batch_size"] == 1
    assert "batch_size" not in spec.to_dict(recipe, digests=True)


def test_types_versions_and_contents_are_in_the_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spec.fingerprint(Linf(0.1)) != spec.fingerprint(L2(0.1))
    assert spec.to_dict(Versioned())["version"] == 2
    assert read(spec.to_dict(Versioned(n=4)), Versioned) == Versioned(n=4)
    before = spec.fingerprint(Content())
    monkeypatch.setattr(Content, "content", "two")
    assert spec.fingerprint(Content()) != before
    assert "digest" not in spec.to_dict(Content())


def test_a_fingerprint_is_the_same_in_another_process() -> None:
    """Golden value: guards stores that exist against a change of the text that is hashed."""
    assert spec.canonical(spec.to_dict(Linf(8 / 255))) == '{"eps":0.03137254901960784,"targeted":false,"type":"Linf"}'


@pytest.mark.parametrize("live", [object(), lambda x: x, math.nan, math.inf, {1, 2}, b"bytes"])
def test_what_is_no_recipe_is_refused(live: object) -> None:
    with pytest.raises(SpecError, match="a recipe must"):
        spec.to_dict({"model": [live]})


def test_recipes_inside_a_recipe_come_outermost_first() -> None:
    assert [type(r).__name__ for r in spec.recipes_in({"a": [FULL]})] == ["Recipe", "L2", "Inner", "Inner"]


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("-1/2", -0.5), ("0.5/255", 0.5 / 255), (" 16/255 ", 16 / 255), (1, 1.0), (0.03, 0.03)],
)
def test_a_number_may_be_a_fraction(text: object, value: float) -> None:
    assert spec.from_value(float, text, "eps", {}, {}) == pytest.approx(value, rel=1e-15)
    assert isinstance(spec.from_value(float, text, "eps", {}, {}), float)


@pytest.mark.parametrize(
    "bad",
    [
        "1/0",
        "8 / 255",
        "8/255/2",
        "1e400",
        "",
        "8/",
        "/255",
        "٨/255",
        "1" * 10**5 + "/2",
        10**400,
        pytest.param(-(10**5000), id="huge"),
        "__import__('os')",
        math.nan,
        math.inf,
        True,
        None,
        [1],
        {},
    ],
)
def test_what_is_no_number_is_refused(bad: object) -> None:
    with pytest.raises(SpecError, match="eps must be a finite number"):
        spec.from_value(float, bad, "eps", {}, {})


@pytest.mark.parametrize(
    ("table", "wanted"),
    [
        ({"stesp": 3}, r"study: Recipe has no field 'stesp'. Did you mean 'steps'\? Fields: threat, steps"),
        ({"parts": [{"deacy": 1}]}, r"study.parts\[0\]: Inner has no field 'deacy'. Did you mean 'decay'\?"),
        ({"steps": "ten"}, "study.steps must be a whole number, got 'ten'"),
        ({"steps": True}, "study.steps must be a whole number, got True"),
        ({"steps": 3.0}, "study.steps must be a whole number, got 3.0"),
        ({"steps": 2**60}, "study.steps must be a whole number"),
        pytest.param({"steps": 10**5000}, "study.steps must be a whole number", id="huge"),
        pytest.param({"name": {"deep": [10**5000]}}, "study.name must be a text", id="huge inside"),
        ({"keep": 1}, "study.keep must be true or false, got 1"),
        ({"name": 5}, "study.name must be a text, got 5"),
        ({"rule": "sgin"}, r"study.rule must be one of 'sign', 'raw', got 'sgin'. Did you mean 'sign'\?"),
        ({"mode": "MEDIUM"}, "study.mode must be one of FAST, SLOW"),
        ({"mode": ["FAST"]}, "study.mode must be one of FAST, SLOW"),
        ({"pair": [1]}, "study.pair must have 2 items, got 1"),
        ({"parts": "Inner"}, "study.parts must be a list, got 'Inner'"),
        ({"parts": [3]}, r"study.parts\[0\] must be a table, got 3"),
        ({"threat": {"type": "Linv", "eps": 0.1}}, r"study.threat: no threats entry is called 'Linv'. Did you mean 'Linf'\?"),
        ({"threat": {"type": "os:system", "eps": 0.1}}, "study.threat: no threats entry is called 'os:system'"),
        ({"threat": {"type": "../../etc/passwd"}}, "study.threat: no threats entry is called"),
        ({"threat": {"type": 5}}, "study.threat needs a `type`: one of L0, L1, L2, Linf"),
        ({"threat": {"eps": 0.1}}, "study.threat needs a `type`"),
        ({"threat": 0.1}, "study.threat must be a name or a table with a `type`, got 0.1"),
        ({"threat": {"type": "Linf", "eps": -1}}, "eps must be 0 or more"),
        ({"threat": {"type": "Linf"}}, "study.threat: Linf needs the field 'eps'"),
        ({"threat": {"type": "Linf", "eps": 0.1, "__class__": "x"}}, "has no field '__class__'"),
        ({"version": 2}, "study must be version 1 of Recipe, got version 2"),
        ([], "study must be a table"),
    ],
)
def test_a_bad_study_is_refused_with_its_place(table: object, wanted: str) -> None:
    if isinstance(table, dict):
        table = {"threat": {"type": "Linf", "eps": "8/255"}} | table
    with pytest.raises(SpecError, match=wanted):
        read(table)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(SpecError, match="study: Recipe needs the field 'threat'"):
        read({"steps": 3})


def test_a_long_value_is_shortened_in_the_message() -> None:
    with pytest.raises(SpecError) as caught:
        read({"threat": {"type": "Linf", "eps": 0.1}, "steps": "x" * 10**6})
    assert len(str(caught.value)) < 300


def test_missing_fields_come_from_the_context_and_tables_are_laid_over_it() -> None:
    context = {"threat": {"type": "Linf", "eps": "8/255"}, "seed": 5}
    assert read({}, context=context) == Recipe(Linf(8 / 255), seed=5)
    assert read({"threat": {"targeted": True}}, context=context).threat == Linf(8 / 255, targeted=True)
    assert read({"threat": {"type": "L2", "eps": 1}}, context=context).threat == L2(1.0)
    assert read({"parts": [{}]}, context=context).parts == (Inner(seed=5),)
    assert read({}, context={"threat": L2(3.0)}).threat == L2(3.0)


def test_a_name_alone_is_a_recipe_with_its_defaults() -> None:
    assert read({"threat": "L2"}, context={"eps": 0.5}).threat == L2(0.5)
    with pytest.raises(SpecError, match="L2 needs the field 'eps'"):
        read({"threat": "L2"})


def test_an_optional_field_says_what_its_value_must_be() -> None:
    assert read({"threat": {"type": "Linf", "eps": 0.1}, "step_size": "1/4"}).step_size == 0.25
    with pytest.raises(SpecError, match=r"study\.step_size must be a finite number"):
        read({"threat": {"type": "Linf", "eps": 0.1}, "step_size": "fast"})


def test_a_shared_recipe_that_needs_its_own_kind_asks_for_it_and_does_not_turn_in_circles() -> None:
    table = {
        "data": {"type": "Digits"},
        "threat": {"type": "Linf", "eps": "8/255"},
        "architecture": {"type": "InnerNoise"},
        "fit": {},
        "sources": {"s": {}},
        "attacks": {"FGSM": {}},
        "targets": {"t": {}},
    }
    with pytest.raises(SpecError, match="InnerNoise needs the field 'architecture'"):
        from_table(table)
