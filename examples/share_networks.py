"""The trained networks of a study, to be shared: python examples/share_networks.py STUDY --store STORE --to FOLDER

FOLDER becomes a store that holds every network that a training of the study makes, and nothing else: no examples, no answers. Whoever
copies it and gives the copy as --store to `firedoor run` trains nothing again; each file is named by what it is a function of, and is
checked when it is read. Networks that the store does not have yet are named, and left out (exit code 1). `--same-defence` adds those of rung
S3, the targets' recipes with another seed, as far as the store has them: a run trains them only for targets that still stand.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from pages import run

from firedoor import study as studies
from firedoor.costs import trainable
from firedoor.store import FileStore


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--store", required=True)
    parser.add_argument("--to", required=True)
    parser.add_argument("--same-defence", action="store_true")
    asked = parser.parse_args()
    study, store, to = studies.load(asked.study), FileStore(asked.store), FileStore(asked.to)
    recipes = trainable([*study.sources.values(), *study.targets.values()])
    twins = trainable(studies.other_seed(m) for m in study.targets.values()) if asked.same_defence else []
    twins = [t for t in twins if t not in recipes and store.has("model", t.inputs())]
    missing = []
    for recipe in [*recipes, *twins]:
        found = store.peek("model", recipe.inputs())
        if found is None:
            missing.append(f"{type(recipe.architecture).__name__} by {type(recipe.fit.loss).__name__}, seed {recipe.seed}")
        else:
            to.get("model", recipe.inputs(), lambda found=found: found)  # type: ignore[misc]
    print(f"{len(recipes) - len(missing)} of {len(recipes)} networks are in {asked.to}")
    if asked.same_defence:
        print(f"and {len(twins)} more of rung S3")
    for what in missing:
        print(f"not trained yet: {what}", file=sys.stderr)
    return 1 if missing else 0


if __name__ == "__main__":
    run(main)
