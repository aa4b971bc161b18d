"""What sharing training images does for an attacker: python examples/training_sets_table.py OUT STORE [PAGE]

OUT is the folder of a run of studies/training_sets.toml, STORE its store. Prints one row per target and training set of the sources,
their seeds averaged image by image, or renews the block `training sets` of a page. At a matched home rate each source takes the
number of steps whose home rate on development images comes closest to the lowest that any of them has there at all ten.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from pages import renew, run

from firedoor import stats, study
from firedoor.craft import Craft, predict
from firedoor.matrix import Matrix, open_matrix
from firedoor.stats import Estimate
from firedoor.store import FileStore

SHOWN = {
    "both": "A and B",
    "a": "A",
    "b": "B, disjoint",
    "tenth_of_a": "a tenth of A",
    "tenth_of_b": "a tenth of B",
    "other": "other photographs (ImageNet)",
}
ALL = "MI_10"
COLUMNS = ("target trained on", "source trained on", "clean, source", "home", "transfer", "above noise", "same mistake")
MATCHED = ("steps", "home, matched", "transfer, matched")


def at_home(plan: study.Study, store: FileStore) -> dict[tuple[str, str], float]:
    """Home rate on the development images, by source and attack."""
    split = plan.data.split("development")
    found = {}
    for name, source in plan.sources.items():
        live = store.live(source)
        right = predict(live, split.x, split.ids, plan.seed) == split.y
        for attack, recipe in plan.attacks.items():
            if attack.startswith("MI_"):
                crafted = store.craft(Craft(source, recipe, plan.data, "development", 0, len(split), plan.seed))
                wrong = predict(live, crafted.x, split.ids, plan.seed) != split.y
                found[name, attack] = float(wrong[right].float().mean())
    return found


def matched(home: dict[tuple[str, str], float]) -> dict[str, str]:
    """The attack of each source whose home rate is closest to the lowest that a source has at all steps."""
    sources = sorted({s for s, _ in home})
    wanted = min(home[s, ALL] for s in sources)
    return {s: min((a for t, a in home if t == s), key=lambda a: abs(home[s, a] - wanted)) for s in sources}


def mean_of(matrix: Matrix, target: str, cells: list[tuple[str, str]]) -> Estimate:
    """Transfer rate, each image averaged over the cells."""
    wrong = np.mean([1 - matrix.right(s, a, target) for s, a in cells], axis=0)
    return stats.mean(wrong, matrix.clean(target))


def above_noise(matrix: Matrix, target: str, cells: list[tuple[str, str]]) -> Estimate:
    """The same, less what sign noise does to the image."""
    wrong = np.mean([1 - matrix.right(s, a, target) for s, a in cells], axis=0)
    noise = np.mean([1 - r for r in matrix.noise(target)], axis=0)
    found = stats.mean((1 + wrong - noise) / 2, matrix.clean(target))
    return Estimate(2 * found.value - 1, 2 * found.low - 1, 2 * found.high - 1, found.n)


def average(values: list[float]) -> str:
    return f"{100 * np.mean(values):.1f}"


def shown(e: Estimate) -> str:
    return f"{100 * e.value:.1f} ({100 * e.low:.0f} to {100 * e.high:.0f})"


def rows(plan: study.Study, matrix: Matrix, home: dict[tuple[str, str], float]) -> list[tuple[str, ...]]:
    steps = matched(home)
    found = []
    for target in plan.targets:
        for kind, text in SHOWN.items():
            some = [s for s in plan.sources if s.rpartition("_")[0] == kind or s == kind]
            if not some:
                continue
            cells = [(s, ALL) for s in some]
            own = [(s, steps[s]) for s in some]
            rate = lambda of, pairs, t=target: average([of(matrix, s, a, t).value for s, a in pairs])  # noqa: E731
            clean = average([float(np.mean(matrix.source_clean(s))) for s in some])
            found.append(
                (
                    "A" if target == "half" else "A and B",
                    text,
                    clean,
                    rate(stats.home_rate, cells),
                    shown(mean_of(matrix, target, cells)),
                    shown(above_noise(matrix, target, cells)),
                    rate(stats.same_mistake_rate, cells),
                    ", ".join(a.removeprefix("MI_") for _, a in own),
                    rate(stats.home_rate, own),
                    shown(mean_of(matrix, target, own)),
                )
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of a run of studies/training_sets.toml")
    parser.add_argument("store", help="its store")
    parser.add_argument("page", nargs="?", type=Path, help="page whose block to renew")
    asked = parser.parse_args()
    out, store = asked.out, FileStore(asked.store)
    plan, matrix = study.load(out / "study.toml", trust=True), open_matrix(out / "matrix.nc")
    head = (*COLUMNS, *MATCHED)
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(row) + " |" for row in rows(plan, matrix, at_home(plan, store))]
    accuracy = "; ".join(f"{t}: {shown(stats.clean_accuracy(matrix, t))}" for t in plan.targets)
    said = f"All in %, with 95 % intervals over {len(matrix.y)} images, on these checkpoints. Clean accuracy of the targets: {accuracy}."
    text = "\n".join([*lines, "", said]) + "\n"
    if asked.page:
        renew(asked.page, "training sets", text)
    else:
        print(text, end="")


if __name__ == "__main__":
    run(main)
