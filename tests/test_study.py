"""A study file: read, written back, refused with its place, and what it says of its sources and targets."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firedoor import spec, study
from firedoor.architectures import MLP, SmallCNN
from firedoor.attacks import FGSM, MI_FGSM, PGD, SI_NI_FGSM, ShuffledDelta, SignNoise, UniformNoise
from firedoor.data import Digits
from firedoor.defences.broken.kwta import KWTA
from firedoor.defences.fit import Fit
from firedoor.defences.losses.distillation import Distillation
from firedoor.defences.losses.madry import Madry
from firedoor.defences.losses.pubdef import PubDef
from firedoor.defences.losses.trades import TRADES
from firedoor.defences.losses.weight_penalty import WeightPenalty
from firedoor.defences.wrappers.denoiser import Denoiser
from firedoor.defences.wrappers.gate import Gate
from firedoor.defences.wrappers.jpeg import JPEG
from firedoor.defences.wrappers.noise import Noise
from firedoor.defences.wrappers.random_member import RandomMember
from firedoor.errors import MissingData, SpecError
from firedoor.models.ensemble import Ensemble
from firedoor.models.snapshots import Snapshots
from firedoor.models.trained import Trained
from firedoor.models.wrapped import Relaxed, Wrapped
from firedoor.pipeline import run
from firedoor.protocols import Attack, Model
from firedoor.store import FileStore
from firedoor.study import RELATIVE, Study, family_of, innermost, is_exhibit, load, other_seed, stripped, to_toml
from firedoor.threat import L2, Linf

SHIPPED = Path(__file__).parent.parent / "studies"
DATA, EPS = Digits(), Linf(8 / 255)
SMALL = """
seed = 3
[data]
type = "Digits"
[threat]
type = "Linf"
eps = "8/255"
[architecture]
type = "MLP"
[fit]
epochs = 2
[sources.s]
seed = 1
[targets.t]
seed = 2
[attacks.FGSM]
"""


def trained(seed: int = 1, architecture: object = None, **fit: object) -> Trained:
    return Trained(architecture or SmallCNN(), DATA, Fit(epochs=1, **fit), seed)  # type: ignore[arg-type]


def written(folder: Path, text: str) -> Path:
    file = folder / "study.toml"
    file.write_text(text, encoding="utf-8")
    return file


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(SpecError) as raised:
        load(written(folder, text), overrides)
    return str(raised.value)


# ---------------------------------------------------------------- reading and writing back


def test_a_small_study_is_read_with_its_defaults(tmp_path: Path) -> None:
    found = load(written(tmp_path, SMALL))
    assert found.threat == EPS
    assert found.threat.eps == 8 / 255
    source, target = found.sources["s"], found.targets["t"]
    assert source == Trained(MLP(), DATA, Fit(epochs=2), 1)
    assert target == Trained(MLP(), DATA, Fit(epochs=2), 2)
    assert found.attacks == {"FGSM": FGSM(EPS)}
    assert found.control == "t", "the first undefended target"
    assert found.seed == 3
    assert [getattr(a, "objective", "") for a in found.white_box.values()] == ["cross_entropy", "margin"]
    assert all(a == PGD(EPS, steps=20, objective=a.objective, keep="best") for a in found.white_box.values())  # type: ignore[attr-defined]


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.toml")), ids=lambda f: f.name)
def test_a_shipped_study_survives_being_written_with_everything_spelled_out(file: Path, tmp_path: Path) -> None:
    one = load(file)
    text = to_toml(one)
    again = load(written(tmp_path, text))
    assert again == one
    with suppress(MissingData):  # images that this machine does not have have no digest
        name = next(iter(one.sources))
        assert spec.fingerprint(again.sources[name]) == spec.fingerprint(one.sources[name])
    assert to_toml(again) == text


@pytest.mark.parametrize("name", ["a.b", "two words", 'q"uote', "ünï", "a|b", "line\nbreak", "[x]", "'", "#", "="])
def test_any_name_survives(name: str, tmp_path: Path) -> None:
    one = replace(load(written(tmp_path, SMALL)), targets={name: trained()}, control=name)
    again = load(written(tmp_path, to_toml(one)))
    assert again == one
    assert list(again.targets) == [name]


def test_the_digits_study_holds_every_family() -> None:
    digits = load(SHIPPED / "digits.toml")
    families = {family_of(m) for m in digits.targets.values()}
    assert families == {
        "none",
        "adversarial training",
        "ensemble",
        "distillation",
        "input transformation",
        "randomisation",
        "regularisation",
        "gradient masking",
    }
    assert digits.control == "undefended"
    assert {digits.rung(s, "undefended") for s in digits.sources} == {"S0", "S1", "S2"}


def test_first_attacks_fewer_images_and_changes_nothing_else(tmp_path: Path) -> None:
    whole = load(
        written(tmp_path, SMALL.replace("seed = 3", "seed = 3\nshard = 20\naudit = 'preflight'", 1)), ("data.splits.evaluation=60",)
    )
    some = replace(whole, first=30)
    assert [(c.start, c.stop) for c in some.crafts(None, FGSM(EPS))] == [(0, 20), (20, 30)]
    assert some.crafts(None, FGSM(EPS))[0] == whole.crafts(None, FGSM(EPS))[0], "made once for both"
    store = FileStore(tmp_path / "store")
    all_of_them, few = run(whole, store), run(some, store)
    assert few.ids == all_of_them.ids[:30]
    assert (few.data["predicted"].values == all_of_them.data["predicted"].values[..., :30]).all()
    assert (few.data["clean"].values == all_of_them.data["clean"].values[..., :30]).all()
    assert load(written(tmp_path, to_toml(some))) == some


# ---------------------------------------------------------------- refused, with the place


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("seed = 3", "sead = 3"), ("'sead'", "Did you mean 'seed'?")),
        (("[attacks.FGSM]", "[atacks.FGSM]"), ("'atacks'", "Did you mean 'attacks'?")),
        (("epochs = 2", "epoch = 2"), ("'epoch'", "Did you mean 'epochs'?")),
        (('"MLP"', '"MPL"'), ("'MPL'", "Did you mean 'MLP'?")),
        (("eps =", "epps ="), ("'epps'", "Did you mean 'eps'?")),
        (("[attacks.FGSM]", "[attacks.FGSMM]"), ("'FGSMM'", "Did you mean 'FGSM'?")),
        (("[attacks.FGSM]", "[attacks.mine]\ntype = 'PGD'\nstep = 3"), ("attacks.mine", "'step'", "Did you mean 'steps'?")),
        (("[sources.s]\nseed", "[sources.s]\nsed"), ("sources.s", "'sed'", "Did you mean 'seed'?")),
        (('"8/255"', "-1"), ("eps", "0 or more", "-1")),
        (('"8/255"', '"-8/255"'), ("eps", "0 or more")),
        (('"8/255"', '"8/0"'), ("threat.eps", "8/0")),
        (('"8/255"', '"8 / 255 "'), ("threat.eps",)),
        (('"8/255"', "nan"), ("threat.eps", "finite")),
        (('"8/255"', "[1]"), ("threat.eps", "[1]")),
        (("seed = 1", "seed = 1.5"), ("sources.s.seed", "whole number")),
        (("seed = 1", "seed = true"), ("sources.s.seed", "whole number")),
        (("[sources.s]\nseed = 1", ""), ("at least one source",)),
        (("[targets.t]\nseed = 2", ""), ("at least one target",)),
        (("[attacks.FGSM]", ""), ("at least one attack",)),
        (('[data]\ntype = "Digits"', ""), ("[data]",)),
        (("seed = 3", "seed = 3\nbar = 1.5"), ("bar", "1.5")),
        (("seed = 3", "seed = 3\ndraws = 0"), ("draws", "0")),
        (("seed = 3", "seed = 3\nshard = 0"), ("shard", "0")),
        (("seed = 3", "seed = 3\nfirst = 0"), ("first", "0", "Leave it out")),
        (("seed = 3", "seed = 3\ncontrol = 'tt'"), ("control", "'tt'", "Did you mean 't'?")),
        (("seed = 3", "seed = 3\npublic = ['ss']"), ("public", "'ss'", "Did you mean 's'?")),
        (("seed = 3", "seed = 3\nseen = ['FGSN']"), ("seen", "'FGSN'", "Did you mean 'FGSM'?")),
        (("[targets.t]", "[targets.s]"), ("'s'", "two models")),
        (("[targets.t]", '[targets."itself"]'), ("'itself'",)),
        (("[targets.t]", '[targets."  "]'), ("'  '",)),
        (("[attacks.FGSM]", "[attacks.FGSM]\n[white_box.FGSM]"), ("'FGSM'", "both")),
        (("[attacks.FGSM]", "[attacks.FGSM]\n[attacks.PGD]\nthreat = {type = 'Linf', eps = 0.1}"), ("one threat", "2")),
        (("[sources.s]\nseed = 1", "sources = 3"), ("sources",)),
    ],
)
def test_a_mistake_is_named_with_its_place(change: tuple[str, str], words: tuple[str, ...], tmp_path: Path) -> None:
    assert change[0] in SMALL
    message = refusal(tmp_path, SMALL.replace(*change))
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"


@pytest.mark.parametrize(
    ("text", "value"), [('"8/255"', 8 / 255), ('"1.5/255"', 1.5 / 255), ("0.03", 0.03), ("0", 0.0), ('"1/1"', 1.0)]
)
def test_eps_as_fraction_or_number(text: str, value: float, tmp_path: Path) -> None:
    assert load(written(tmp_path, SMALL.replace('"8/255"', text))).threat.eps == value


def test_models_may_refer_to_each_other_in_any_order(tmp_path: Path) -> None:
    text = SMALL + '[targets.both]\ntype = "Ensemble"\nmembers = ["late", "t"]\n[models.late]\nseed = 9\n'
    found = load(written(tmp_path, text))
    assert found.targets["both"] == Ensemble((replace(found.targets["t"], seed=9), found.targets["t"]))  # type: ignore[type-var]
    assert "late" not in found.targets


@pytest.mark.parametrize(
    "circle",
    [
        '[models.a]\ntype = "Ensemble"\nmembers = ["a"]\n',
        '[models.a]\ntype = "Ensemble"\nmembers = ["b"]\n[models.b]\ntype = "Wrapped"\nmodel = "a"\nwrapper = "JPEG"\n',
    ],
)
def test_a_circle_of_models_is_refused(circle: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, SMALL + '[targets.u]\ntype = "Ensemble"\nmembers = ["a"]\n' + circle)
    assert "itself" in message
    assert "circle" in message


def test_an_unknown_model_names_the_nearest(tmp_path: Path) -> None:
    message = refusal(tmp_path, SMALL + '[targets.u]\ntype = "Ensemble"\nmembers = ["latte"]\n[models.late]\n')
    assert "latte" in message
    assert "late" in message


# ---------------------------------------------------------------- overrides


@pytest.mark.parametrize(
    ("override", "look", "value"),
    [
        ('threat.eps="4/255"', lambda s: s.threat.eps, 4 / 255),
        ("threat.eps=4/255", lambda s: s.threat.eps, 4 / 255),
        ("threat.eps = 0.1", lambda s: s.threat.eps, 0.1),
        ("seed=7", lambda s: s.seed, 7),
        ("name=words of mine", lambda s: s.name, "words of mine"),
        ("description=a=b", lambda s: s.description, "a=b"),
        ("seen=['FGSM']", lambda s: s.seen, ("FGSM",)),
        ("fit.epochs=5", lambda s: s.sources["s"].fit.epochs, 5),
        ("sources.s.fit.lr=0.5", lambda s: s.sources["s"].fit.lr, 0.5),
        ("architecture.width=7", lambda s: s.targets["t"].architecture.width, 7),
        ("attacks.PGD.steps=3", lambda s: s.attacks["PGD"].steps, 3),
    ],
)
def test_an_override_changes_one_field(override: str, look: Callable[[Study], object], value: object, tmp_path: Path) -> None:
    file = written(tmp_path, SMALL)
    assert look(load(file, (override,))) == value
    assert load(file) == load(file, ("seed=3",)), "the file itself stays as it is"


def test_overrides_apply_in_order_and_reach_into_lists(tmp_path: Path) -> None:
    file = written(tmp_path, 'seen = ["s", "FGSM"]\n' + SMALL)
    assert load(file, ("seed=7", "seed=8")).seed == 8
    assert load(file, ("seen.0=FGSM",)).seen == ("FGSM", "FGSM")


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("threat.eps", "a.b=value"),
        ("=3", "a.b=value"),
        ("", "a.b=value"),
        ("threat.eps.x=3", "'eps'"),
        ("seed.x=3", "'seed'"),
        ("thread.eps=3", "thread"),
        ("threat.epps=0.1", "epps"),
        ("threat.eps=", "eps"),
        ("threat.eps=-1", "0 or more"),
        ("seen.9=FGSM", "'9'"),
        ("seen.x=FGSM", "'x'"),
    ],
)
def test_a_bad_override_is_refused(override: str, word: str, tmp_path: Path) -> None:
    message = refusal(tmp_path, 'seen = ["FGSM"]\n' + SMALL, override)
    assert word in message, message


# ---------------------------------------------------------------- rungs


def test_rungs_are_derived_from_what_the_recipes_are() -> None:
    control = trained(1)
    sources: dict[str, Model] = {
        "public": trained(5, MLP()),
        "public twin": trained(6),
        "twin": trained(7),
        "other network": trained(8, MLP()),
        "other recipe": trained(9, lr=0.5),
        "robust": trained(10, loss=Madry(PGD(EPS))),
        "pair": Ensemble((trained(11), trained(12, MLP()))),
    }
    targets: dict[str, Model] = {
        "control": control,
        "wrapped": Wrapped(control, JPEG()),
        "hardened": trained(1, loss=Madry(PGD(EPS))),
        "other": trained(1, MLP()),
    }
    plan = Study(DATA, sources, {"FGSM": FGSM(EPS)}, targets, control="control", public=("public", "public twin"))
    for target in ("control", "wrapped", "hardened"):
        found = {s: plan.rung(s, target) for s in sources}
        expected = {"public": "S0", "public twin": "S0", "twin": "S1"} | dict.fromkeys([*sources][3:], "S2")
        assert found == expected, target
    assert plan.rung("twin", "other") == "S2", "a twin has the target's own network"
    relative = {
        "itself": "S5",
        "itself, identity": "S5",
        "itself, naive": "naive",
        "same defence": "S3",
        "stolen": "S4",
        "stripped": "stripped",
        "no source": "null",
    }
    assert {r: plan.rung(r, "control") for r in RELATIVE} == relative


def test_nulls_are_known_by_their_family_and_not_by_their_name() -> None:
    attacks: dict[str, Attack] = {
        "noise": SignNoise(EPS),
        "PGD": UniformNoise(EPS),
        "mine": ShuffledDelta(FGSM(EPS)),
        "SignNoise": FGSM(EPS),
    }
    plan = Study(DATA, {"s": trained(1)}, attacks, {"t": trained(2)})
    assert {a: (plan.is_null(a), plan.asks_no_model(a)) for a in attacks} == {
        "noise": (True, True),
        "PGD": (True, True),
        "mine": (True, False),
        "SignNoise": (False, False),
    }
    assert study.attack_family(SI_NI_FGSM(EPS)) == "input transformation"
    assert study.attack_family(MI_FGSM(EPS)) == study.attack_family(FGSM(EPS)) == "gradient"


# ---------------------------------------------------------------- what a recipe is

PLAIN = trained(1)
FAMILIES: dict[str, tuple[Model, str, bool]] = {
    "plain": (PLAIN, "none", False),
    "Madry": (trained(1, loss=Madry(PGD(EPS))), "adversarial training", False),
    "TRADES": (trained(1, loss=TRADES(EPS)), "adversarial training", False),
    "PubDef": (trained(1, loss=PubDef((trained(5, MLP()),), PGD(EPS), DATA)), "adversarial training", False),
    "Ensemble": (Ensemble((PLAIN, trained(2))), "ensemble", False),
    "Snapshots": (Snapshots(SmallCNN(), DATA, Fit(epochs=4, schedule="cosine-cycles", cycles=2)), "ensemble", False),
    "averaged weights": (trained(1, average_from=0.5), "ensemble", False),
    "Distillation": (trained(1, loss=Distillation(teacher=trained(4))), "distillation", False),
    "JPEG": (Wrapped(PLAIN, JPEG()), "input transformation", False),
    "Denoiser": (Wrapped(PLAIN, Denoiser(trained(5))), "input transformation", False),
    "Noise": (Wrapped(PLAIN, Noise()), "randomisation", False),
    "RandomMember": (Wrapped(Ensemble((PLAIN, trained(2))), RandomMember()), "randomisation", False),
    "WeightPenalty": (trained(1, loss=WeightPenalty(l2=0.1)), "regularisation", False),
    "dropout": (trained(1, SmallCNN(dropout=0.3)), "regularisation", False),
    "KWTA": (replace(PLAIN, specimen=KWTA()), "gradient masking", True),
    "KWTA behind JPEG": (Wrapped(replace(PLAIN, specimen=KWTA()), JPEG()), "input transformation", True),
    "JPEG over Madry": (Wrapped(trained(1, loss=Madry(PGD(EPS))), JPEG()), "input transformation", False),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_family_and_exhibit_of_one_recipe_of_each_family(name: str) -> None:
    model, family, exhibit = FAMILIES[name]
    assert (family_of(model), is_exhibit(model)) == (family, exhibit)


def test_stripping_takes_off_the_outermost_layer_and_nothing_else() -> None:
    assert stripped(PLAIN) is None
    assert stripped(Wrapped(PLAIN, JPEG())) == PLAIN
    assert stripped(Wrapped(Wrapped(PLAIN, Noise()), JPEG())) == Wrapped(PLAIN, Noise())
    assert stripped(replace(PLAIN, specimen=KWTA())) == PLAIN
    assert stripped(trained(1, loss=Madry(PGD(EPS)))) is None, "a defence in the weights cannot be taken off"
    assert innermost(Wrapped(Ensemble((Wrapped(PLAIN, JPEG()), trained(2))), Noise())) == PLAIN


def test_another_seed_changes_what_is_trained_and_nothing_it_is_trained_from() -> None:
    teacher, public = trained(4), trained(5, MLP())
    assert other_seed(trained(1)) == trained(1001)
    assert other_seed(trained(1), offset=3) == trained(4)
    distilled = trained(1, loss=Distillation(teacher=teacher))
    assert other_seed(distilled) == replace(distilled, seed=1001)
    assert other_seed(distilled).fit.loss.teacher == teacher  # type: ignore[attr-defined]
    defended = trained(1, loss=PubDef((public,), PGD(EPS), DATA))
    assert other_seed(defended) == replace(defended, seed=1001)
    assert other_seed(defended).fit.loss.sources == (public,)  # type: ignore[attr-defined]
    denoised = Wrapped(trained(1), Denoiser(trained(5)))
    assert other_seed(denoised) == Wrapped(trained(1001), Denoiser(trained(5)))
    gated = Wrapped(trained(1), Gate(trained(5), trained(6), 0.5))
    assert other_seed(gated) == Wrapped(trained(1001), Gate(trained(1005), trained(1006), 0.5)), "its networks are the defence"
    both = Ensemble((trained(1), Wrapped(trained(2), JPEG())))
    assert other_seed(both) == Ensemble((trained(1001), Wrapped(trained(1002), JPEG())))
    data = replace(DATA, splits=replace(DATA.splits, seed=7))
    assert other_seed(Trained(SmallCNN(), data, Fit(), 1)) == Trained(SmallCNN(), data, Fit(), 1001), "the data's own seed stays"
    assert other_seed(Relaxed(trained(1), JPEG())) == Relaxed(trained(1001), JPEG())


# ---------------------------------------------------------------- hidden training


def test_a_target_may_not_train_on_a_source_that_is_not_declared_seen() -> None:
    source, other = trained(5, MLP()), trained(6, MLP())
    attacks: dict[str, Attack] = {"FGSM": FGSM(EPS)}
    for hidden in (
        trained(1, loss=PubDef((source,), PGD(EPS), DATA)),
        Wrapped(trained(1, loss=PubDef((other, source), PGD(EPS), DATA)), JPEG()),
        trained(1, loss=Distillation(teacher=source)),
        Ensemble((trained(1), source)),
    ):
        targets: dict[str, Model] = {"plain": trained(1), "hidden": hidden}
        with pytest.raises(SpecError, match=r"'hidden' trains on source 'src'.*`seen`"):
            Study(DATA, {"src": source}, attacks, targets)
        assert Study(DATA, {"src": source}, attacks, targets, seen=("src",)).seen == ("src",)
    clean: dict[str, Model] = {"plain": trained(1), "pubdef": trained(1, loss=PubDef((other,), PGD(EPS), DATA))}
    assert Study(DATA, {"src": source}, attacks, clean).seen == ()


def test_a_study_needs_an_undefended_control() -> None:
    hardened: dict[str, Model] = {"t": trained(1, loss=Madry(PGD(EPS)))}
    with pytest.raises(SpecError, match="undefended target"):
        Study(DATA, {"s": trained(2)}, {"FGSM": FGSM(EPS)}, hardened)


def test_all_attacks_share_one_threat() -> None:
    with pytest.raises(SpecError, match="share one threat, got 2"):
        Study(DATA, {"s": trained(1)}, {"a": FGSM(EPS), "b": FGSM(L2(1.0))}, {"t": trained(2)})


def test_a_scale_replaces_lines_and_what_is_set_by_hand_refines_it(tmp_path: Path) -> None:
    text = """
[data]
type = "Digits"
[threat]
type = "Linf"
eps = "40/255"
[architecture]
type = "MLP"
[fit]
epochs = 15
lr = 0.05
[sources.other]
seed = 5
[attacks.FGSM]
[targets.plain]
[scales.quick]
"fit.epochs" = 2
"data.splits.evaluation" = 30
[scales.full]
"fit.epochs" = 200
"""
    file = tmp_path / "study.toml"
    file.write_text(text)

    def epochs(*overrides: str) -> tuple[int, float, int]:
        plain: Any = load(file, overrides).targets["plain"]
        return plain.fit.epochs, plain.fit.lr, len(plain.data.split("evaluation"))

    as_written = epochs()
    assert as_written[:2] == (15, 0.05)
    assert epochs("scale=quick") == (2, 0.05, 30)
    assert epochs('scale="full"')[0] == 200
    assert epochs("fit.epochs=3", "scale=quick") == (3, 0.05, 30), "in any order"
    file.write_text('scale = "quick"\n' + text)
    assert epochs() == (2, 0.05, 30)
    with pytest.raises(SpecError, match=r"scale must be one of the \[scales\] of this study \(quick, full\), got 'big'"):
        epochs("scale=big")
