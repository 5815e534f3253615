"""`python -m lib.report`."""

import sys

from lib.report.pages import main

sys.exit(main())
