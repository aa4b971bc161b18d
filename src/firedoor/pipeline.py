"""Carry out a study: train, craft, score, diagnose, gather. Whatever the store holds is not done again."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from firedoor import device
from firedoor import study as studies
from firedoor.attacks.nulls import SignNoise
from firedoor.cells import Answers, Diagnosis
from firedoor.costs import costs_of, trainable, work_in
from firedoor.craft import Craft
from firedoor.defences.losses.stored import crafts_for
from firedoor.engines.pool import Pool
from firedoor.errors import AccessError, ModelRefused, SetupError, StoreError
from firedoor.examination import examination, found_by, sign_of
from firedoor.files import write_atomically
from firedoor.gallery import gallery_of
from firedoor.gather import Found, gather
from firedoor.looks import looked
from firedoor.matrix import Matrix
from firedoor.models.wrapped import abstains, detects, second_view
from firedoor.protocols import Classifier, Model, Split, Symptom
from firedoor.store import FileStore
from firedoor.study import IDENTITY, ITSELF, NAIVE, NO_SOURCE, SAME_DEFENCE, STOLEN, STRIPPED, Study
from firedoor.threat import L2, Linf

__all__ = ["Outcome", "Progress", "carry_out", "default_store", "run"]

Progress = Callable[[str, int, int], None]
"""(what is being done, done, total), called as work goes on."""

NOISE_DRAWS = 5
LARGEST_LOGIT = 1e9


@dataclass(frozen=True)
class Outcome:
    """All that a study gave. symptoms and costs: by target; gallery: rows of images for the report; failed: cells that raised; looks: see `looked`."""

    matrix: Matrix
    symptoms: dict[str, list[Symptom]]
    costs: dict[str, dict[str, float | None]]
    gallery: list[dict[str, Any]]
    failed: dict[str, str] = field(default_factory=dict)
    looks: str = ""

    def write(self, out: Path, study: Study) -> None:
        """Leave study.toml, matrix.nc, symptoms.json, costs.json, gallery.json and provenance.json in `out`. Errors: StoreError."""
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_atomically(out / "study.toml", studies.to_toml(study).encode())
            self.matrix.write(out / "matrix.nc")
            listed = {t: [vars(s) for s in found] for t, found in self.symptoms.items()}
            files = {
                "symptoms": listed,
                "costs": self.costs,
                "gallery": self.gallery,
                "provenance": _provenance(study.precision, self.looks),
            }
            for name, value in files.items():
                write_atomically(out / f"{name}.json", json.dumps(value, indent=1, allow_nan=False).encode())
        except OSError as error:
            raise StoreError(f"the output folder {out} cannot be written ({error.strerror}). Give another with --out.") from None


def default_store() -> FileStore:
    """The folder that FIREDOOR_STORE names, or .firedoor in the working folder."""
    return FileStore(os.environ.get("FIREDOOR_STORE", ".firedoor"))


def run(
    study: Study,
    store: FileStore | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
    workers: int = 1,
) -> Matrix:
    """The matrix of a study. `out`: a folder that gets everything `firedoor report` needs. `workers`: as in `carry_out`.

    Errors: ModelRefused before any cell is crafted, where a model cannot be measured.
    """
    outcome = carry_out(study, store or default_store(), progress or _silent, workers)
    if out is not None:
        outcome.write(Path(out), study)
    return outcome.matrix


def carry_out(study: Study, store: FileStore, progress: Progress, workers: int = 1) -> Outcome:
    """Everything a study asks for, in the order train, refuse, craft and score, diagnose, gather.

    `workers`: processes, 0 for one on each core; more than one needs a main module that can be imported. On a CPU each works with
    one thread, whatever their number, so that the result is the same for any.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with Pool(workers or os.cpu_count() or 1, str(store.root), str(device.current())) as pool:
            work = _Work(study, store, progress, pool)
            work.train([study.targets[study.control], *study.sources.values(), *study.targets.values()])
            work.refuse_at_the_door()
            looks = looked(study, store)
            work.score("craft and score", [*work.transfer_rows(), *work.own_rows(), *work.noise_rows()])
            work.score("same defence", work.same_defence_rows())
            work.score("stolen copies", work.stolen_rows())
            symptoms = work.diagnose()
            work.find_leaks()
            costs = costs_of(study, store, work.found.fail)
        matrix = gather(study, work.found)
        return Outcome(matrix, symptoms, costs, gallery_of(study, matrix, store), work.found.failed, looks)
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Row:
    """The examples of one source row and attack, in every shard, and the targets that answer them."""

    source: str
    attack: str
    crafts: tuple[Craft, ...]
    targets: tuple[str, ...]
    own: bool = False  # the source differs by target


class _Work:
    """One run of one study, and what it has found so far."""

    def __init__(self, study: Study, store: FileStore, progress: Progress, pool: Pool) -> None:
        self.study, self.store, self.progress, self.pool = study, store, progress, pool
        self.split: Split = study.images
        self.found = Found()

    # ------------------------------------------------------------ train

    def train(self, models: Iterable[Model]) -> None:
        """Train what the store does not hold; recipes that others need come first, long ones before short ones."""
        recipes = trainable(models)
        missing = [r for r in recipes if not self.store.has("model", r.inputs())]
        longest = sorted(missing, key=work_in, reverse=True)
        crafts = [c for r in longest for c in crafts_for(r.fit.loss) if not self.store.has("craft", c.inputs())]
        self._fill("training", {r: (r,) for r in (*crafts, *longest)}, _needed)
        for i, recipe in enumerate(missing):
            if not self.store.has("model", recipe.inputs()):
                self.progress("training", i, len(missing))
                recipe.load(self.store)
        if missing:
            self.progress("training", len(missing), len(missing))

    def _fill(self, what: str, tasks: dict[Any, Sequence[Any]], needs: Callable[[Any], Iterable[Any]] = lambda _: ()) -> None:
        """Let worker processes put these recipes into the store; whatever they leave undone is done by the caller."""
        if self.pool.useful(len(tasks)):
            self.progress(what, 0, len(tasks))
            self.pool.fill(tasks, needs, lambda k: self.progress(what, k, len(tasks)))

    def refuse_at_the_door(self) -> None:
        """ModelRefused for a model that gives no finite (n, k) logits, or that changes itself when asked."""
        few = self.split[slice(0, 4)]
        for kind, table in (("target", self.study.targets), ("source", self.study.sources)):
            for name, model in table.items():
                complaint = _complaint(model, self.store, few, len(self.study.data.classes) + int(abstains(model)))
                if complaint:
                    raise ModelRefused(f"{kind} {name!r} {complaint}")

    def find_leaks(self) -> None:
        """Evaluation images that some network of a target or source was trained on, by the digest of their pixels."""
        own = {_digest(x): i for x, i in zip(self.split.x, self.split.ids, strict=True)}
        parts: dict[tuple[str, str], list[str]] = {}
        for kind, table in (("targets", self.study.targets), ("sources", self.study.sources)):
            self.found.leaked[kind] = {}
            for name, model in table.items():
                ids: set[str] = set()
                for recipe in trainable([model]):
                    part = (recipe.data.digest(), recipe.part)
                    if part not in parts:
                        seen = {_digest(x) for x in recipe.data.split(recipe.part).x}
                        parts[part] = sorted(i for d, i in own.items() if d in seen)
                    ids |= set(parts[part])
                self.found.leaked[kind][name] = sorted(ids)

    # ------------------------------------------------------------ which rows there are

    def transfer_rows(self) -> list[_Row]:
        """Rows that are the same for all targets: every source, and the nulls that ask no model."""
        rows, targets = [], tuple(self.study.targets)
        for name, attack in self.study.attacks.items():
            if self.study.asks_no_model(name):
                rows.append(_Row(NO_SOURCE, name, self.study.crafts(None, attack), targets))
            else:
                rows.extend(_Row(s, name, self.study.crafts(m, attack), targets) for s, m in self.study.sources.items())
        return rows

    def own_rows(self) -> list[_Row]:
        """Rows that attack the target itself: relaxed, as it stands, and stripped of its defence."""
        rows = []
        for target, model in self.study.targets.items():
            relaxed = model.relax()
            sources = {
                ITSELF: (relaxed, ""),
                IDENTITY: (second_view(model), "its defence has one way around it"),
                NAIVE: (model if relaxed != model else None, "its own gradient is already the relaxed one"),
                STRIPPED: (studies.stripped(model), "there is nothing to strip"),
            }
            for row, (source, why_not) in sources.items():
                if source is None:
                    self.found.reasons[f"{row}|*|{target}"] = why_not
                    continue
                for name, attack in self.study.white_box.items():
                    if studies.for_detectors(attack) and not detects(source):
                        self.found.reasons[f"{row}|{name}|{target}"] = "the target is no detector"
                    else:
                        rows.append(_Row(row, name, self.study.crafts(source, attack), (target,), own=True))
        return rows

    def noise_rows(self) -> list[_Row]:
        """Draws of sign noise, answered by every target and source."""
        everyone = (*self.study.targets, *self.study.sources)
        return [_Row("", str(d), self.study.crafts(None, SignNoise(self.study.threat, d)), everyone) for d in range(NOISE_DRAWS)]

    def same_defence_rows(self) -> list[_Row]:
        """Rung S3, for the targets that the rungs below left standing or that the study names; trains what it needs."""
        twins: dict[str, Model] = {}
        named = self.study.same_defence if isinstance(self.study.same_defence, tuple) else ()
        for target, model in self.study.targets.items():
            twin = studies.other_seed(model)
            if self.study.same_defence is False:
                self.found.reasons[f"{SAME_DEFENCE}|*|{target}"] = "the study leaves rung S3 out"
            elif target not in named and not self._stands(target):
                self.found.reasons[f"{SAME_DEFENCE}|*|{target}"] = "rungs S0 to S2 already broke it"
            elif twin == model:
                self.found.reasons[f"{SAME_DEFENCE}|*|{target}"] = "its recipe has no seed to change"
            else:
                twins[target] = twin
        return self._rows_of(SAME_DEFENCE, twins)

    def stolen_rows(self) -> list[_Row]:
        """Rung S4, for the targets that S0 to S3 left standing; asks them, and trains the copies."""
        copies: dict[str, Model] = {}
        for target, model in self.study.targets.items():
            if self.study.stolen is None:
                self.found.reasons[f"{STOLEN}|*|{target}"] = "the study steals nothing"
            elif not self._stands(target):
                self.found.reasons[f"{STOLEN}|*|{target}"] = "rungs S0 to S3 already broke it"
            else:
                copies[target] = replace(self.study.stolen, target=model)  # type: ignore[type-var]
        return self._rows_of(STOLEN, copies)

    def _rows_of(self, row: str, models: dict[str, Model]) -> list[_Row]:
        """Every real attack on one model per target, trained if it is not in the store."""
        self.train(models.values())
        real = {n: a for n, a in self.study.attacks.items() if not self.study.is_null(n)}
        return [_Row(row, n, self.study.crafts(m.relax(), a), (t,), own=True) for t, m in models.items() for n, a in real.items()]

    def _stands(self, target: str) -> bool:
        """Whether the transferred examples so far leave the target's loss within two standard errors of the bar, or under it."""
        y = self.split.y.numpy()
        right = (self.found.clean[target] == y).mean(0) >= 0.5
        fooled = np.zeros_like(right)
        for (source, attack, t), labels in self.found.labels.items():
            if t == target and (source in self.study.sources or source == SAME_DEFENCE) and not self.study.is_null(attack):
                fooled |= (labels == y).mean(0) < 0.5
        n = max(int(right.sum()), 1)
        loss = int((fooled & right).sum()) / n
        return bool(loss - 2 * (loss * (1 - loss) / n) ** 0.5 <= self.study.bar)

    # ------------------------------------------------------------ craft and score

    def score(self, what: str, rows: list[_Row]) -> None:
        """Craft and score every row: workers first, if there are any; then read the store, and do what is still missing."""
        for kind, models in (("target", self.study.targets), ("source", self.study.sources)):
            for name, model in models.items():
                table = self.found.clean if kind == "target" else self.found.source_clean
                answers = self._clean(kind, name, model)
                if (answers < 0).any():
                    k = int((answers < 0).any(0).sum())
                    raise ModelRefused(f"{kind} {name!r} gives NaN or infinite logits on {k} clean images. Check its weights.")
                table[name] = answers
        units = [self._unit(row, craft) for row in rows for craft in row.crafts]
        kinds = {Craft: "craft", Answers: "answers"}
        self._fill(what, {u: u for u in units if not all(self.store.has(kinds[type(r)], r.inputs()) for r in u)})
        for i, row in enumerate(rows):
            self.progress(what, i, len(rows))
            self._score_row(row)
        if rows:
            self.progress(what, len(rows), len(rows))

    def _clean(self, kind: str, name: str, model: Model) -> np.ndarray:
        """A model's answers to the clean images, without which nothing can be said of it."""
        try:
            return self._answers_to_clean(model)
        except SetupError:
            raise
        except ModelRefused as error:
            raise ModelRefused(f"{kind} {name!r}, on clean images: {error}") from None
        except Exception as error:
            raise ModelRefused(f"{kind} {name!r} fails on clean images ({type(error).__name__}: {error}). Check it.") from None

    def _answers_to_clean(self, model: Model) -> np.ndarray:
        """(draws, n) labels of the images that are attacked, as they are."""
        study = self.study
        return Answers(model, None, study.data, draws=self._draws(model), seed=study.seed, first=study.first).load(self.store)

    def _unit(self, row: _Row, craft: Craft) -> tuple[Any, ...]:
        """One craft and all answers to it."""
        noise = row.source == ""
        return (craft, *(self._answers(t, craft, noise) for t in row.targets))

    def _answers(self, name: str, craft: Craft, once: bool) -> Answers:
        model = self.study.targets.get(name) or self.study.sources[name]
        return Answers(model, craft, self.study.data, draws=1 if once else self._draws(model), seed=self.study.seed)

    def _draws(self, model: Model) -> int:
        return self.study.draws if model.stochastic else 1

    def _score_row(self, row: _Row) -> None:
        key = f"{row.source}|{row.attack}|{row.targets[0] if row.own else '*'}"
        try:
            crafted = [self.store.craft(c) for c in row.crafts]
            home = np.concatenate([c.home.numpy() for c in crafted])
            if row.source:
                self.found.strength[key] = _strength(torch.cat([c.x for c in crafted]), self.split.x)
        except SetupError:
            raise
        except AccessError as error:
            self.found.reasons[key] = str(error)
            return
        except Exception as error:
            self.found.fail(key, error)
            return
        if row.own:
            target, source = row.targets[0], row.crafts[0].source
            self.found.own_home[row.source, row.attack, target] = home
            if source is not None:
                self.found.own_clean[row.source, target] = self._answers_to_clean(source)[0]
        elif row.source:
            self.found.home[row.source, row.attack] = home
        for name in row.targets:
            try:
                parts = [self._answers(name, craft, row.source == "").load(self.store) for craft in row.crafts]
            except SetupError:
                raise
            except Exception as error:
                self.found.fail(f"{row.source}|{row.attack}|{name}", error)
                continue
            labels = self.found.labels[row.source, row.attack, name] = np.concatenate(parts, axis=1)
            if (labels < 0).any():
                k = int((labels < 0).any(0).sum())
                self.found.fail(
                    f"{row.source}|{row.attack}|{name}", ModelRefused(f"no finite answer on {k} of {labels.shape[1]} images")
                )

    # ------------------------------------------------------------ diagnose

    def diagnose(self) -> dict[str, list[Symptom]]:
        """The signs that need a live model, on each target as it stands and through its relax."""
        wanted = {name: examination(self.study, name) for name in self.study.targets}
        every = [t.diagnosis for tests in wanted.values() for t in tests]
        self._fill("diagnosing", {d: (d,) for d in every if not self.store.has("symptom", d.inputs())})
        symptoms: dict[str, list[Symptom]] = {}
        for i, (name, tests) in enumerate(wanted.items()):
            self.progress("diagnosing", i, len(wanted))
            symptoms[name] = [found_by(t, self._diagnosed(name, t.diagnosis)) for t in tests]
        self.progress("diagnosing", len(wanted), len(wanted))
        return symptoms

    def _diagnosed(self, target: str, diagnosis: Diagnosis) -> Symptom:
        """The symptom; a test that raises is noted as failed, and proves nothing."""
        try:
            return diagnosis.load(self.store)
        except SetupError:
            raise
        except Exception as error:
            sign = sign_of(diagnosis.test)
            self.found.fail(f"{sign}|*|{target}", error)
            return Symptom(sign, type(diagnosis.test).__name__, "cap", "not_run", f"{type(error).__name__}: {error}")


def _needed(recipe: Any) -> list[Any]:
    """What must be in the store before this can be made without making it twice."""
    if isinstance(recipe, Craft):
        return trainable([recipe.source]) if recipe.source is not None else []
    return [*trainable([recipe]), *crafts_for(recipe.fit.loss)]


def _silent(what: str, done: int, total: int) -> None:
    pass


def _strength(x_adv: Tensor, x: Tensor) -> dict[str, float]:
    """How large the changes are: mean L2, largest Linf, and the share of pixels that the box stopped."""
    delta = (x_adv - x).flatten(1)
    changed = delta != 0
    at_the_wall = changed & ((x_adv.flatten(1) == 0) | (x_adv.flatten(1) == 1))
    share = float(at_the_wall.sum()) / max(int(changed.sum()), 1)
    return {"l2": float(L2(0.0).size(delta).mean()), "linf": float(Linf(0.0).size(delta).max()), "saturated": share}


def _digest(x: Tensor) -> bytes:
    return hashlib.sha256(x.contiguous().numpy().tobytes()).digest()


def _complaint(model: Model, store: FileStore, few: Split, classes: int) -> str:
    """Why a model cannot be measured, or nothing."""
    said = io.StringIO()
    shape = (len(few), classes)
    try:
        with contextlib.redirect_stdout(said), torch.no_grad():
            live = store.live(model)
            before = _weights(live)
            logits = live(few.x.to(device.current()))
    except SetupError:
        raise
    except (Exception, SystemExit) as error:
        return f"cannot answer inputs of shape {tuple(few.x.shape)} ({type(error).__name__}: {error}). Check it, and its data."
    if not isinstance(logits, Tensor) or tuple(logits.shape) != shape:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        return f"must give logits of shape {shape}, got {got}. Check its output."
    if not logits.is_floating_point():
        return f"must give logits as floating-point numbers, got {logits.dtype}. Return what stands before the argmax."
    if not bool(torch.isfinite(logits).all()):
        return "gives NaN or infinite logits on clean images. Check its weights."
    if float(logits.abs().max()) > LARGEST_LOGIT:
        return f"must give logits up to {LARGEST_LOGIT:.0e}, got {float(logits.abs().max()):.0e}. Check its last layer."
    if _weights(live) != before:
        return "changes its own weights or buffers when asked. Put it in eval mode."
    if said.getvalue():
        return f"prints when asked ({said.getvalue().strip()[:40]!r}). Take the print out: output is read by programs."
    return ""


def _weights(live: Classifier) -> list[tuple[int, float]]:
    if not isinstance(live, nn.Module):
        return []
    return [(t._version, float(t.detach().double().sum())) for t in (*live.parameters(), *live.buffers())]


def _provenance(precision: str, looks: str) -> dict[str, str]:
    import platform

    import firedoor

    return {
        "firedoor": firedoor.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "device": str(device.current()),
        "precision": precision,
    } | ({"looks at held-out pairs": looks} if looks else {})
