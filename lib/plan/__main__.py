"""`python -m lib.plan`."""

import sys

from lib.plan.fit import main

sys.exit(main())
