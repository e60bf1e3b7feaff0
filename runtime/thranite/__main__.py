"""`python -m thranite`: the command line."""

import sys

from thranite.cli.main import main

sys.exit(main())
