"""A real one-node Kubernetes on a bare Linux machine: built, cached, started and taken away again.

`python -m tests.cluster.kube up|down|build|status`, from the root of the checkout; `make cluster` is the
first of these. docs/cluster-tests.md explains how it works.

The node is a set of Linux namespaces (network, mount, process) with one process, `init.py`, as its PID 1.
Everything that a cluster scatters over a machine (bridges, nftables tables, mounts, shims, /run/netns, CNI
state) lies inside, and goes when that process does. What lies outside is listed in `sandbox.py`.
"""
