"""``python -m mpi_runner``."""

import sys

from mpi_runner.cli import main

sys.exit(main())
