"""From the engine's messages to frames, each within the limit."""

from __future__ import annotations

from thranite.ipc import control
from thranite.ipc.framing import HEADER, MAX_FRAME, frame
from thranite.ipc.messages import Accepted, Fatal, Hello, Refused, Stats, encode
from thranite.ipc.step_frame import Row, pack_step
from thranite.request import FinishReason, SequenceDelta

StepRows = tuple[Row, ...]  # one step's deltas for one connection
ToServer = Hello | Accepted | Refused | Stats | Fatal | StepRows


def frames_of(message: ToServer | control.FromChild, limit: int = MAX_FRAME) -> list[bytes]:
    """Encode one message. Only a step's rows can exceed the limit: they are then sent in several frames."""
    if isinstance(message, tuple):
        return _step_frames(message, limit)
    if isinstance(message, Hello | Accepted | Refused | Stats | Fatal):
        return [frame(encode(message), limit)]
    return [frame(control.encode(message), limit)]


def _step_frames(rows: StepRows, limit: int) -> list[bytes]:
    payload = encode(pack_step(rows))
    if len(payload) <= limit:
        return [HEADER.pack(len(payload)) + payload]
    if len(rows) == 1:
        return _step_frames((_oversized(rows[0], len(payload), limit),), limit)
    half = len(rows) // 2
    return _step_frames(rows[:half], limit) + _step_frames(rows[half:], limit)


def _oversized(row: Row, size: int, limit: int) -> Row:
    handle, delta = row
    error = f"the step's logprobs take {size} bytes; a message may have {limit}: ask for fewer"
    return handle, SequenceDelta(delta.request_id, delta.index, (), FinishReason.ERROR, error=error)
