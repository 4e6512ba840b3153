"""Run the command as `python -m bvsa_core.cli`, which is what torchrun starts."""

import sys

from bvsa_core.cli import main

sys.exit(main())
