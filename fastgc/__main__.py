"""``python -m fastgc``."""

import sys

from fastgc.cli import main

sys.exit(main())
