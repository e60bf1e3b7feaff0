"""Write docs/api-reference.md from the CRD: `python dev/api_reference.py`. A test holds the two equal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
CRD = ROOT / "crds" / "thranite.dev_inferenceservices.yaml"
PAGE = ROOT / "docs" / "api-reference.md"
INTRODUCTION = """\
# InferenceService, v1alpha1

Made from `crds/thranite.dev_inferenceservices.yaml` by `dev/api_reference.py`; `kubectl explain infs.spec` says the
same. Fields are added within v1alpha1; none is removed and none changes its meaning. How the operator acts on them is
in [operator.md](operator.md).
"""


def page() -> str:
    schema = yaml.safe_load(CRD.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    spec, status = schema["properties"]["spec"], schema["properties"]["status"]
    parts = [INTRODUCTION]
    for name, section in spec["properties"].items():
        parts.append(f"## spec.{name}\n\n{section['description']}\n")
        rows = list(_rows(section, ""))
        if rows:
            parts.append(_table(rows))
        elif "default" in section:
            parts.append(f"Type: {_type(section)}. Default: `{section['default']}`.\n")
    parts.append("## Rules\n\nThe API server refuses what breaks one of these.\n")
    parts.append("\n".join(f"- {message}" for message in sorted(set(_messages(schema)))) + "\n")
    parts.append(f"## status\n\n{status['description']}\n")
    parts.append(_table(list(_rows(status, ""))))
    return "\n".join(parts)


def _rows(node: dict[str, Any], path: str) -> Iterator[tuple[str, str, str, str]]:
    """Path, type, default, description."""
    for name, child in node.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        required = " (required)" if name in node.get("required", []) else ""
        shown = child.get("default")
        default = (
            ""
            if shown is None or isinstance(shown, dict)
            else f"`{str(shown).lower() if isinstance(shown, bool) else shown}`"
        )
        yield here, _type(child) + required, default, child["description"]
        yield from _rows(child, here)
        if "items" in child:
            yield from _rows(child["items"], f"{here}[]")


def _type(node: dict[str, Any]) -> str:
    if "enum" in node:
        return " or ".join(node["enum"])
    if node.get("x-kubernetes-int-or-string"):
        return "integer or string"
    if node.get("type") == "array":
        return f"list of {node['items']['type']}s"
    if node.get("additionalProperties"):
        return "map"
    limits = [f"{word} {node[key]}" for key, word in (("minimum", "from"), ("maximum", "to")) if key in node]
    return " ".join([node.get("type", "any"), *limits])


def _table(rows: list[tuple[str, str, str, str]]) -> str:
    lines = ["| Field | Type | Default | |", "|---|---|---|---|"]
    for path, kind, default, text in rows:
        lines.append(f"| `{path}` | {kind} | {default} | {text.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def _messages(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        yield from (rule["message"] for rule in node.get("x-kubernetes-validations", []))
        for child in node.values():
            yield from _messages(child)


if __name__ == "__main__":
    PAGE.write_text(page())
