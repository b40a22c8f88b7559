"""Pass results over HTTP by handle: the server answers with a few bytes of text, and the client gets the value from Ray's store.

The server pins each result for a minute. A client that never comes back wastes memory for that long, and no longer.
"""

import http.server
import json
import threading
import urllib.request
from typing import Any

import ray

import safe_refs


@ray.remote
def compute(number: int) -> list[int]:
    """Some work with a large result."""
    return list(range(number))


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers `/N` with a handle for the result of `compute(N)`."""

    def do_GET(self) -> None:
        """Start the work, and answer without waiting for it."""
        handle = safe_refs.pin(compute.remote(int(self.path.strip("/"))), ttl=60, label="http")
        body = json.dumps({"result": str(handle)}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: an answer holds what only the client should know."""


def main() -> None:
    """Run server and client in one process, on the loopback address."""
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/100000", timeout=60) as answer:
        text = json.load(answer)["result"]
    with safe_refs.SafeRef.parse(text) as handle:
        print("the result has", len(handle.get()), "rows")
    print("held now:", safe_refs.leases())
    server.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
