"""A model hub for pods: `python tests/support/pod_hub.py PORT`. Only the standard library, as it runs in any image.

test/tiny      a complete small model
test/unknown   an architecture that no runtime knows
test/large     a model that fits no single GPU
test/gated     test/tiny for those who send the token `open-sesame`
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "open-sesame"
TINY = Path(__file__).parents[1] / "e2e" / "tiny-model" / "config.json"


def models() -> dict[str, dict[str, bytes]]:
    tiny = json.loads(TINY.read_text())
    large = {**tiny, "hidden_size": 16384, "intermediate_size": 65536, "num_hidden_layers": 200}
    large |= {"num_attention_heads": 128, "num_key_value_heads": 128}
    configs = {"tiny": tiny, "unknown": {**tiny, "architectures": ["MambaForCausalLM"]}, "large": large, "gated": tiny}
    return {
        f"test/{name}": {"config.json": _json(body), "model.safetensors": _weights()} for name, body in configs.items()
    }


def _weights() -> bytes:
    header = _json({"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    return struct.pack("<Q", len(header)) + header + bytes(4)


def _json(body: Any) -> bytes:
    return json.dumps(body).encode()


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    models = models()

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        match = re.fullmatch(r"/api/models/(test/\w+)(?:/(?:revision|tree)/\w+)?", path)
        file = re.fullmatch(r"/(test/\w+)/resolve/\w+/([\w.]+)", path)
        name = match[1] if match else file[1] if file else ""
        if name not in self.models:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif name == "test/gated" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to it is restricted"})
        elif match:
            body = self._tree(name) if "/tree/" in path else self._info(name)
            self._send(200, body, {"Content-Type": "application/json"})
        elif file and file[2] in self.models[name]:
            data = self.models[name][file[2]]
            self._send(200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT})
        else:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    def _info(self, name: str) -> bytes:
        siblings = [{"rfilename": file, "size": len(data)} for file, data in self.models[name].items()]
        return _json({"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": []})

    def _tree(self, name: str) -> bytes:
        files = self.models[name].items()
        return _json([{"type": "file", "path": file, "size": len(data), "oid": COMMIT} for file, data in files])

    def _send(self, code: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("", int(sys.argv[1])), Hub).serve_forever()
