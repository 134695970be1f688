// A backend in Node, with nothing but its standard library: takes orders from clients by webhook, answers over the HTTP API.
//
//   MESA_URL=http://127.0.0.1:4000 MESA_API_KEY=… WEBHOOK_SECRET=… PORT=8080 node backend.mjs
//
// The server's configuration names it:
//
//   portal: { webhook: { url: 'http://127.0.0.1:8080/', secret: '…', allowPrivate: true } }

import { createHmac, timingSafeEqual } from 'node:crypto';
import { createServer } from 'node:http';

const { MESA_URL = 'http://127.0.0.1:4000', MESA_API_KEY, WEBHOOK_SECRET, PORT = '8080' } = process.env;

/** Seconds that a signature holds: who records a request cannot play it again later. */
const SIGNATURE_AGE_MAX = 300;
/** More than the server sends in one request (portal.webhook.maxBytes). */
const BODY_BYTES_MAX = 4 << 20;

/** Whether a request was signed by the server, a moment ago. */
function isSigned(headers, body) {
  const timestamp = headers['mesa-timestamp'] ?? '';
  if (!/^\d+$/.test(timestamp) || Math.abs(Date.now() / 1000 - Number(timestamp)) > SIGNATURE_AGE_MAX) return false;
  const expected = `v1=${createHmac('sha256', WEBHOOK_SECRET).update(`${timestamp}.`).update(body).digest('hex')}`;
  const shown = Buffer.from(headers['mesa-signature'] ?? '');
  return shown.length === expected.length && timingSafeEqual(shown, Buffer.from(expected));
}

/** Sends a message. The id makes one of a dispatch that is said again because its answer was lost. */
async function dispatch(id, t, d, recipients) {
  const response = await fetch(`${MESA_URL}/v1/dispatch`, {
    method: 'POST',
    headers: { authorization: `Bearer ${MESA_API_KEY}`, 'content-type': 'application/json' },
    body: JSON.stringify({ message: { op: 0, d, t }, recipients, id }),
    signal: AbortSignal.timeout(10_000),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(`${answer.error.code}: ${answer.error.message}`);
  return answer;
}

/** What is done about an event. An error makes the server send it again: everything here is done once by its id. */
async function handle(event) {
  if (event.type === 'message' && event.user && event.message.t === 'ORDER') {
    await dispatch(`order-${event.id}`, 'ORDER_TAKEN', { item: event.message.d?.item ?? null }, [event.user]);
  } else if (event.type === 'undelivered') {
    console.log(`push ${JSON.stringify(event.user)}`);
  }
}

async function body(request) {
  const pieces = [];
  let bytes = 0;
  for await (const piece of request) {
    bytes += piece.length;
    if (bytes > BODY_BYTES_MAX) throw new Error('too large');
    pieces.push(piece);
  }
  return Buffer.concat(pieces);
}

const server = createServer(async (request, response) => {
  try {
    const text = await body(request);
    if (!isSigned(request.headers, text)) return response.writeHead(401).end();
    // In order, because a user's events come in order.
    for (const event of JSON.parse(text).events) await handle(event);
    response.writeHead(204).end();
  } catch (error) {
    console.error(`${error}`);
    response.writeHead(500).end();
  }
});

server.listen(Number(PORT), '127.0.0.1', () => console.log(`listening on ${server.address().port}`));
