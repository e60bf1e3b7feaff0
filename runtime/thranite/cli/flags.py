"""The command line of a config dataclass: one flag and one environment variable a field, made from the field itself.

    max_model_len: int | None  →  --max-model-len INT and THRANITE_MAX_MODEL_LEN
    overlap: bool              →  --overlap / --no-overlap
    names: tuple[str, ...]     →  --names, repeatable; commas in the environment

The command line wins over the environment, the environment over the field's default. A field without a default is
positional. Help is the field's `help` metadata.
"""

from __future__ import annotations

import argparse
import re
import sys
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from thranite.config import flag
from thranite.errors import ConfigError
from thranite.loader.device_memory import parse_bytes

Config = TypeVar("Config")
PREFIX = "THRANITE_"
TRUE, FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
# Kubernetes sets NAME_PORT to this form in every pod beside a Service called NAME.
SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")


def variable(name: str) -> str:
    """max_model_len → THRANITE_MAX_MODEL_LEN."""
    return PREFIX + name.upper()


def add_flags(parser: argparse.ArgumentParser, cls: type, title: str, exclude: Collection[str] = ()) -> None:
    """Declare every field of `cls` but those in `exclude`.

    Absent flags leave no attribute, so that `build` can ask the environment.
    """
    group = parser.add_argument_group(title)
    hints = get_type_hints(cls)
    for item in (item for item in fields(cls) if item.name not in exclude):
        _add_field(parser, group, item, hints[item.name])


def build(cls: type[Config], args: argparse.Namespace, environ: Mapping[str, str]) -> Config:
    """The config from parsed arguments, then the environment, then defaults. Raises ConfigError."""
    hints = get_type_hints(cls)
    values = {}
    for item in fields(cls):  # type: ignore[arg-type]  # any dataclass
        given = getattr(args, item.name, None)
        if given is not None:
            values[item.name] = tuple(given) if isinstance(given, list) else given
        elif (text := _read(environ, item.name)) is not None:
            values[item.name] = _from_environment(item.name, hints[item.name], text)
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(f"{item.name.upper()} is missing", f"pass it, or set {variable(item.name)}")
    return cls(**values)


def _add_field(parser: argparse.ArgumentParser, group: argparse._ArgumentGroup, item: Field[Any], hint: object) -> None:
    text = f"{_help(item)} [{variable(item.name)}]".replace("%", "%%")
    kind = _plain(hint)
    if item.default is MISSING and item.default_factory is MISSING:
        parser.add_argument(item.name, metavar=item.name.upper(), nargs="?", help=text)
        return
    options: dict[str, Any] = {"dest": item.name, "default": argparse.SUPPRESS, "help": text}
    if kind is bool:
        group.add_argument(flag(item.name), action=argparse.BooleanOptionalAction, **options)
    elif get_origin(kind) is tuple:
        group.add_argument(flag(item.name), action="append", metavar="TEXT", **options)
    elif get_origin(kind) is Literal:
        group.add_argument(flag(item.name), choices=get_args(kind), **options)
    else:
        group.add_argument(
            flag(item.name), type=_argument(item.name, kind), metavar=_metavar(item.name, kind), **options
        )


def _help(item: Field[Any]) -> str:
    text = str(item.metadata.get("help", ""))
    shown = item.default not in (None, MISSING, "", ()) and "default" not in text
    if not shown:
        return text
    default = (
        {True: "on", False: "off"}.get(item.default, item.default) if isinstance(item.default, bool) else item.default
    )
    return f"{text} (default: {default})"


def _plain(hint: object) -> Any:
    """`int | None` → int."""
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not type(None)]
        if len(kinds) != 1:
            raise TypeError(f"a flag takes one type, not {hint}")
        return kinds[0]
    return hint


def _metavar(name: str, kind: Any) -> str:
    if kind is int:
        return "BYTES" if name.endswith("_bytes") else "INT"
    return "NUMBER" if kind is float else "TEXT"


def _parser(name: str, kind: Any) -> Callable[[str], Any]:
    """Text → value; raises ValueError or ConfigError."""
    if kind is int and name.endswith("_bytes"):
        return parse_bytes
    if kind in (int, float, str):
        return kind  # type: ignore[no-any-return]
    raise TypeError(f"{name}: no flag can be made for {kind}")


def _argument(name: str, kind: Any) -> Callable[[str], Any]:
    """As `_parser`, with argparse's error."""
    parse = _parser(name, kind)

    def read(text: str) -> Any:
        try:
            return parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error.message)) from error

    read.__name__ = "number" if kind is float else kind.__name__  # argparse names it: "invalid int value"
    return read


def _read(environ: Mapping[str, str], name: str) -> str | None:
    """The variable's text; None if it is unset or empty, or is a Service's address that Kubernetes put there."""
    text = environ.get(variable(name), "").strip()
    if SERVICE_LINK.match(text) and name.endswith("port"):
        print(
            f"thranite: {variable(name)}={text} names a Kubernetes Service, not an option; it is not read "
            "(enableServiceLinks: false keeps it out of the pod)",
            file=sys.stderr,
        )
        return None
    return text or None


def _from_environment(name: str, hint: object, text: str) -> Any:
    kind = _plain(hint)
    if kind is bool:
        if text.lower() not in TRUE + FALSE:
            raise ConfigError(f"{variable(name)}={text!r}: write one of {', '.join(TRUE + FALSE)}")
        return text.lower() in TRUE
    if get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise ConfigError(f"{variable(name)}={text!r}: write one of {', '.join(get_args(kind))}")
        return text
    try:
        return _parser(name, kind)(text)
    except (ValueError, ConfigError) as error:
        what = {int: "a whole number", float: "a number"}.get(kind, "text")
        raise ConfigError(f"{variable(name)}={text!r} is not {what}") from error
