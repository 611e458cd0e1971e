"""The network of a local service: its namespace, transparent proxy, DNS, published ports; the portable way.

`netlink`, `rules`, `listeners`, `mounts` and `namespace` run inside a holder: they import the standard library
and each other, nothing else.
"""
