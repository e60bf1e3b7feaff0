"""`python -m thranite_operator` is `thranite-operator`."""

from __future__ import annotations

import sys

from thranite_operator.main import main

sys.exit(main())
