"""A pod's tables of connections, read."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from devloop.agent.sockets import TABLES, Carried, others, read

TEXT = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 81 1 0000 100 0 0 10 0
   1: 0500F40A:1F90 0900F40A:C350 01 00000000:00000000 00:00000000 00000000  1000        0 82 1 0000 20 4 30 10 -1
   2: 0500F40A:1F90 0900F40A:C351 01 00000010:00000000 00:00000000 00000000  1000        0 83 1 0000 20 4 30 10 -1
   3: 0500F40A:1F90 0100F40A:C352 01 00000000:00000000 00:00000000 00000000  1000        0 84 1 0000 20 4 30 10 -1
   4: 0100007F:1F90 0100007F:C353 01 00000000:00000000 00:00000000 00000000  1000        0 85 1 0000 20 4 30 10 -1
   5: 0500F40A:1F90 0900F40A:C354 06 00000000:00000000 00:00000000 00000000     0        0 0 3 0000
   6: 0500F40A:C355 0700F40A:1F90 01 00000000:00000000 00:00000000 00000000  1000        0 86 1 0000 20 4 30 10 -1
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when
   0: 0000000000000000FFFF00000500F40A:1F90 0000000000000000FFFF00000A00F40A:C356 01 00000000:00000001 00:00000000 00000000  1000        0 87 1 0000 20 4 30 10 -1
   1: 000080FE000000000000000005000000:1F90 000080FE000000000000000009000000:C357 01 00000000:00000000 00:00000000 00000000  1000        0 88 1 0000 20 4 30 10 -1
Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	0100F40A	0003	0	0	0	00000000	0	0	0
eth0	0000F40A	00000000	0001	0	0	0	00FFFFFF	0	0	0
cat: /proc/net/ipv6_route: No such file or directory
"""  # noqa: E501 - as the kernel prints it


def test_who_leads_to_a_port_is_read_and_who_is_known_is_not_told() -> None:
    network = read(TEXT)
    assert network.gateways == ("10.244.0.1",)
    found = others(network.connections, {8080}, (*network.gateways, "10.244.0.77"))
    assert [(each.client, each.client_port, each.inode, each.queued) for each in found] == [
        ("10.244.0.9", 0xC350, 82, False),
        ("10.244.0.9", 0xC351, 83, True),
        ("10.244.0.10", 0xC356, 87, True),
        ("fe80::9", 0xC357, 88, False),
    ]
    assert [
        each.client for each in others(network.connections, {8080}, ("10.244.0.9", "10.244.0.1", found[3].client))
    ] == ["10.244.0.10"]
    assert others(network.connections, {9090}, ()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the tables are Linux's")
def test_this_machines_own_tables_are_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        accepted, _ = server.accept()
        with accepted:
            text = "".join(Path(each).read_text() for each in TABLES if Path(each).exists())
            found = [each for each in read(text).connections if each.client_port == client.getsockname()[1]]
            assert [(each.port, each.client) for each in found] == [(server.getsockname()[1], "127.0.0.1")]


def test_what_is_no_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no table"):
        read("cat: can't open '/proc/net/tcp': Permission denied\n")


COUNTED = """\
uptime 66499.52
0      0                 10.244.0.5:8080         10.244.0.9:50000 timer:(keepalive,1min,0) uid:1000 ino:82 sk:b22d <->
\t ts sack cubic wscale:7,7 rto:204 rtt:0.5/0.2 segs_out:8 segs_in:13 data_segs_out:6 data_segs_in:5 send 1Gbps
0      16  [::ffff:10.244.0.5]:8080 [::ffff:10.244.0.10]:50006 ino:87 sk:b22e cgroup:/x <->
\t ts sack cubic wscale:7,7 rto:204 rtt:0.5/0.2 segs_out:2 segs_in:2 minrtt:0.01
0      0   [fe80::5]%eth0:8080           [fe80::9]%eth0:50007 ino:88 sk:1 <->
\t ts sack cubic data_segs_in:99999999999 data_segs_out:7
"""  # as `ss -tineH` of iproute2 6.1 prints it


def test_what_each_connection_has_carried_is_read() -> None:
    network = read(TEXT + COUNTED)
    assert network.at == 66499.52
    assert [(each, each.packets) for each in network.carried] == [
        (Carried(8080, "10.244.0.9", 50000, "b22d", (0, 0)), (5, 6)),
        (Carried(8080, "10.244.0.10", 50006, "b22e", (0, 0)), (0, 0)),
        (Carried(8080, "fe80::9", 50007, "1", (0, 0)), (0, 7)),
    ]
    assert [each.client for each in others(network.carried, {8080}, ("10.244.0.9",))] == ["10.244.0.10", "fe80::9"]
    assert network.connections == read(TEXT).connections


@pytest.mark.parametrize(
    "text",
    [
        "",
        COUNTED.replace("uptime 66499.52", ""),
        COUNTED.replace("66499.52", "nan"),
        COUNTED.replace("66499.52", "9" * 5000),
        COUNTED.replace("data_segs", "segs"),  # a kernel before 4.6
        "uptime 5.0\n\t data_segs_in:5\n0 0 a:b c:d sk:1\n\tx\n0 0 1.1.1.1:1\n",
    ],
)
def test_what_is_not_counted_is_not_known(text: str) -> None:
    network = read(TEXT + text)
    assert (network.carried, network.at) == ((), None)
    assert network.connections == read(TEXT).connections
