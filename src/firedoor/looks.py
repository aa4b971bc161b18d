"""How often held-out pairs were looked at: a defence that is chosen by what it was to be judged on has been judged on nothing."""

from __future__ import annotations

import json
import time

from firedoor.errors import StoreError
from firedoor.spec import fingerprint
from firedoor.store import FileStore
from firedoor.study import Study

__all__ = ["looked"]


def looked(study: Study, store: FileStore) -> str:
    """Write down that the targets of `study` are scored on held-out pairs of its evaluation images, and say how many models were so far.

    One line per model and data set in the store, looks.jsonl: the same target under another threat or scale of the same images is no
    second look. "" where the study holds nothing out. What other stores saw is not known here. Errors: StoreError.
    """
    tested = [n for n in study.attacks if not study.is_null(n)]
    if not study.seen or {*study.sources, *tested} <= set(study.seen):
        return ""
    page, images = store.root / "looks.jsonl", study.data.digest()
    try:
        known = [json.loads(line) for line in page.read_text(encoding="utf-8").splitlines()] if page.exists() else []
        found = {line["model"] for line in known if line["images"] == images}
        with page.open("a", encoding="utf-8") as file:
            for name, model in study.targets.items():
                key = fingerprint(model)
                if key not in found:
                    found.add(key)
                    line = {"time": round(time.time()), "images": images, "name": name, "model": key}
                    file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise StoreError(f"{page} cannot be read or written ({error.strerror}). Free space, or give another --store.") from None
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{page} is damaged ({type(error).__name__}). Mend or remove the last line; do not lose the others."
        ) from None
    return f"{len(found)} models in this store, {len(study.targets)} of them here"
