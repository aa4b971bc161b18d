"""A study: which sources, attacks and targets are set against each other on which data. The plan; nothing runs here."""

from __future__ import annotations

import copy
import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from firedoor import catalogue, spec, tiers
from firedoor.attacks.iterated import Iterated
from firedoor.attacks.named.gradient import PGD
from firedoor.compile import Precision
from firedoor.craft import Craft
from firedoor.errors import SpecError
from firedoor.models.imported import Imported
from firedoor.protocols import Access, Attack, Dataset, Model, Split
from firedoor.threat import Threat

__all__ = [
    "IDENTITY",
    "ITSELF",
    "NAIVE",
    "NO_SOURCE",
    "RELATIVE",
    "SAME_DEFENCE",
    "STOLEN",
    "STRIPPED",
    "Study",
    "attack_family",
    "family_of",
    "for_detectors",
    "innermost",
    "is_exhibit",
    "load",
    "other_seed",
    "stripped",
]

ITSELF = "itself"  # S5: the target's relaxed gradient
IDENTITY = "itself, identity"  # S5 again: the identity's gradient in place of a wrapper's own relaxed one
NAIVE = "itself, naive"  # the target's gradient as it stands
SAME_DEFENCE = "same defence"  # S3: the target's recipe with another seed, attacked through its relax
STOLEN = "stolen"  # S4: a network trained on the target's answers
STRIPPED = "stripped"  # the target without its wrapper or specimen
NO_SOURCE = "no source"  # null attacks that ask no model
RELATIVE = (
    SAME_DEFENCE,
    STOLEN,
    STRIPPED,
    ITSELF,
    IDENTITY,
    NAIVE,
    NO_SOURCE,
)  # rows whose source is another model for every target

Audit = Literal["preflight", "quick", "full"]
LARGEST_FILE = 1_000_000
ONLY_IN_FILES = {
    "threat",
    "architecture",
    "fit",
    "models",
    "tier",
    "scale",
    "scales",
}  # what a study file has beside the fields of a Study


@dataclass(frozen=True)
class Study:
    """Sources x attacks x targets on one data set under one threat.

    `white_box`: attacks on the target itself (default: PGD with 20 steps, cross-entropy and margin). `control`: the undefended target
    (default: the first of family "none"). `public`: sources that stand for public models (S0). `seen`: sources and attacks that a defence
    may have trained or tuned on. `draws`: how often a random target is asked. `bar`: the loss that a target must stay under to hold.
    `first`: attack only the first so many evaluation images (default: all). It changes no model and no craft, so other budgets can be
    looked at on fewer images with the networks of a long run. `precision`: in which examples are crafted, exact or fast (bfloat16); targets always answer exactly. `stolen`: how an
    attacker copies a target by its answers (S4); its own `target` only holds the place of each that the rungs below left standing.
    `audit`: how many tests for false security each target goes through; full is needed for the verdict ROBUST. preflight has only
    those that run no attack, for networks on which attacks are dear: it allows no good verdict, and every verdict says so.
    `same_defence`: whether rung S3 is climbed for targets that the rungs below left standing; without it, and without S4, no verdict is
    good. Names of targets: for them even where the rungs below broke them, so that their figures may stand beside the others'.

    Errors: SpecError where names clash or are unknown, or the attacks disagree about the threat.
    """

    data: Dataset
    sources: Mapping[str, Model]
    attacks: Mapping[str, Attack]
    targets: Mapping[str, Model]
    white_box: Mapping[str, Attack] = field(default_factory=dict)
    control: str = ""
    public: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    name: str = "study"
    description: str = ""
    seed: int = 0
    draws: int = 20
    shard: int = 500
    bar: float = 0.5
    precision: Precision = "exact"
    stolen: Model | None = None
    audit: Audit = "quick"
    first: int | None = None
    same_defence: bool | tuple[str, ...] = True

    def __post_init__(self) -> None:
        for kind, table in (("source", self.sources), ("attack", self.attacks), ("target", self.targets)):
            if not table:
                raise SpecError(f"a study needs at least one {kind}, got none. Add one.")
            for name in table:
                if not name.strip() or name in RELATIVE or len(name) > 100:
                    raise SpecError(
                        f"a {kind} must have a name of 1 to 100 letters that is none of {', '.join(RELATIVE)}, got {name!r}."
                    )
        for name in set(self.sources) & set(self.targets):
            if self.sources[name] != self.targets[name]:
                raise SpecError(f"{name!r} names a source and another target. Rename one.")
        threats = {spec.canonical(spec.to_dict(a.threat)) for a in self.attacks.values()}
        if len(threats) > 1:
            raise SpecError(
                f"all attacks of a study must share one threat, got {len(threats)} different ones. Run one study for each."
            )
        if not self.white_box:
            first = next(iter(self.attacks.values())).threat
            both = {f"PGD_{o}": PGD(first, steps=20, objective=o, keep="best") for o in ("cross_entropy", "margin")}
            object.__setattr__(self, "white_box", both)
        clash = set(self.attacks) & set(self.white_box)
        if clash:
            raise SpecError(f"{sorted(clash)[0]!r} is both an attack and a white-box attack. Rename one.")
        if not self.control:
            plain = [n for n, m in self.targets.items() if family_of(m) == "none"]
            if not plain:
                raise SpecError("a study needs an undefended target as its control, got none. Add one with the same recipe.")
            object.__setattr__(self, "control", plain[0])
        if self.control not in self.targets:
            raise SpecError(f"the control must be a target, got {self.control!r}.{catalogue.nearest(self.control, self.targets)}")
        for name in self.public:
            if name not in self.sources:
                raise SpecError(f"public names an unknown source, {name!r}.{catalogue.nearest(name, self.sources)}")
        for name in self.seen:
            if name not in self.sources and name not in self.attacks:
                known = [*self.sources, *self.attacks]
                raise SpecError(f"seen names an unknown source or attack, {name!r}.{catalogue.nearest(name, known)}")
        if not isinstance(self.same_defence, bool | tuple):
            raise SpecError(f"same_defence must be true, false or names of targets, got {self.same_defence!r}.")
        for name in self.same_defence if isinstance(self.same_defence, tuple) else ():
            if name not in self.targets:
                raise SpecError(f"same_defence names an unknown target, {name!r}.{catalogue.nearest(name, self.targets)}")
        if self.first is not None and (isinstance(self.first, bool) or not isinstance(self.first, int) or self.first < 1):
            raise SpecError(f"first must be 1 or more evaluation images, got {self.first!r}. Leave it out for all of them.")
        if self.draws < 1 or self.shard < 1 or not 0 < self.bar < 1:
            raise SpecError(
                f"draws and shard must be 1 or more and bar between 0 and 1, got {self.draws}, {self.shard}, {self.bar}."
            )
        eps, norm = self.threat.eps, self.threat.norm
        if norm == "Linf" and (eps > 1 or (self.data.eight_bit and 0 < 255 * eps < 1 - 1e-6)):
            raise SpecError(
                f'eps must lie between 1/255 (one level of an 8-bit image) and 1 for Linf, got {eps:g}. Try eps = "8/255".'
            )
        if self.stolen is not None and not hasattr(self.stolen, "target"):
            raise SpecError(f"stolen must be a recipe with a target, such as Stolen, got {type(self.stolen).__name__}.")
        self._refuse_hidden_training()

    @property
    def threat(self) -> Threat:
        """The one threat of all attacks."""
        return next(iter(self.attacks.values())).threat

    @property
    def images(self) -> Split:
        """The evaluation images that are attacked: all of them, or the `first`."""
        return self.data.split("evaluation")[slice(0, self.first)]

    def crafts(self, source: Model | None, attack: Attack) -> tuple[Craft, ...]:
        """The examples of a source and an attack on the evaluation images, one recipe per shard."""
        n = len(self.images)
        return tuple(
            Craft(source, attack, self.data, "evaluation", i, min(i + self.shard, n), self.seed, self.precision)
            for i in range(0, n, self.shard)
        )

    def rung(self, source: str, target: str) -> str:
        """Where a source stands on the ladder, seen from a target: S0 to S5, or naive, stripped, null."""
        relative = {
            ITSELF: "S5",
            IDENTITY: "S5",
            NAIVE: "naive",
            SAME_DEFENCE: "S3",
            STOLEN: "S4",
            STRIPPED: "stripped",
            NO_SOURCE: "null",
        }
        if source in relative:
            return relative[source]
        if source in self.public:
            return "S0"
        control, model = self.targets[self.control], _without_refinement(self.sources[source])
        if model in (self.targets[target], self.targets[target].relax()):
            return "S5"  # the same weights: no transfer
        if model == innermost(self.targets[target]):
            return "stripped"
        if getattr(model, "target", None) == self.targets[target]:
            return "S4"
        same_recipe = _without_seed(model) == _without_seed(control)
        same_network = _architecture(model) == _architecture(self.targets[target])
        return "S1" if same_recipe and same_network else "S2"

    def is_null(self, attack: str) -> bool:
        """Whether an attack is a control that should not work."""
        return attack_family(self.attacks[attack]) == "null" if attack in self.attacks else False

    def asks_no_model(self, attack: str) -> bool:
        """Whether an attack needs no source at all."""
        return self.is_null(attack) and self.attacks[attack].needs <= Access.LABELS

    def _refuse_hidden_training(self) -> None:
        """A source that a target's own recipe trains on must be declared seen."""
        known = {spec.canonical(spec.to_dict(m)): n for n, m in self.sources.items()}
        for target, model in self.targets.items():
            for recipe in spec.recipes_in(model):
                if recipe is model or not isinstance(recipe, tuple(type(m) for m in self.sources.values())):
                    continue
                name = known.get(spec.canonical(spec.to_dict(recipe)))
                if name is not None and name not in self.seen:
                    raise SpecError(
                        f"target {target!r} trains on source {name!r}, so it is no held-out source. Add {name!r} to `seen`."
                    )


# ---------------------------------------------------------------- what a recipe is


def family_of(model: Model) -> str:
    """The defence family of a recipe, from the catalogue entries that it is made of."""
    families = {e.name: e.family for e in catalogue.entries("defences")}
    for recipe in _defining_parts(model):
        found = families.get(type(recipe).__name__)
        if found:
            return found
    base = innermost(model)
    fit = getattr(base, "fit", None)
    if fit is not None and fit.average_from is not None:
        return "ensemble"
    if getattr(getattr(base, "architecture", None), "dropout", 0):
        return "regularisation"
    return "none"


def is_exhibit(model: Model) -> bool:
    """Whether a recipe contains a specimen of false security."""
    broken = {e.name for e in catalogue.entries("broken")}
    return any(type(r).__name__ in broken for r in spec.recipes_in(model))


def attack_family(attack: Attack) -> str:
    """null, gradient, input transformation ...: the catalogue's family of the attack, or of its strongest part."""
    families = {e.name: e.family for kind in ("attacks", "parts", "objectives", "estimators") for e in catalogue.entries(kind)}
    if isinstance(attack, Iterated):
        inside = {families.get(type(p).__name__, "") for p in (*attack.parts, attack.objective, attack.estimator)}
        return next(iter(sorted(inside - {"", "gradient", "adaptive"})), "gradient")
    return families.get(type(attack).__name__, "other")


def for_detectors(attack: Attack) -> bool:
    """Whether an attack is meant for models that may abstain, and for no others."""
    return bool(getattr(getattr(attack, "objective", None), "detectors_only", False))


def innermost(model: Model) -> Model:
    """The network under all wrappers; the first member of an ensemble."""
    for name in ("model", "members"):
        inner = getattr(model, name, None)
        if inner is not None:
            return innermost(inner[0] if isinstance(inner, tuple) else inner)
    return model


def _without_refinement(model: Model) -> Model:
    """The model that a source recipe with another backward pass, or with later weights, was made from."""
    recipes = {e.name for e in catalogue.entries("attacks") if e.family == "source recipe"}
    inner = getattr(model, "model", None)
    return _without_refinement(inner) if inner is not None and type(model).__name__ in recipes else model


def stripped(model: Model) -> Model | None:
    """The same network without its outermost wrapper or its specimen; None where nothing can be taken off."""
    inner = getattr(model, "wrapper", None)
    if inner is not None:
        return getattr(model, "model", None)
    if getattr(model, "specimen", None) is not None:
        return replace(model, specimen=None)  # type: ignore[type-var]
    return None


def other_seed(model: Model, offset: int = 1000) -> Model:
    """The same recipe trained with another seed. Teachers and public sources stay as they are, and so do the networks of a wrapper, but
    for those that it names as trained with the defence (`trained`)."""
    changes: dict[str, Any] = {}
    for f in dataclasses.fields(model):  # type: ignore[arg-type]
        value = getattr(model, f.name)
        if f.name == "seed":
            changes["seed"] = value + offset
        elif f.name == "model":
            changes["model"] = other_seed(value, offset)
        elif f.name == "members":
            changes["members"] = tuple(other_seed(m, offset) for m in value)
        elif f.name == "wrapper":
            own: tuple[str, ...] = getattr(value, "trained", ())
            changes["wrapper"] = replace(value, **{n: other_seed(getattr(value, n), offset) for n in own})
    return replace(model, **changes) if changes else model  # type: ignore[type-var]


def _defining_parts(model: Any) -> list[Any]:
    parts = [getattr(model, "wrapper", None), getattr(model, "specimen", None), model]
    fit = getattr(model, "fit", None)
    if fit is not None:
        parts.append(fit.loss)
    parts.append(getattr(model, "architecture", None))
    inner = getattr(model, "model", None)
    return [p for p in parts if p is not None] + (_defining_parts(inner) if inner is not None else [])


def _architecture(model: Model) -> Any:
    return getattr(innermost(model), "architecture", None)


def _without_seed(model: Model) -> Any:
    table = spec.to_dict(model)
    table.pop("seed", None)
    return table


# ---------------------------------------------------------------- TOML


def load(file: str | Path, overrides: tuple[str, ...] = (), trust: bool = False) -> Study:
    """Read a study file. `overrides`: texts "a.b=value", the value written as in TOML. `trust`: it may name Python code to import.

    Errors: SpecError naming the place, what was needed and what was got.
    """
    path = Path(file)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SpecError(f"the study {str(path)!r} cannot be read ({error.strerror}). Give the path of a TOML file.") from None
    if len(data) > LARGEST_FILE:
        raise SpecError(f"a study must be at most {LARGEST_FILE} bytes, got {len(data)}. This is no study file.")
    try:
        table = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{str(path)!r} must be a TOML text ({error}). Fix the file, or give another.") from None
    chosen = [text for text in overrides if text.partition("=")[0].strip() == "scale"]
    for text in chosen:
        _override(table, text)
    table = _scaled(table)
    for text in overrides:
        if text not in chosen:  # what is set by hand refines the scale
            _override(table, text)
    study = from_table(table)
    foreign = next((r for r in spec.recipes_in(study) if isinstance(r, Imported)), None)
    if foreign is not None and not trust:
        raise SpecError(f"the study would import and run {foreign.function!r}. Look at it, then add --trust-study.")
    return study


def from_table(table: Mapping[str, Any]) -> Study:
    """A study from the tables of a study file: [data], [threat], [architecture], [fit], [models], [sources], [attacks], [targets] ...

    `tier`: "T0", "T1" or "T2" brings a whole suite of attacks; an entry of the same name in [attacks] or [white_box] replaces its own.
    `scale`: the name of one of [scales.NAME], whose lines, such as "fit.epochs" = 4, replace those of the file.
    """
    table = _scaled(table)
    fields = {f.name for f in dataclasses.fields(Study)}
    for key in table:
        if key not in fields | ONLY_IN_FILES:
            known = sorted(fields | ONLY_IN_FILES)
            raise SpecError(f"a study has no field {key!r}.{catalogue.nearest(key, known)} Fields: {', '.join(known)}.")
    context: dict[str, Any] = {k: table[k] for k in ("architecture", "fit") if k in table}
    for key, annotation in (("data", Dataset), ("threat", Threat)):
        if key not in table:
            raise SpecError(
                f"a study needs a [{key}] table. Add one, such as "
                + ('type = "Digits".' if key == "data" else 'type = "Linf", eps = "8/255".')
            )
        context[key] = spec.from_value(annotation, table[key], key, {}, {})
    names: dict[str, Any] = {}
    for part in ("models", "sources", "targets"):
        entries = table.get(part, {})
        if not isinstance(entries, Mapping):
            raise SpecError(f"[{part}] must be a table of named models.")
        for name, entry in entries.items():
            if name in names and part != "models":
                raise SpecError(f"{name!r} names two models. Rename one.")
            names[name] = _once(entry, f"{part}.{name}", context, names)
    built: dict[str, Any] = {
        k: v for k, v in table.items() if k in fields - {"data", "sources", "targets", "attacks", "white_box", "stolen"}
    }
    plain = {f.name: f.type for f in dataclasses.fields(Study)}
    hints: dict[str, Any] = {"control": str, "public": tuple[str, ...], "seen": tuple[str, ...], "name": str, "description": str}
    hints |= {"seed": int, "draws": int, "shard": int, "bar": float, "precision": Precision, "audit": Audit}
    hints |= {"first": int | None, "same_defence": bool | tuple[str, ...]}
    built = {k: spec.from_value(hints[k], v, k, {}, {}) for k, v in built.items() if k in plain}
    if "stolen" in table:
        control = table.get("control") or next(iter(table.get("targets", {})), None)
        default = {**context, "target": names[control]()} if control in names else context
        built["stolen"] = spec.from_value(Model, {"type": "Stolen", **table["stolen"]}, "stolen", default, names)
    for part in ("sources", "targets"):
        built[part] = {name: names[name]() for name in table.get(part, {})}
    for part in ("attacks", "white_box"):
        entries = table.get(part, {})
        if not isinstance(entries, Mapping):
            raise SpecError(f"[{part}] must be a table of named attacks.")
        built[part] = {n: spec.from_value(Attack, _named(n, e), f"{part}.{n}", context, names) for n, e in entries.items()}
    if "tier" in table:
        transfer, own = tiers.attacks_of(table["tier"], context["threat"], context["data"])
        built["attacks"] = {**transfer, **built["attacks"]}
        built["white_box"] = {**own, **built["white_box"]}
    return Study(data=context["data"], **built)


def to_toml(study: Study) -> str:
    """The study with everything spelled out, as a file that `load` reads back."""
    table = spec.to_dict(study)
    table.pop("type")
    table["threat"] = spec.to_dict(study.threat)
    return spec.to_toml(table)


def _once(entry: Any, where: str, context: Mapping[str, Any], names: Mapping[str, Any]) -> Callable[[], Any]:
    """A model built when it is first asked for, so that entries may refer to each other in any order."""
    state: dict[str, Any] = {}

    def build() -> Any:
        if "model" not in state:
            if state.get("building"):
                raise SpecError(f"{where} refers to itself. Break the circle.")
            state["building"] = True
            table = {"type": "Trained", **entry} if isinstance(entry, Mapping) else entry
            state["model"] = spec.from_value(Model, table, where, context, names)
        return state["model"]

    return build


def _named(name: str, entry: Any) -> Any:
    """An attack entry without a `type` is called by its type."""
    return {"type": name, **entry} if isinstance(entry, Mapping) else entry


def _scaled(table: Mapping[str, Any]) -> dict[str, Any]:
    """The table with the lines of its scale in place, and no scale left."""
    chosen = {k: v for k, v in table.items() if k != "scale"}
    if "scale" not in table:
        return chosen
    scales = table.get("scales", {})
    name = table["scale"]
    if not isinstance(scales, Mapping) or not isinstance(name, str) or not isinstance(scales.get(name), Mapping):
        known = ", ".join(scales) if isinstance(scales, Mapping) and scales else "none"
        raise SpecError(f"scale must be one of the [scales] of this study ({known}), got {name!r}. Name one, or leave it out.")
    changed = copy.deepcopy(chosen)
    for path, value in scales[name].items():
        _put(changed, path, value, f"scales.{name}: {path}")
    return changed


def _override(table: dict[str, Any], text: str) -> None:
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise SpecError(f'--set must read a.b=value, got {text!r}. Example: --set threat.eps="8/255".')
    try:
        parsed = tomllib.loads(f"value = {value.strip()}")["value"]
    except (ValueError, RecursionError):
        parsed = value.strip()
    _put(table, path.strip(), parsed, f"--set {path.strip()}")


def _put(table: dict[str, Any], path: str, value: Any, who: str) -> None:
    """Set a.b.c, making tables on the way; `who` begins the error where there is no such place."""
    *parents, last = path.split(".")
    place: Any = table
    for key in parents:
        place = (
            place.setdefault(key, {})
            if isinstance(place, dict)
            else place[int(key)]
            if key.isdecimal() and int(key) < len(place)
            else None
        )
        if not isinstance(place, dict | list):
            raise SpecError(f"{who}: {key!r} is no table of this study.")
    if isinstance(place, dict):
        place[last] = value
    elif last.isdecimal() and int(last) < len(place):
        place[int(last)] = value
    else:
        raise SpecError(f"{who}: {last!r} is no index of that list.")
