"""A backend in Python 3, with nothing but its standard library: takes orders from clients by webhook, answers over the
HTTP API.

    MESA_URL=http://127.0.0.1:4000 MESA_API_KEY=... WEBHOOK_SECRET=... PORT=8080 python3 backend.py

The server's configuration names it:

    portal: { webhook: { url: 'http://127.0.0.1:8080/', secret: '...', allowPrivate: true } }
"""

import hashlib
import hmac
import json
import os
import sys
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MESA_URL = os.environ.get("MESA_URL", "http://127.0.0.1:4000")
MESA_API_KEY = os.environ["MESA_API_KEY"]
WEBHOOK_SECRET = os.environ["WEBHOOK_SECRET"].encode()
PORT = int(os.environ.get("PORT", "8080"))

# Seconds that a signature holds: who records a request cannot play it again later.
SIGNATURE_AGE_MAX = 300
# More than the server sends in one request (portal.webhook.maxBytes).
BODY_BYTES_MAX = 4 << 20


def is_signed(headers, body):
    """Whether a request was signed by the server, a moment ago."""
    timestamp = headers.get("mesa-timestamp", "")
    if not (timestamp.isascii() and timestamp.isdigit()) or abs(time.time() - int(timestamp)) > SIGNATURE_AGE_MAX:
        return False
    signed = hmac.new(WEBHOOK_SECRET, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(f"v1={signed}".encode(), headers.get("mesa-signature", "").encode())


def dispatch(dispatch_id, kind, data, recipients):
    """Sends a message. The id makes one of a dispatch that is said again because its answer was lost."""
    message = {"op": 0, "d": data, "t": kind}
    request = urllib.request.Request(
        f"{MESA_URL}/v1/dispatch",
        json.dumps({"message": message, "recipients": recipients, "id": dispatch_id}).encode(),
        {"authorization": f"Bearer {MESA_API_KEY}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def handle(event):
    """What is done about an event. An error makes the server send it again: everything here is done once by its id."""
    if event["type"] == "message" and event.get("user") and event["message"].get("t") == "ORDER":
        data = event["message"].get("d")
        item = data.get("item") if isinstance(data, dict) else None
        dispatch(f"order-{event['id']}", "ORDER_TAKEN", {"item": item}, [event["user"]])
    elif event["type"] == "undelivered":
        print(f"push {json.dumps(event['user'])}", flush=True)


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        length = int(self.headers.get("content-length", "0"))
        if length > BODY_BYTES_MAX:
            self.close_connection = True
            return self.answer(413)
        body = self.rfile.read(length)
        if not is_signed(self.headers, body):
            return self.answer(401)
        try:
            # In order, because a user's events come in order.
            for event in json.loads(body)["events"]:
                handle(event)
        except (OSError, urllib.error.URLError, ValueError, KeyError) as error:
            print(f"{error!r}", file=sys.stderr, flush=True)
            return self.answer(500)
        return self.answer(204)

    def answer(self, status):
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", PORT), Receiver)
print(f"listening on {server.server_address[1]}", flush=True)
server.serve_forever()
