"""Programs that run inside."""

ECHO = """
import socket, threading, sys
def serve(conn):
    with conn:
        while data := conn.recv(65536):
            conn.sendall(data)
def listen(sock):
    while True:
        threading.Thread(target=serve, args=sock.accept()[:1], daemon=True).start()
listen(socket.create_server((%r, %d), backlog=2000))
"""

HTTP = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536  # head and body in one write: killed in between, an answer would be cut
    def do_GET(self):
        body = ("%s " + str(os.getpid())).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 500
Server(("", %d), Handler).serve_forever()
"""

CONNECT = """
import contextlib, socket, sys
try:
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10)
    s.sendall(b"hello")
    with contextlib.suppress(OSError):  # a reset has come already: ENOTCONN, and the next call says which it was
        s.shutdown(socket.SHUT_WR)
    got = b""
    while part := s.recv(100): got += part
    print(got.decode())
except OSError as error:
    print(type(error).__name__)
"""
