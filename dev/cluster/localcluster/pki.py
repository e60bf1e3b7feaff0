"""The cluster's certificates: three authorities (cluster, front proxy, etcd) and what they sign, made by openssl."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .plan import API_SERVICE_IP, CONTROL_IP, DOMAIN, NodePlan
from .shell import run

CLUSTER_CA = "ca"
FRONT_CA = "front-proxy-ca"
ETCD_CA = "etcd-ca"
API_NAMES = (
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    f"kubernetes.default.svc.{DOMAIN}",
    "localhost",
)
# openssl's own configuration file would mark every certificate as an authority.
CONFIGURATION = "[req]\ndistinguished_name = subject\n[subject]\n"


@dataclass(frozen=True)
class Certificate:
    name: str
    subject: str
    authority: str = CLUSTER_CA
    dns: tuple[str, ...] = ()
    ips: tuple[str, ...] = ()

    def extensions(self) -> list[str]:
        names = [f"DNS:{name}" for name in self.dns] + [f"IP:{ip}" for ip in self.ips]
        usage = "clientAuth,serverAuth" if names else "clientAuth"
        alternative = [f"subjectAltName={','.join(names)}"] if names else []
        return ["basicConstraints=critical,CA:FALSE", f"extendedKeyUsage={usage}", *alternative]


def certificates(nodes: list[NodePlan]) -> list[Certificate]:
    local = ("127.0.0.1", CONTROL_IP)
    common = [
        Certificate("apiserver", "/CN=kube-apiserver", dns=API_NAMES, ips=(*local, API_SERVICE_IP)),
        Certificate("faults", "/CN=fault-proxy", dns=API_NAMES, ips=local),
        Certificate("apiserver-kubelet", "/O=thranite:kubelet-clients/CN=kube-apiserver-kubelet-client"),
        Certificate("front-proxy", "/CN=front-proxy", authority=FRONT_CA),
        Certificate("etcd", "/CN=etcd", authority=ETCD_CA, dns=("localhost",), ips=("127.0.0.1",)),
        Certificate("etcd-client", "/CN=kube-apiserver", authority=ETCD_CA),
        Certificate("admin", "/O=system:masters/CN=admin"),
        Certificate("controller-manager", "/CN=system:kube-controller-manager"),
        Certificate("scheduler", "/CN=system:kube-scheduler"),
        Certificate("proxy", "/CN=system:kube-proxy"),
        Certificate("coredns", "/CN=thranite:coredns"),
        Certificate("volumes", "/CN=thranite:volumes"),
        Certificate("kwok", "/CN=thranite:kwok"),
    ]
    return common + [certificate for node in nodes for certificate in node_certificates(node)]


def node_certificates(node: NodePlan) -> list[Certificate]:
    subject = f"/O=system:nodes/CN=system:node:{node.name}"
    return [
        Certificate(f"kubelet-{node.name}", subject),
        Certificate(f"kubelet-server-{node.name}", subject, dns=(node.name,), ips=(node.ip, "127.0.0.1")),
    ]


@dataclass(frozen=True)
class Pki:
    folder: Path

    def certificate(self, name: str) -> Path:
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def make_all(self, nodes: list[NodePlan]) -> None:
        (self.folder / "openssl.cnf").write_text(CONFIGURATION)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(self._make_authority, (CLUSTER_CA, FRONT_CA, ETCD_CA)))
            list(pool.map(self._issue, certificates(nodes)))
        run(
            "openssl",
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-out",
            self.key("accounts"),
        )
        run("openssl", "pkey", "-in", self.key("accounts"), "-pubout", "-out", self.folder / "accounts.pub")

    def _make_authority(self, name: str) -> None:
        extensions = ("basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,digitalSignature")
        self._request(name, f"/CN=thranite-{name}", list(extensions))

    def _issue(self, wanted: Certificate) -> None:
        authority = ("-CA", self.certificate(wanted.authority), "-CAkey", self.key(wanted.authority))
        self._request(wanted.name, wanted.subject, wanted.extensions(), *authority)

    def _request(self, name: str, subject: str, extensions: list[str], *more: str | Path) -> None:
        added = [word for extension in extensions for word in ("-addext", extension)]
        new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", self.key(name))
        run(
            *("openssl", "req", "-x509", "-config", self.folder / "openssl.cnf", "-days", "3650", "-subj", subject),
            *(*new_key, "-out", self.certificate(name), *added, *more),
        )

    def kubeconfig(self, user: str, server: str) -> str:
        """A kubeconfig that carries its certificates, so that it can be copied."""

        def data(path: Path) -> str:
            return base64.b64encode(path.read_bytes()).decode()

        cluster = {"server": server, "certificate-authority-data": data(self.certificate(CLUSTER_CA))}
        credentials = {
            "client-certificate-data": data(self.certificate(user)),
            "client-key-data": data(self.key(user)),
        }
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "thranite",
            "clusters": [{"name": "thranite", "cluster": cluster}],
            "users": [{"name": user, "user": credentials}],
            "contexts": [{"name": "thranite", "context": {"cluster": "thranite", "user": user}}],
        }
        return json.dumps(content, indent=1)
