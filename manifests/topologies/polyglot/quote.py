"""GET /quote/ITEM: the price of an item in the shop's currency, asked from another service.

Each quote is published to EVENTS, and given only once that has said that it is kept.
"""

import argparse
import json
import os
import signal
import threading
import urllib.error
import urllib.request
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PRICES = os.environ["PRICE_SERVER"]
CURRENCY = os.environ.get("CURRENCY", "EUR")
EVENTS = os.environ.get("EVENTS")


class Quote(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        item = self.path.rsplit("/", 1)[-1]
        try:
            with self.call(f"{PRICES}/price/{item}") as answer:
                cents = json.load(answer)["cents"]
        except urllib.error.HTTPError as error:
            return self.answer(error.code, {"error": f"prices answers {error.code}"})
        except OSError as error:
            return self.answer(502, {"error": f"cannot ask {PRICES}: {error}"})
        quote = {"item": item, "price": f"{cents / 100:.2f} {CURRENCY}"}
        try:
            if EVENTS:
                self.publish(quote)
        except OSError as error:
            return self.answer(502, {"error": f"cannot publish to {EVENTS}: {error}"})
        self.answer(200, quote)

    def publish(self, quote):
        """The key makes it one event, should anybody on the way repeat the request."""
        headers = {"content-type": "application/json", "idempotency-key": str(uuid.uuid4())}
        with self.call(EVENTS, json.dumps(quote).encode(), headers) as answer:
            if answer.status != 202:
                raise OSError(f"the answer is {answer.status}, not 202")

    def call(self, url, body=None, headers=None):
        request = urllib.request.Request(url, body, headers or {})
        if trace := self.headers.get("traceparent"):
            request.add_header("traceparent", trace)
        return urllib.request.urlopen(request, timeout=2)

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
