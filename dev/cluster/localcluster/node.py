"""A node: its namespaces, the files it needs, and its programs (containerd, kubelet, kube-proxy, device plugin)."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cgroups, images, namespaces, network, plan
from .components import Program
from .paths import ClusterPaths
from .pki import CLUSTER_CA, Pki
from .plan import NodePlan, Options
from .shell import run, succeeds

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
HOLDER = "namespaces"
CNI_FOLDER = "/usr/lib/cni"
CAP_SYS_RESOURCE = 24


def lacks_resource_capability() -> bool:
    """Without it runc cannot lower a container's OOM score."""
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
    return not int(effective, 16) >> CAP_SYS_RESOURCE & 1


@dataclass(frozen=True)
class Node:
    plan: NodePlan
    options: Options
    paths: ClusterPaths
    pki: Pki
    tools: Path

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def folder(self) -> Path:
        return self.paths.node(self.name)

    @property
    def etc(self) -> Path:
        return self.folder / "etc"

    def holder(self) -> Program:
        """Makes the namespaces anew: what a restart of the machine leaves is the node's /var."""
        var = self.folder / "var"
        var.mkdir(parents=True, exist_ok=True)
        groups = tuple(cgroups.make_node_groups(self.options.name, self.name))
        command = namespaces.holder_command(var, self.name, self.tools / "sandbox", images.seen_folders())
        return Program(f"{self.name}/{HOLDER}", command, groups=groups)

    def connect(self) -> None:
        others = [other for other in self.options.node_plans() if other != self.plan]
        network.connect(self.plan, namespaces.network_of(self.paths, self.name), others)

    def power_off(self) -> None:
        """The groups go too: a kubelet that finds them waits for containerd to tell of their containers."""
        cgroups.kill_node(self.options.name, self.name)
        cgroups.remove(self.options.name, self.name)
        network.disconnect(self.plan)

    def write_files(self) -> None:
        self.etc.mkdir(parents=True, exist_ok=True)
        api = f"https://{plan.CONTROL_IP}:{plan.API_PORT}"
        cni = self.etc / "cni"
        cni.mkdir(exist_ok=True)
        (self.etc / "kubelet.kubeconfig").write_text(self.pki.kubeconfig(f"kubelet-{self.name}", api))
        (self.etc / "kubelet.json").write_text(json.dumps(self._kubelet_configuration(), indent=1))
        (self.etc / "resolv.conf").write_text(f"nameserver {plan.DNS_SERVICE_IP}\n")
        (self.etc / "containerd.toml").write_text(self._containerd_configuration(cni))
        (cni / "10-pods.conflist").write_text(json.dumps(self._cni_configuration()))
        runtime = {"runc": shutil.which("runc"), "image": images.DEV_IMAGE, "mounts": images.dev_mounts()}
        (self.etc / "dev-image.json").write_text(json.dumps(runtime, indent=1))

    def programs(self) -> list[Program]:
        groups = tuple(cgroups.make_node_groups(self.options.name, self.name))

        def program(name: str, *flags: str, **environment: str) -> Program:
            command = (str(self.tools / name), *flags)
            return Program(f"{self.name}/{name}", command, self.name, groups, environment)

        return [
            program(
                "containerd",
                f"--config={self.etc / 'containerd.toml'}",
                PATH=f"{self.tools}:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin",
                THRANITE_DEV_IMAGE=str(self.etc / "dev-image.json"),
            ),
            program("kubelet", *self._kubelet_flags()),
            program("kube-proxy", *self._proxy_flags()),
            program(
                "device-plugin",
                f"--devices={self.options.gpus}",
                f"--unhealthy={self.paths.unhealthy_gpus(self.name)}",
            ),
        ]

    def _kubelet_flags(self) -> list[str]:
        return [
            f"--config={self.etc / 'kubelet.json'}",
            f"--kubeconfig={self.etc / 'kubelet.kubeconfig'}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.plan.ip}",
            "--cert-dir=/var/lib/kubelet/pki",
            f"--node-labels=topology.kubernetes.io/zone=zone-{self.plan.index}",
        ]

    def _proxy_flags(self) -> list[str]:
        return [
            f"--kubeconfig={self.paths.etc / 'proxy.kubeconfig'}",
            f"--hostname-override={self.name}",
            f"--cluster-cidr={plan.POD_CIDR}",
            "--proxy-mode=iptables",
            "--iptables-min-sync-period=200ms",
            # Limits of connection tracking belong to the machine, not to a namespace of it.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
        ]

    def _kubelet_configuration(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self.pki.certificate(CLUSTER_CA))},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(self.pki.certificate(f"kubelet-server-{self.name}")),
            "tlsPrivateKeyFile": str(self.pki.key(f"kubelet-server-{self.name}")),
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{cgroups.PARENT}/{self.options.name}/{self.name}",
            "failCgroupV1": False,
            "failSwapOn": False,
            "clusterDNS": [plan.DNS_SERVICE_IP],
            "clusterDomain": plan.DOMAIN,
            "resolvConf": str(self.etc / "resolv.conf"),
            "nodeStatusUpdateFrequency": "1s",
            "nodeStatusReportFrequency": "10s",
            "nodeLeaseDurationSeconds": min(40, self.options.node_timeout),
            "serializeImagePulls": False,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
            "protectKernelDefaults": False,
        }

    def _cni_configuration(self) -> dict[str, Any]:
        ranges = [[{"subnet": self.plan.pod_subnet}]]
        address = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
        # No masquerading: pods reach other nodes' pods and the control plane by routes, and nothing else.
        bridge = {
            "type": "bridge",
            "bridge": network.POD_BRIDGE,
            "isGateway": True,
            "hairpinMode": True,
            "ipam": address,
        }
        return {
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}],
        }

    def _containerd_configuration(self, cni: Path) -> str:
        return f"""version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins.'io.containerd.internal.v1.opt']
  path = "/var/lib/containerd/opt"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "{images.SANDBOX_IMAGE}"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = {str(lacks_resource_capability()).lower()}
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["{CNI_FOLDER}"]
    conf_dir = "{cni}"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      BinaryName = "{self.tools / "image-runtime"}"
"""

    def _enter(self, *command: str | Path) -> list[str | Path]:
        return [*namespaces.entering(self.paths, self.name), *command]

    def containerd_answers(self) -> bool:
        return succeeds(self._enter(self.tools / "ctr", "--address", CONTAINERD_SOCKET, "version"))

    def import_image(self, archive: Path) -> str:
        ctr = (self.tools / "ctr", "--address", CONTAINERD_SOCKET, "--namespace", "k8s.io")
        return run(*self._enter(*ctr, "images", "import", archive), timeout=300)
