"""`python -m eggs_ptp` is the command `eggs`."""

import sys

from eggs_ptp.cli.main import main

sys.exit(main())
