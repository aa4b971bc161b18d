"""`python -m firedoor.validation [digits | shapes] [PAGE]` judges the audit by planted failures and honest models.

The table goes into the block `validation` of PAGE."""

import sys
from pathlib import Path

from firedoor.errors import SpecError
from firedoor.validation.everything import validate

if __name__ == "__main__":
    data, *page = (*sys.argv[1:], "digits")[: max(1, len(sys.argv) - 1)]
    try:
        sys.exit(validate(data, page=Path(page[0]) if page else None))
    except SpecError as error:
        sys.exit(f"{error}")
