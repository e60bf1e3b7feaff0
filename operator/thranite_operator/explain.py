"""Say why an InferenceService has the replicas it has.

The conditions and the last five decisions that changed replicas come from its status. More, and what is seen now, comes
from the running operator, which is asked through the API server (that needs `get` on pods/proxy in its namespace) or at
--operator-url.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from thranite_operator import credentials, names
from thranite_operator.autoscaling.conditions import TYPES
from thranite_operator.kinds import INFERENCE_SERVICE, POD, Object
from thranite_operator.kube import KubeClient, KubeError
from thranite_operator.settings import Settings

PORT = Settings.port
TIMEOUT = aiohttp.ClientTimeout(total=10)


class NoAnswer(Exception):
    """The running operator cannot be asked."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("service", metavar="NAMESPACE/NAME", help="the InferenceService")
    parser.add_argument(
        "--operator-namespace", default=os.environ.get("POD_NAMESPACE", Settings.namespace), metavar="NAME",
        help="where the operator runs (default: %(default)s) [POD_NAMESPACE]",
    )  # fmt: skip
    parser.add_argument("--operator-url", metavar="URL", help="its port of probes and metrics, where it is at hand")
    parser.add_argument("--trace", metavar="FILE", help="write what its last decisions were made from, for simulate")


def run(args: argparse.Namespace) -> int:
    namespace, slash, name = args.service.partition("/")
    if not (namespace and slash and name):
        print(f"thranite-operator explain: {args.service!r} is not NAMESPACE/NAME", file=sys.stderr)
        return 2
    try:
        return asyncio.run(_explain(args, namespace, name))
    except (KubeError, OSError) as error:
        print(f"thranite-operator explain: {error}", file=sys.stderr)
        return 1


async def _explain(args: argparse.Namespace, namespace: str, name: str) -> int:
    async with KubeClient(credentials.connection, "thranite-operator-explain") as client:
        obj = await client.get(INFERENCE_SERVICE, namespace, name)
        if obj is None:
            print(f"thranite-operator explain: there is no InferenceService {namespace}/{name}", file=sys.stderr)
            return 1
        for line in of_status(obj):
            print(line)
        if obj["spec"].get("autoscaling", {}).get("mode") != "Internal":
            return 0
        try:
            for line in of_operator(await _ask(client, args, f"{namespace}/{name}")):
                print(line)
            if args.trace:
                lines = (await _ask(client, args, f"{namespace}/{name}/trace"))["lines"]
                Path(args.trace).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
                print(f"\n{len(lines)} moments in {args.trace}")
        except NoAnswer as error:
            print(f"\nThe running operator knows more, but {error}")
            return 1 if args.trace else 0
    return 0


async def _ask(client: KubeClient, args: argparse.Namespace, page: str) -> Object:
    """Of several operators one leads, and the others know nothing."""
    if args.operator_url:
        return await _fetch(f"{args.operator_url.rstrip('/')}/autoscaling/{page}")
    selector, problem = f"{names.APP}=thranite-operator", "there is none"
    try:
        for pod in await client.items(POD, args.operator_namespace, labelSelector=selector):
            path = f"{POD.path(args.operator_namespace, pod['metadata']['name'])}:{PORT}/proxy/autoscaling/{page}"
            try:
                return await client.read(path)
            except KubeError as error:
                problem = str(error)
    except KubeError as error:
        problem = str(error)
    raise NoAnswer(f"it cannot be asked in namespace {args.operator_namespace}: {problem}".rstrip())


async def _fetch(url: str) -> Object:
    try:
        async with aiohttp.ClientSession(timeout=TIMEOUT) as session, session.get(url) as answer:
            if answer.status != 200:
                raise NoAnswer(f"{url} answers {answer.status}: {(await answer.text()).strip()}")
            found: Object = await answer.json()
            return found
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise NoAnswer(f"{url} does not answer: {error or type(error).__name__}") from error


def of_status(obj: Object) -> Iterator[str]:
    meta, spec, status = obj["metadata"], obj["spec"], obj.get("status", {})
    wanted, section = spec.get("autoscaling"), status.get("autoscaling", {})
    replicas = f"{spec['replicas']} replicas, {status.get('readyReplicas', 0)} ready"
    mode = wanted["mode"] if wanted else "no autoscaling"
    limits = f", {wanted['minReplicas']} to {wanted['maxReplicas']}" if mode == "Internal" else ""
    yield f"{meta['namespace']}/{meta['name']}: {mode}{limits}; {replicas}"
    for item in status.get("conditions", ()):
        if item["type"] in TYPES:
            yield f"  {item['type']}={item['status']} {item['reason']}: {item['message']}"
    yield from _decisions(section.get("decisions", ()))


def _decisions(found: Any) -> Iterator[str]:
    if found:
        yield "\nLast changes of replicas"
    for item in found:
        yield f"  {item['time']}  {item['reason']:20}  {item['message']}"


def of_operator(answer: Object) -> Iterator[str]:
    if answer["metrics"]:
        yield f"\nNow: {answer['message']}"
    for item in answer["metrics"]:
        average = "unknown" if item["average"] is None else f"{item['average']:.3g}"
        asks = "" if item["ask"] is None else f", asks for {item['ask']}"
        held = f", held: {item['held']}" if item["held"] else ""
        pods = f"{item['reporting']} pods report, {item['missing']} do not"
        yield f"  {item['reason']:20}  {average} of {item['target']:.3g}{asks}{held}; {pods}"
    if answer["serviceRate"] is not None:
        yield f"  a busy replica finishes {answer['serviceRate']:.3g} requests per second"
    if answer["journal"]:
        yield "\nDecisions of the running operator"
    for item in reversed(answer["journal"]):
        stamp = datetime.fromtimestamp(item["time"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        failure = f"; not written: {item['failure']}" if item["failure"] else ""
        yield f"  {stamp}  {item['reason']:20}  {item['message']}{failure}"
