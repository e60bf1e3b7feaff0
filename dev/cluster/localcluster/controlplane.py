"""The programs of the control plane and their flags."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from . import plan
from .components import Program
from .paths import ClusterPaths, self_command
from .pki import CLUSTER_CA, ETCD_CA, FRONT_CA, Pki
from .plan import Options

ADMISSION = "NodeRestriction,OwnerReferencesPermissionEnforcement"
# The control plane's own reads and leases would drown what the tests count.
QUIET_USERS = ["system:apiserver", "system:kube-controller-manager", "system:kube-scheduler", "system:kube-proxy"]
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "nonResourceURLs": ["/readyz*", "/livez*", "/healthz*", "/openapi*", "/api*"]},
        {"level": "None", "userGroups": ["system:nodes"]},
        {"level": "None", "users": QUIET_USERS, "verbs": ["get", "list", "watch"]},
        {"level": "None", "users": QUIET_USERS, "resources": [{"group": "coordination.k8s.io"}]},
        {"level": "Metadata"},
    ],
}


@dataclass(frozen=True)
class ControlPlane:
    options: Options
    paths: ClusterPaths
    pki: Pki
    tools: Path

    def write_files(self) -> None:
        (self.paths.etc / "audit-policy.json").write_text(json.dumps(AUDIT_POLICY))
        for user in ("controller-manager", "scheduler", "proxy", "coredns", "kwok"):
            self._kubeconfig(user).write_text(self.pki.kubeconfig(user, f"https://{plan.CONTROL_IP}:{plan.API_PORT}"))
        (self.paths.etc / "Corefile").write_text(self._corefile())

    def _kubeconfig(self, user: str) -> Path:
        return self.paths.etc / f"{user}.kubeconfig"

    def _corefile(self) -> str:
        zones = f"{plan.DOMAIN} in-addr.arpa"
        cluster = f"kubernetes {zones} {{\n kubeconfig {self._kubeconfig('coredns')} thranite\n pods verified\n}}"
        return f".:53 {{\n bind {plan.CONTROL_IP}\n errors\n {cluster}\n cache 2\n}}\n"

    def programs(self) -> list[Program]:
        return [
            self._program("etcd", self._etcd_flags()),
            self._program("kube-apiserver", self._apiserver_flags()),
            self._program("kube-controller-manager", self._controller_manager_flags()),
            self._program("kube-scheduler", self._scheduler_flags()),
            self._program("coredns", {"conf": self.paths.etc / "Corefile"}, dash="-"),
            Program("volumes", tuple(self_command("_volumes", self.options.name))),
        ]

    def _program(self, name: str, flags: dict[str, object], dash: str = "--") -> Program:
        words = [f"{dash}{flag}={value}" for flag, value in flags.items()]
        return Program(name, (str(self.tools / name), *words))

    def _etcd_flags(self) -> dict[str, object]:
        url = f"https://127.0.0.1:{plan.ETCD_PORT}"
        return {
            "data-dir": self.paths.root / "etcd",
            "listen-client-urls": url,
            "advertise-client-urls": url,
            "listen-peer-urls": "http://127.0.0.1:0",
            "client-cert-auth": "true",
            "trusted-ca-file": self.pki.certificate(ETCD_CA),
            "cert-file": self.pki.certificate("etcd"),
            "key-file": self.pki.key("etcd"),
            "unsafe-no-fsync": "true",  # a cluster that is thrown away
            "quota-backend-bytes": 2 << 30,
            "log-level": "warn",
        }

    def _apiserver_flags(self) -> dict[str, object]:
        return {
            "advertise-address": plan.CONTROL_IP,
            "secure-port": plan.API_PORT,
            "service-cluster-ip-range": plan.SERVICE_CIDR,
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": ADMISSION,
            "allow-privileged": "true",
            "default-not-ready-toleration-seconds": self.options.eviction_timeout,
            "default-unreachable-toleration-seconds": self.options.eviction_timeout,
            "max-requests-inflight": 800,
            "max-mutating-requests-inflight": 400,
            "event-ttl": "1h",
            "audit-policy-file": self.paths.etc / "audit-policy.json",
            "audit-log-path": self.paths.audit_log,
            "audit-log-maxsize": 1000,
            **self._apiserver_certificates(),
        }

    def _apiserver_certificates(self) -> dict[str, object]:
        pki = self.pki
        return {
            "etcd-servers": f"https://127.0.0.1:{plan.ETCD_PORT}",
            "etcd-cafile": pki.certificate(ETCD_CA),
            "etcd-certfile": pki.certificate("etcd-client"),
            "etcd-keyfile": pki.key("etcd-client"),
            "client-ca-file": pki.certificate(CLUSTER_CA),
            "tls-cert-file": pki.certificate("apiserver"),
            "tls-private-key-file": pki.key("apiserver"),
            "kubelet-certificate-authority": pki.certificate(CLUSTER_CA),
            "kubelet-client-certificate": pki.certificate("apiserver-kubelet"),
            "kubelet-client-key": pki.key("apiserver-kubelet"),
            "kubelet-preferred-address-types": "InternalIP",
            "service-account-issuer": f"https://kubernetes.default.svc.{plan.DOMAIN}",
            "service-account-key-file": pki.folder / "accounts.pub",
            "service-account-signing-key-file": pki.key("accounts"),
            # The aggregation layer: no kube-proxy runs beside the API server, so it goes to the endpoints directly.
            "enable-aggregator-routing": "true",
            "proxy-client-cert-file": pki.certificate("front-proxy"),
            "proxy-client-key-file": pki.key("front-proxy"),
            "requestheader-client-ca-file": pki.certificate(FRONT_CA),
            "requestheader-allowed-names": "front-proxy",
            "requestheader-username-headers": "X-Remote-User",
            "requestheader-group-headers": "X-Remote-Group",
            "requestheader-extra-headers-prefix": "X-Remote-Extra-",
        }

    def _controller_manager_flags(self) -> dict[str, object]:
        timeout = self.options.node_timeout
        return {
            **self._client_flags("controller-manager"),
            "use-service-account-credentials": "true",
            "service-account-private-key-file": self.pki.key("accounts"),
            "flex-volume-plugin-dir": self.paths.root / "volume-plugins",
            "root-ca-file": self.pki.certificate(CLUSTER_CA),
            "cluster-signing-cert-file": self.pki.certificate(CLUSTER_CA),
            "cluster-signing-key-file": self.pki.key(CLUSTER_CA),
            "node-monitor-grace-period": f"{timeout}s",
            "node-monitor-period": f"{max(1, min(5, timeout // 4))}s",
            "horizontal-pod-autoscaler-sync-period": "2s",
            "horizontal-pod-autoscaler-downscale-stabilization": "10s",
            "horizontal-pod-autoscaler-initial-readiness-delay": "5s",
            "horizontal-pod-autoscaler-cpu-initialization-period": "10s",
        }

    def _scheduler_flags(self) -> dict[str, object]:
        return self._client_flags("scheduler")

    def _client_flags(self, user: str) -> dict[str, object]:
        path = self._kubeconfig(user)
        return {
            "kubeconfig": path,
            "authentication-kubeconfig": path,
            "authorization-kubeconfig": path,
            "bind-address": "127.0.0.1",
            "leader-elect": "false",
            "kube-api-qps": self.options.qps,
            "kube-api-burst": 2 * self.options.qps,
        }

    def kwok_programs(self) -> list[Program]:
        control: dict[str, object] = {"control": self.paths.pods_socket}
        return [self._program("fake-pods", control), self._program("kwok", self._kwok_flags())]

    def _kwok_flags(self) -> dict[str, object]:
        return {
            "kubeconfig": self._kubeconfig("kwok"),
            "config": Path(__file__).with_name("kwok-stages.yaml"),
            "manage-nodes-with-label-selector": "thranite.dev/kwok=true",
            "cidr": plan.KWOK_CIDR,
            "node-ip": plan.CONTROL_IP,
            "node-lease-duration-seconds": 40,
            "server-address": "127.0.0.1:10247",
        }
