from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from thranite.known_ids import all_known


@pytest.mark.parametrize("ids", [[0], [5, 0, 9], (9,) * 3000, range(10), np.arange(10)])
def test_ids_of_the_vocabulary(ids: Any) -> None:
    assert all_known(ids, 10)


@pytest.mark.parametrize("ids", [[], [10], [1, -1], [2**32], [2**40, 1], [1.0], ["1"], [None], b"\x01\0\0\0", "11"])
def test_what_the_caller_must_look_at(ids: Any) -> None:
    assert not all_known(ids, 10)
