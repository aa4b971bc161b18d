"""24 sabotaged attacks: real source files with one small edit each, and the clause of the contract that must name the defect.

`prepare` makes an honest variant first, where the plain file has nothing to spoil: longer steps, or the best iterate kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import firedoor
from firedoor.contracts.attack import ORDER, first_broken
from firedoor.contracts.check import check
from firedoor.contracts.subject import Verdict

__all__ = ["ORIGINALS", "SABOTAGES", "Sabotage", "caught", "count_and_check", "judged", "written"]

Edit = tuple[str, str]
PACKAGE = Path(firedoor.__file__).parent


@dataclass(frozen=True)
class Sabotage:
    """What was done, the clause that must be the first to break, the file, and old -> new."""

    name: str
    clause: int
    edit: Edit
    prepare: tuple[Edit, ...] = ()
    source: str = "attacks/iterated.py"
    attack: str = "Iterated"


GUARDED = """        with guard.no_side_effects(model), seed.own_streams(x, purpose="Iterated"):
            return self._climb(model, x, y)
"""
STEP = "                x_adv = threat.step(x_adv, x, gradient(x_adv), step_size)\n"
RETURN = "        return x_adv if x_best is None else x_best\n"
SIGN = "sign, largest = -1.0 if self.threat.targeted else 1.0, int(y.max())"
LONG: Edit = ("step_size = threat.eps / self.steps if", "step_size = 2.5 * threat.eps / self.steps if")
BEST: Edit = ('keep: Literal["last", "best"] = "last"', 'keep: Literal["last", "best"] = "best"')


def afterwards(line: str) -> Edit:
    """The attack as it is, and then that."""
    return GUARDED, GUARDED.replace("return self", "x_adv = self") + f"        {line}\n        return x_adv\n"


SABOTAGES = (
    Sabotage("no-op", 23, (RETURN, "        return x.clone()\n")),
    Sabotage(
        "returns x itself", 1, ("        x = x.detach().clone(memory_format=torch.contiguous_format)\n", "        return x\n")
    ),
    Sabotage("wrong sign", 17, (SIGN, "sign, largest = -1.0, int(y.max())")),
    Sabotage(
        "no ball",
        2,
        (STEP, "                x_adv = (x_adv + step_size * threat.steepest(gradient(x_adv))).clamp(0, 1)\n"),
        (LONG,),
    ),
    Sabotage(
        "no box",
        3,
        (
            STEP,
            "                d = x_adv + step_size * threat.steepest(gradient(x_adv)) - x\n"
            "                shrink = (threat.eps / threat.size(d).clamp_min(1e-30)).clamp_max(1).view(-1, *[1] * (x.dim() - 1))\n"
            '                x_adv = threat.project(x + d, x) if threat.norm == "L0" else x + shrink * d\n',
        ),
    ),
    Sabotage("truncating save", 2, (RETURN, "        return (255 * (x_adv if x_best is None else x_best)).floor() / 255\n")),
    Sabotage("one level over", 2, (RETURN, "        return (x_adv + (x_adv - x).sign() / 255).clamp(0, 1)\n")),
    Sabotage("loss averaged over the batch", 8, ("total = loss(leaf).sum()", "total = loss(leaf).mean()")),
    Sabotage(
        "norm over the batch",
        8,
        (
            STEP,
            "                g = gradient(x_adv)\n"
            "                whole = g / g.square().sum().sqrt().clamp_min(1e-30) * len(x) ** 0.5\n"
            '                ascent = whole if threat.norm == "L2" else threat.steepest(g)\n'
            "                x_adv = threat.project(x_adv + step_size * ascent, x)\n",
        ),
    ),
    Sabotage(
        "stops all at the first success",
        8,
        (STEP, STEP + "                if bool((model(x_adv).argmax(1) != y).any()):\n                    break\n"),
    ),
    Sabotage("leaves train mode", 5, afterwards("model.train()")),
    Sabotage(
        "leaves eval mode after an exception",
        5,
        (
            GUARDED,
            "        try:\n"
            + "".join(f"    {line}\n" for line in GUARDED.splitlines())
            + "        except Exception:\n            model.eval()\n            raise\n",
        ),
    ),
    Sabotage("fills .grad", 5, afterwards("[setattr(p, 'grad', torch.zeros_like(p)) for p in model.parameters()]")),
    Sabotage("leaves a hook", 5, afterwards("model.register_forward_hook(lambda *_: None)")),
    Sabotage("reseeds globally", 5, afterwards("torch.manual_seed(0)")),
    Sabotage(
        "draws from the global stream",
        7,
        (
            "x_adv = threat.start(x) if self.random_start else x\n",
            "x_adv = threat.project(x + 0.1 * threat.eps * (torch.rand_like(x) - 0.5), x)\n",
        ),
    ),
    Sabotage(
        "label off by one",
        23,
        ("objective(logits, y.repeat(len(x) // len(y)))", "objective(logits, (y.repeat(len(x) // len(y)) + 1) % logits.shape[1])"),
    ),
    Sabotage(
        "attacks the prediction instead of y",
        16,
        (
            "        objective = OBJECTIVES[self.objective]\n",
            "        named = OBJECTIVES[self.objective]\n"
            "        with torch.no_grad():\n"
            "            seen = model(x.clone()).argmax(1)\n\n"
            "        def objective(logits, y):\n"
            "            return named(logits, y if sign < 0 else seen.repeat(len(y) // len(seen)))\n",
        ),
    ),
    Sabotage("targeted sign flipped", 15, (SIGN, "sign, largest = 1.0, int(y.max())")),
    Sabotage("NaN momentum", 18, ("mean.where(mean > 0, 1.0)", "mean"), source="attacks/parts/momentum.py", attack="Momentum"),
    Sabotage("NaN counted as success", 13, ("better = reached > largest  #", "better = ~(reached <= largest)  #"), (BEST,)),
    Sabotage(
        "step size cached on self",
        20,
        (
            "        step_size = threat.eps / self.steps if self.step_size is None else self.step_size\n",
            "        if self.step_size is None:\n"
            '            object.__setattr__(self, "step_size", threat.eps / self.steps)\n'
            "        step_size = self.step_size\n",
        ),
    ),
    Sabotage(
        "clean on failure",
        23,
        (
            RETURN,
            "        with torch.no_grad():\n"
            "            fooled = (model(x_adv).argmax(1) == y) == threat.targeted\n"
            "        return torch.where(fooled.view(-1, *[1] * (x.dim() - 1)), x_adv, x)\n",
        ),
    ),
    Sabotage(
        "hidden extra queries",
        21,
        (STEP, STEP + "                with torch.no_grad():\n                    model(x_adv.clone())\n"),
    ),
)
ORIGINALS = tuple({(s.source, s.attack, s.prepare): s for s in SABOTAGES}.values())
"""One sabotage for each honest file that they are made from."""


def written(sabotage: Sabotage, folder: Path, spoiled: bool = True) -> Path:
    """The file of the attack, sabotaged or honest. Every edit must apply exactly once."""
    text = (PACKAGE / sabotage.source).read_text(encoding="utf-8")
    for old, new in (*sabotage.prepare, *((sabotage.edit,) if spoiled else ())):
        assert text.count(old) == 1, f"{sabotage.name}: {old!r} occurs {text.count(old)} times in {sabotage.source}, once needed"
        text = text.replace(old, new)
    file = folder / f"{sabotage.attack.lower()}.py"
    file.write_text(text, encoding="utf-8")
    return file


def judged(sabotage: Sabotage, folder: Path, spoiled: bool = True, clauses: tuple[int, ...] = ORDER) -> tuple[Verdict, ...]:
    """What `check` says of it."""
    return check(written(sabotage, folder, spoiled), sabotage.attack, clauses)


def caught(number: int, folder: Path) -> tuple[bool, str]:
    """Whether the first broken clause is the one that names the defect, and what was said. Later clauses cannot change that."""
    sabotage = SABOTAGES[number]
    broken = first_broken(judged(sabotage, folder, clauses=ORDER[: ORDER.index(sabotage.clause) + 1]))
    said = "no clause broke" if broken is None else f"clause {broken.clause} broke first: {broken.text}"
    return broken is not None and broken.clause == sabotage.clause, f"{sabotage.name} (clause {sabotage.clause}): {said}"


def count_and_check(folder: Path) -> tuple[int, tuple[str, ...]]:
    """(how many are caught, what was said of those that are not)."""
    results = [caught(i, folder) for i in range(len(SABOTAGES))]
    return sum(c for c, _ in results), tuple(text for c, text in results if not c)
