"""GET /quote/ITEM: the price of an item in the shop's currency, asked from another service."""

import argparse
import json
import os
import signal
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PRICES = os.environ["PRICE_SERVER"]
CURRENCY = os.environ.get("CURRENCY", "EUR")


class Quote(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        item = self.path.rsplit("/", 1)[-1]
        request = urllib.request.Request(f"{PRICES}/price/{item}")
        if trace := self.headers.get("traceparent"):
            request.add_header("traceparent", trace)
        try:
            with urllib.request.urlopen(request, timeout=2) as answer:
                cents = json.load(answer)["cents"]
            self.answer(200, {"item": item, "price": f"{cents / 100:.2f} {CURRENCY}"})
        except urllib.error.HTTPError as error:
            self.answer(error.code, {"error": f"prices answers {error.code}"})
        except OSError as error:
            self.answer(502, {"error": f"cannot ask {PRICES}: {error}"})

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", required=True, help="HOST:PORT")
    host, port = parser.parse_args().listen.rsplit(":", 1)
    server = ThreadingHTTPServer((host, int(port)), Quote)
    # shutdown() waits for the loop that the signal interrupts, so it must run beside it.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()


main()
