"""``python -m dpo_core``: see ``dpo_core.cli``."""

import sys

from dpo_core.cli import main

sys.exit(main())
