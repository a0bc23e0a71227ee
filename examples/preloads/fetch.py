"""Fetch forty pages from a server of our own, over one connection a worker. Run it with session.py as the preload."""

import http.server
import os
import threading

from localdask import Client, LocalCluster, get_worker


class Server(http.server.ThreadingHTTPServer):
    n_connections = 0

    def process_request(self, request, client_address):
        Server.n_connections += 1
        super().process_request(request, client_address)


class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections stay open

    def do_GET(self):
        body = f"page {self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


def fetch(path):
    worker = get_worker()
    with worker.session_lock:
        worker.session.request("GET", path)
        return worker.session.getresponse().read().decode()


def main():
    server = Server(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    preload = os.path.join(os.path.dirname(__file__), "session.py")
    argv = ["--host", f"127.0.0.1:{server.server_port}"]
    with LocalCluster(n_workers=2, preload=preload, preload_argv=argv) as cluster, Client(cluster) as client:
        pages = client.gather(client.map(fetch, [f"/{n}" for n in range(40)]))
    print(f"{len(pages)} pages from {pages[0]!r} to {pages[-1]!r}, over {Server.n_connections} connections")
    server.shutdown()


if __name__ == "__main__":
    main()
