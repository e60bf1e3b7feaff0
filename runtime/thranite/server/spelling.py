"""Errors that name fields as the client spelt them, where its request was made into another one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from thranite.errors import InvalidRequest


@contextmanager
def spelt(names: Mapping[str, str]) -> Iterator[None]:
    """`names`: a pattern of our field → the client's, which also stands for what lies within.

    The error stays the same object: its class decides the status. A message that begins with the field says the
    client's name, too.
    """
    try:
        yield
    except InvalidRequest as error:
        for ours, theirs in names.items():
            pattern = re.compile(rf"{ours}(?!\w)")
            if error.param is not None and pattern.match(error.param):
                error.param = pattern.sub(theirs, error.param, count=1)
                if pattern.match(error.message):
                    error.message = pattern.sub(theirs, error.message, count=1)
                break
        raise
