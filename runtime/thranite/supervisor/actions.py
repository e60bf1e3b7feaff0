"""What the supervisor is to do, as the lifecycle decides it: plain data."""

from __future__ import annotations

from dataclasses import dataclass

from thranite.ipc import control


@dataclass(frozen=True, slots=True)
class Order:
    """A message for one child."""

    child: str
    message: control.ToChild


@dataclass(frozen=True, slots=True)
class Replace:
    """Start a server process in place of one that ended."""

    child: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End a child at once; its end is then noted as any other."""

    child: str


@dataclass(frozen=True, slots=True)
class Launch:
    """Start the engine of an added model."""

    child: str
    model: control.AddModel


@dataclass(frozen=True, slots=True)
class End:
    """Let an added model's engine end, and see that it does. `hung`: it is to print its stacks first."""

    child: str
    hung: bool = False


@dataclass(frozen=True, slots=True)
class Forget:
    """Nothing is left of an added model."""

    child: str
    model: str


Action = Order | Replace | Kill | Launch | End | Forget
