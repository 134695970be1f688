"""A backend in Python 3, on its standard library only. Receives orders of clients by webhook, and answers over the
HTTP API.

    export WEBHOOK_SECRET=$(openssl rand -hex 32) MESA_API_KEYS=$(openssl rand -hex 16)
    echo "{ portal: { webhook: { url: 'http://127.0.0.1:8080/', secret: '$WEBHOOK_SECRET', allowPrivate: true } } }" > mesa.json5
    mesa serve --dev --config mesa.json5 &
    MESA_API_KEY=$MESA_API_KEYS python3 backend.py &
    mesa connect --as alice      # then type {"t":"ORDER","d":{"item":"tea"}}

Alice receives ORDER_TAKEN. `MESA_URL` and `PORT` change the addresses.
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
if not {"MESA_API_KEY", "WEBHOOK_SECRET"} <= os.environ.keys():
    sys.exit("Set MESA_API_KEY and WEBHOOK_SECRET.")
MESA_API_KEY = os.environ["MESA_API_KEY"]
WEBHOOK_SECRET = os.environ["WEBHOOK_SECRET"].encode()
PORT = int(os.environ.get("PORT", "8080"))

# Seconds for which a signature is valid. A recorded request cannot be replayed later.
SIGNATURE_TTL = 300
# Bytes of a request. The server sends about `portal.webhook.maxBytes`, 1 MiB by default.
BODY_BYTES_MAX = 4 << 20


def is_signed(headers, body):
    """Returns whether the server signed this request within the last `SIGNATURE_TTL` seconds."""
    timestamp = headers.get("mesa-timestamp", "")
    if not (timestamp.isascii() and timestamp.isdigit()) or abs(time.time() - int(timestamp)) > SIGNATURE_TTL:
        return False
    signed = hmac.new(WEBHOOK_SECRET, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(f"v1={signed}".encode(), headers.get("mesa-signature", "").encode())


def dispatch(dispatch_id, kind, data, recipients):
    """Dispatches a message. The idempotency id makes a retry after a lost answer harmless."""
    message = {"op": 0, "d": data, "t": kind}
    request = urllib.request.Request(
        f"{MESA_URL}/v1/dispatch",
        json.dumps({"message": message, "recipients": recipients, "id": dispatch_id}).encode(),
        {"authorization": f"Bearer {MESA_API_KEY}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def handle(event):
    """Handles an event. After an error the server resends it, so the id of the event is the idempotency id here."""
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
            return self.respond(413)
        body = self.rfile.read(length)
        if not is_signed(self.headers, body):
            return self.respond(401)
        try:
            # One after another: the events of a user are in order.
            for event in json.loads(body)["events"]:
                handle(event)
        except (OSError, urllib.error.URLError, ValueError, KeyError) as error:
            print(f"{error!r}", file=sys.stderr, flush=True)
            return self.respond(500)
        return self.respond(204)

    def respond(self, status):
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", PORT), Receiver)
print(f"listening on {server.server_address[1]}", flush=True)
server.serve_forever()
