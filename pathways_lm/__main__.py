"""`python -m pathways_lm` is the console script `pathways-lm`."""

import sys

from pathways_lm.cli import main

sys.exit(main())
