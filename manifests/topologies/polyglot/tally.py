"""POST /events/quote-given: a CloudEvent, counted once however often it comes. GET /received/tally: the counts so far.

What it knows lives in memory and ends with it; of the events it remembers the newest thousand.
"""

import collections
import json
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEPT = 1000

lock = threading.Lock()
deliveries = 0
events = collections.OrderedDict()  # by source and id: what makes an event one
items = collections.Counter()


class Tally(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # An answer leaves in one packet, as soon as it is there.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path != "/events/quote-given":
            return self.answer(404, {"error": f"nothing at {self.path}"})
        try:
            item = json.loads(body)["item"]
        except (ValueError, KeyError, TypeError) as error:
            return self.answer(422, {"error": f"not a quote: {error!r}"})
        key = (self.headers.get("ce-source"), self.headers.get("ce-id"))
        if None in key:
            return self.answer(400, {"error": "not a CloudEvent: no ce-source or no ce-id"})
        self.answer(200, {"duplicate": not count(key, str(item), self.headers)})

    def do_GET(self):
        if self.path != "/received/tally":
            return self.answer(404, {"error": f"nothing at {self.path}"})
        with lock:
            shown = {"deliveries": deliveries, "items": dict(items), "messages": list(events.values())}
        self.answer(200, shown)

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def log_request(self, *_):
        pass


def count(key, item, headers):
    """Whether it was new."""
    global deliveries
    with lock:
        deliveries += 1
        if key in events:
            return False
        names = ("type", "source", "id", "time")
        events[key] = {name: headers.get(f"ce-{name}") for name in names} | {"item": item}
        if len(events) > KEPT:
            events.popitem(last=False)
        items[item] += 1
        return True


def main():
    server = ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Tally)
    # shutdown() waits for the loop that the signal interrupts, so it must run beside it.
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()


main()
