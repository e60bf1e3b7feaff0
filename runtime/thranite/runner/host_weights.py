"""A model's weights in host memory, while their device's memory is given back."""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn


class HostWeights:
    """Made, it has emptied the storages of a model's tensors; `restore` fills them again, at new addresses.

    Tensors and their views stay as they are: only what they point to goes and comes. Host memory is pageable, since
    pinned memory would not be given back.
    """

    def __init__(self, model: nn.Module) -> None:
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage()
            for tensor in chain(model.parameters(), model.buffers())
        }
        self._kept = [(storage, torch.UntypedStorage(storage.nbytes())) for storage in storages.values()]
        for storage, host in self._kept:
            host.copy_(storage)
        for storage, _ in self._kept:  # only now: whatever failed before this lost nothing
            storage.resize_(0)

    def restore(self) -> None:
        while self._kept:
            storage, host = self._kept.pop()
            storage.resize_(host.nbytes())
            storage.copy_(host)
