"""The programs of the node: how each is configured and called.

Every address is the node's own (its network namespace), so no port here can clash with the machine's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .pki import write
from .settings import CHECKOUT, NODE, SOURCES, Settings

ETCD = "http://127.0.0.1:2379"
CONTAINERD = "/run/containerd/containerd.sock"  # in the node's own /run
PAUSE = "devloop.test/pause:1"
CNI_PROGRAMS = "/usr/lib/cni"


class Components:
    """The command line of each program, and the configuration files that it reads."""

    def __init__(self, settings: Settings, programs: Path) -> None:
        self.settings = settings
        self.programs = programs
        self.etc = settings.state / "etc"

    def file(self, name: str, content: dict[str, Any] | str) -> Path:
        """A configuration file. JSON is YAML too, so no template can break on a value."""
        text = content if isinstance(content, str) else json.dumps(content, indent=2)
        write(self.etc / name, text.encode(), 0o644)
        return self.etc / name

    def etcd(self) -> list[str]:
        # No fsync: the data is thrown away with the cluster, and a slow disk would slow every test.
        return [
            *("etcd", "--name=node", "--data-dir=/var/lib/etcd/data", "--unsafe-no-fsync"),
            *(f"--listen-client-urls={ETCD}", f"--advertise-client-urls={ETCD}"),
            *("--listen-peer-urls=http://127.0.0.1:2380", "--logger=zap"),
            # A watch on what nothing has touched learns the store's revision from these alone, and the API
            # server answers "Too large resource version" after 3 s without. At 250 ms it costs a fifth of a core at
            # rest, and at 2 s such answers are seen. (etcd from 3.4.25 on can be asked; Debian has 3.4.23.)
            "--experimental-watch-progress-notify-interval=500ms",
        ]

    def apiserver(self) -> list[str]:
        etc, settings = self.etc, self.settings
        return [
            str(self.programs / "kube-apiserver"),
            f"--etcd-servers={ETCD}",
            f"--service-cluster-ip-range={','.join(each.services for each in settings.families)}",
            f"--advertise-address={settings.node_ip}",
            # "::" takes IPv4 as well, by which the slow link comes in any case.
            f"--bind-address={'::' if len(settings.families) > 1 or settings.first.version == 6 else '0.0.0.0'}",
            "--secure-port=6443",
            f"--tls-cert-file={etc}/apiserver.crt",
            f"--tls-private-key-file={etc}/apiserver.key",
            f"--client-ca-file={etc}/ca.crt",
            f"--service-account-key-file={etc}/service-accounts.pub",
            f"--service-account-signing-key-file={etc}/service-accounts.key",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--kubelet-client-certificate={etc}/kubelet-client.crt",
            f"--kubelet-client-key={etc}/kubelet-client.key",
            "--kubelet-preferred-address-types=InternalIP",
            # Pod Security admission is on by default; NodeRestriction is what every installer adds.
            "--enable-admission-plugins=NodeRestriction",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
        ]

    def controllers(self) -> list[str]:
        etc = self.etc
        return [
            str(self.programs / "kube-controller-manager"),
            f"--kubeconfig={etc}/controllers.conf",
            f"--root-ca-file={etc}/ca.crt",
            f"--service-account-private-key-file={etc}/service-accounts.key",
            f"--cluster-signing-cert-file={etc}/ca.crt",
            f"--cluster-signing-key-file={etc}/ca.key",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            "--allocate-node-cidrs=false",
            # The default of 20 requests a second alone makes it start four seconds later.
            "--kube-api-qps=300",
            "--kube-api-burst=600",
        ]

    def scheduler(self) -> list[str]:
        kubeconfig = f"--kubeconfig={self.etc}/scheduler.conf"
        return [str(self.programs / "kube-scheduler"), kubeconfig, "--leader-elect=false"]

    def containerd(self) -> list[str]:
        network = {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": True,
                    "ipMasq": True,
                    "hairpinMode": True,  # a pod may reach itself through its Service
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": each.pods}] for each in self.settings.families],
                        "routes": [{"dst": each.everywhere} for each in self.settings.families],
                        "dataDir": "/run/cni-addresses",
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
        self.file("cni/10-pods.conflist", network)
        config = f"""
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
  address = "{CONTAINERD}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  # The machine may forbid a lower score than its own (a container, a sandbox, a CI runner).
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PROGRAMS}"
    conf_dir = "{self.etc}/cni"
"""
        return ["containerd", "--config", str(self.file("containerd.toml", config))]

    def kubelet(self) -> list[str]:
        etc = self.etc
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": f"{etc}/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            # Machines with version 1 of control groups, whole or in part, are to work as well; what the
            # kubelet would set up for quality of service then differs from one machine to the next.
            "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "containerRuntimeEndpoint": f"unix://{CONTAINERD}",
            "clusterDNS": [self.settings.first.dns],
            "clusterDomain": "cluster.local",
            "resolvConf": str(self.file("resolv.conf", "")),
            "tlsCertFile": f"{etc}/kubelet.crt",
            "tlsPrivateKeyFile": f"{etc}/kubelet.key",
            "volumePluginDir": "/var/lib/kubelet/plugins-exec",
            # Secrets and ConfigMaps reach a volume when they change, not a minute later.
            "configMapAndSecretChangeDetectionStrategy": "Watch",
            "syncFrequency": "10s",
            # A full disk is the machine's affair: no pod is evicted and no image deleted for it.
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
            },
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "serializeImagePulls": False,
            # A container that failed, because what it needs is not there yet, tries again soon.
            "crashLoopBackOff": {"maxContainerRestartPeriod": "2s"},
            "registryPullQPS": 0,
            "eventRecordQPS": 0,
            "kubeAPIQPS": 200,
            "kubeAPIBurst": 400,
        }
        return [
            str(self.programs / "kubelet"),
            f"--config={self.file('kubelet.json', config)}",
            f"--kubeconfig={etc}/kubelet.conf",
            f"--hostname-override={NODE}",
            f"--node-ip={','.join(self.settings.node_ips)}",
            "--root-dir=/var/lib/kubelet",
        ]

    def proxy(self) -> list[str]:
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clusterCIDR": ",".join(each.pods for each in self.settings.families),
            "hostnameOverride": NODE,
            "clientConnection": {"kubeconfig": f"{self.etc}/proxy.conf"},
            # The size of the connection table is the machine's; a namespace can't and need not set it.
            "conntrack": {"maxPerCore": 0, "min": 0},
            "nftables": {"syncPeriod": "30s", "minSyncPeriod": "10ms"},
        }
        return [str(self.programs / "kube-proxy"), f"--config={self.file('proxy.json', config)}"]

    def policies(self) -> list[str]:
        """What enforces NetworkPolicies."""
        return [str(self.programs / "policies"), str(self.settings.admin), NODE]

    def provisioner(self) -> tuple[list[str], dict[str, str]]:
        """Our own: makes a folder of the node's for each PersistentVolumeClaim of the class `local-path`."""
        package = ".".join(SOURCES.relative_to(CHECKOUT).parts)
        argv = [sys.executable, "-m", f"{package}.provisioner", str(self.settings.admin)]
        return argv, {"PYTHONPATH": str(CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1"}
