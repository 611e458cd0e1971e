"""What runs at the two ends of a tunnel: a server in the pod, a client here. Plain Python, standard library alone.

The client is the same for each way; so its own time is in all figures alike.
"""

from __future__ import annotations

SERVER_PORT = 8080
"""The server's, as it says itself."""

SERVER = """
import resource, selectors, socket, threading
limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
listen = socket.create_server(("", 8080), backlog=4096)
def bulk(conn):
    data = bytes(1 << 20)
    try:
        while True: conn.sendall(data)
    except OSError: conn.close()
def sink(conn, left):
    buffer = bytearray(1 << 20)
    while left > 0 and (got := conn.recv_into(buffer)): left -= got
    conn.sendall(b"!")
    conn.close()
selector = selectors.DefaultSelector()
selector.register(listen, selectors.EVENT_READ)
while True:
    for key, _ in selector.select():
        if key.fileobj is listen:
            conn, _ = listen.accept()
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(conn, selectors.EVENT_READ)
            continue
        conn = key.fileobj
        try: data = conn.recv(65536)
        except OSError: data = b""
        if data[:1] in (b"B", b"S"):
            selector.unregister(conn)
            if data == b"B": work = (bulk, (conn,))
            else: work = (sink, (conn, int(data[1:9]) - len(data[9:])))
            threading.Thread(target=work[0], args=work[1], daemon=True).start()
        elif data: conn.sendall(data)
        else:
            selector.unregister(conn)
            conn.close()
"""
"""Echoes; `B` is answered with bytes for ever, `S` and a number in 8 digits swallows so many and says `!`."""

CLIENT = """
import json, resource, select, socket, sys, threading, time
what, host, port, amount = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
clock = time.perf_counter
def connect():
    s = socket.create_connection((host, port), timeout=30)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s
def echo(s, data=b"x"):
    s.sendall(data)
    got = s.recv(len(data), socket.MSG_WAITALL)
    if got != data: raise OSError(f"{got!r} instead of {data!r}")
def trips():
    with connect() as s:
        for _ in range(20): echo(s)
        found, end = [], clock() + amount
        while clock() < end:
            begin = clock()
            echo(s)
            found.append(clock() - begin)
    return found
def beside():
    # The same while another connection of this client downloads.
    stop = threading.Event()
    def download():
        with connect() as s:
            s.sendall(b"B")
            buffer = bytearray(1 << 20)
            while not stop.is_set() and s.recv_into(buffer): pass
    thread = threading.Thread(target=download)
    thread.start()
    time.sleep(amount / 4)
    try: return trips()
    finally:
        stop.set()
        thread.join()
def connections():
    # Eight at a time, as a browser or a pool of clients would.
    count, failed, end = [0] * 8, [0] * 8, clock() + amount
    def client(n):
        while clock() < end:
            try:
                with connect() as s: echo(s)
                count[n] += 1
            except OSError: failed[n] += 1
    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    begin = clock()
    for t in threads: t.start()
    for t in threads: t.join()
    return {"rate": sum(count) / (clock() - begin), "failed": sum(failed)}
def down():
    with connect() as s:
        s.sendall(b"B")
        buffer, got = bytearray(1 << 20), 0
        warm = clock() + amount / 4
        while clock() < warm: s.recv_into(buffer)
        begin, end = clock(), clock() + amount
        while clock() < end:
            size = s.recv_into(buffer)
            if not size: raise OSError("the stream ended")
            got += size
    return got / (clock() - begin)
def up():
    size = int(amount)
    data = bytes(1 << 20)
    with connect() as s:
        echo(s)
        begin = clock()
        s.sendall(b"S%08d" % size)
        left = size
        while left > 0:
            s.sendall(data[:min(left, len(data))])
            left -= len(data)
        if s.recv(1) != b"!": raise OSError("no answer to the upload")
    return size / (clock() - begin)
def many():
    socks, failed = [], 0
    begin = clock()
    for n in range(int(amount)):
        try: socks.append(connect())
        except OSError: failed += 1
    good = 0
    for n, s in enumerate(socks):
        try: s.sendall(b"%06d" % n)
        except OSError: pass
    for n, s in enumerate(socks):
        try: good += s.recv(6, socket.MSG_WAITALL) == b"%06d" % n
        except OSError: pass
    spent = clock() - begin
    for s in socks: s.close()
    return {"good": good, "seconds": spent}
def names():
    # `host` is what is asked for; "%d" in it is another name each time.
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    s.connect(("127.0.0.1", 53))
    s.settimeout(5)
    found, end, n = [], clock() + amount, 0
    while clock() < end:
        n += 1
        name = host.replace("%d", "n%d-%d" % (n, time.time_ns()))
        wire = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        begin = clock()
        s.send(n.to_bytes(2, "big") + bytes.fromhex("01000001000000000000") + wire + bytes.fromhex("0000010001"))
        answer = s.recv(4096)
        found.append(clock() - begin)
        if answer[3] & 15 not in (0, 3): raise OSError(f"rcode {answer[3] & 15}")
    return found
print(json.dumps(globals()[what]()))
"""
"""`CLIENT WHAT HOST PORT AMOUNT`: one measurement, its raw values as JSON. Seconds and bytes."""
