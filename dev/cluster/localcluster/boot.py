"""Brings a cluster up, in the order that its parts need each other, and nodes off and on again."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import addons, images, namespaces, network, plan
from .api import Api, Object
from .components import Component, Program
from .controlplane import ControlPlane
from .errors import ClusterError
from .node import Node
from .paths import ClusterPaths
from .pki import Pki
from .plan import Options
from .shell import wait_until
from .tools import installed_tools

GPU = "nvidia.com/gpu"


class Cluster:
    """All parts of one cluster. `listeners` are sockets on the machine's loopback: the gate's and the fault proxy's."""

    def __init__(self, options: Options, paths: ClusterPaths, listeners: list[int]) -> None:
        self.options = options
        self.paths = paths
        self.tools = installed_tools()
        self.pki = Pki(paths.pki)
        self.nodes = [Node(node, options, paths, self.pki, self.tools) for node in options.node_plans()]
        self.components: dict[str, Component] = {}
        self.powered_off: set[str] = set()
        self._listeners = listeners
        self._control = ControlPlane(options, paths, self.pki, self.tools)

    def up(self, step: Callable[[str], None]) -> None:
        network.set_up_control()
        step("certificates")
        self.pki.make_all(self.options.node_plans())
        self._control.write_files()
        step("control plane")
        for program in [*self._control.programs(), *self._proxies()]:
            self._add(program)
        self._start("etcd", "kube-apiserver")
        with ThreadPoolExecutor(4) as pool:
            prepared = [pool.submit(self._write_images)]
            list(pool.map(self._boot_node, self.nodes))
            prepared[0].result()
            self._wait_for_api()
            step("nodes")
            self._start("kube-controller-manager", "kube-scheduler", "volumes", "gate", "faults")
            self._apply_addons()
            self._start("coredns")
            list(pool.map(self._start_kubelet, self.nodes))
        for node in self.nodes:
            self._wait_for_node(node.name)

    def _proxies(self) -> list[Program]:
        program = str(self.tools / "api-proxy")
        api = f"127.0.0.1:{plan.API_PORT}"
        gate, faults = self._listeners
        gate_flags = (f"--listen=fd:{gate}", f"--to={api}")
        outward = f"fd:{faults},{plan.CONTROL_IP}:{plan.FAULTS_PORT}"
        fault_flags = (f"--listen={outward}", f"--to=https://{api}", f"--pki={self.paths.pki}")
        control = f"--control={self.paths.faults_socket}"
        return [
            Program("gate", (program, "gate", *gate_flags), descriptors=(gate,)),
            Program("faults", (program, "faults", *fault_flags, control), descriptors=(faults,)),
        ]

    def _add(self, program: Program) -> None:
        self.components[program.name] = Component(program, self.paths)

    def _start(self, *names: str) -> None:
        for name in names:
            self.components[name].start()

    def _write_images(self) -> None:
        images.write_sandbox_image(self._archive("sandbox"), self.tools / "sandbox")
        images.write_dev_image(self._archive("dev"))

    def _archive(self, name: str) -> Path:
        return self.paths.images / f"{name}.tar"

    def _boot_node(self, node: Node) -> None:
        self._hold_namespaces(node)
        node.connect()
        node.write_files()
        for program in node.programs():
            self._add(program)
        self._start(f"{node.name}/containerd")

    def _hold_namespaces(self, node: Node) -> None:
        program = node.holder()
        self._add(program)
        holder = self.components[program.name]
        holder.start()
        self.paths.holder_pid(node.name).write_text(str(holder.pid))
        wait_until(
            lambda: _checked(holder) and namespaces.is_ready(self.paths, node.name),
            timeout=10,
            what=f"the namespaces of {node.name}",
            interval=0.02,
        )

    def _wait_for_containerd(self, node: Node) -> None:
        containerd = self.components[f"{node.name}/containerd"]
        wait_until(lambda: _checked(containerd) and node.containerd_answers(), 30, f"containerd of {node.name}")

    def _start_kubelet(self, node: Node) -> None:
        self._wait_for_containerd(node)
        for name in ("sandbox", "dev"):
            node.import_image(self._archive(name))
        self._start(f"{node.name}/kubelet", f"{node.name}/kube-proxy")
        if self.options.gpus:
            self._start(f"{node.name}/device-plugin")

    def _wait_for_api(self) -> None:
        api = self.admin()
        server, store = self.components["kube-apiserver"], self.components["etcd"]
        wait_until(lambda: _checked(server) and _checked(store) and api.ready(), 60, "the API server")

    def _apply_addons(self) -> None:
        api = self.admin()
        for item in addons.manifests():
            api.apply(item)

    def _wait_for_node(self, name: str) -> None:
        api = self.admin()
        kubelet = self.components[f"{name}/kubelet"]
        wait_until(lambda: _checked(kubelet) and self._is_ready(api, name), 60, f"{name} Ready")

    def _is_ready(self, api: Api, name: str) -> bool:
        try:
            found: list[Object] = api.call("GET", f"/api/v1/nodes?fieldSelector=metadata.name={name}")["items"]
        except (OSError, http.client.HTTPException):  # a slow answer is asked for again
            return False
        if not found:
            return False
        status = found[0]["status"]
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))
        gpus = status.get("allocatable", {}).get(GPU, "0")
        return ready and int(gpus) >= self.options.gpus

    def admin(self) -> Api:
        return Api(self.pki, "admin")

    def component(self, name: str) -> Component:
        if name not in self.components:
            raise ClusterError(f"no component {name!r}; there are: {', '.join(sorted(self.components))}")
        return self.components[name]

    def node(self, name: str) -> Node:
        found = [node for node in self.nodes if node.name == name]
        if not found:
            raise ClusterError(f"no node {name!r}; there are: {', '.join(node.name for node in self.nodes)}")
        return found[0]

    def start(self, name: str) -> None:
        """Of containerd until it answers, as its systemd unit does: a kubelet that finds no runtime exits."""
        self.component(name).start()
        node, _, program = name.rpartition("/")
        if program == "containerd":
            self._wait_for_containerd(self.node(node))

    def power_off(self, name: str) -> None:
        if name in self.powered_off:
            raise ClusterError(f"{name} is off already")
        self.node(name).power_off()
        self.powered_off.add(name)

    def power_on(self, name: str) -> None:
        if name not in self.powered_off:
            raise ClusterError(f"{name} is on")
        node = self.node(name)
        self._boot_node(node)
        self._start_kubelet(node)
        self.powered_off.discard(name)

    def start_kwok(self) -> None:
        for program in self._control.kwok_programs():
            if program.name not in self.components:
                self._add(program)
            if not self.components[program.name].running:
                self._start(program.name)
        time.sleep(0.5)
        for program in self._control.kwok_programs():
            self.components[program.name].check()


def _checked(component: Component) -> bool:
    """True while the component runs; raises with its log if it has ended."""
    component.check()
    return True
