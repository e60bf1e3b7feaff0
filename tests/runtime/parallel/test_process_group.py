"""A rank's communicator while it joins, and once another is lost: over gloo, alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from thranite.parallel.process_group import GroupCommunicator, join


def test_what_can_be_aborted_is_known_before_anybody_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    agree = GroupCommunicator.least

    def least(self: GroupCommunicator, values: list[int]) -> list[int]:
        seen.append("least")
        return agree(self, values)

    monkeypatch.setattr(GroupCommunicator, "least", least)
    communicator = join(0, 1, str(tmp_path / "store"), torch.device("cpu"), met=lambda _: seen.append("met"))
    assert seen == ["met", "least"]
    communicator.close()


@pytest.mark.parametrize("part", [torch.ones(2, 4), None])
def test_rows_of_which_ranks_keep_their_own_are_summed(
    part: Tensor | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    communicator = join(0, 1, str(tmp_path / "store"), torch.device("cpu"))
    stream, rows = torch.arange(20.0).view(5, 4), torch.tensor([3, 0])
    assert torch.equal(communicator.whole_rows(stream, rows), stream[rows])
    peers: Any = SimpleNamespace(own_part=lambda *_: part, all_reduce=lambda x: bool(x.add_(1.0).any()))
    communicator.peers = peers
    assert torch.equal(communicator.whole_rows(stream, rows), stream[rows] if part is None else torch.full((2, 4), 2.0))
    communicator.close()


def test_an_agreement_that_was_broken_off_is_none(tmp_path: Path) -> None:
    """A collective of ours returns then without sense, and a plan made of it would be blamed."""
    communicator = join(0, 1, str(tmp_path / "store"), torch.device("cpu"))
    assert communicator.least([3, -1]) == [3, -1]
    communicator.abort()
    with pytest.raises(RuntimeError, match="broken off"):
        communicator.least([3])
    communicator.close()
