"""`python -m firedoor.validation [PAGE]` judges the audit by planted failures and honest models."""

import sys
from pathlib import Path

from firedoor.validation.everything import validate

if __name__ == "__main__":
    sys.exit(validate(page=Path(sys.argv[1]) if len(sys.argv) > 1 else None))
