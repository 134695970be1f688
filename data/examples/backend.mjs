// A backend in Node, on its standard library only. Receives orders of clients by webhook, and answers over the HTTP API.
//
//   export WEBHOOK_SECRET=$(openssl rand -hex 32) MESA_API_KEYS=$(openssl rand -hex 16)
//   echo "{ portal: { webhook: { url: 'http://127.0.0.1:8080/', secret: '$WEBHOOK_SECRET', allowPrivate: true } } }" > mesa.json5
//   mesa serve --dev --config mesa.json5 &
//   MESA_API_KEY=$MESA_API_KEYS node backend.mjs &
//   mesa connect --as alice      # then type {"t":"ORDER","d":{"item":"tea"}}
//
// Alice receives ORDER_TAKEN. `MESA_URL` and `PORT` change the addresses.

import { createHmac, timingSafeEqual } from 'node:crypto';
import { createServer } from 'node:http';

const { MESA_URL = 'http://127.0.0.1:4000', MESA_API_KEY, WEBHOOK_SECRET, PORT = '8080' } = process.env;
if (!MESA_API_KEY || !WEBHOOK_SECRET) {
  console.error('Set MESA_API_KEY and WEBHOOK_SECRET.');
  process.exit(1);
}

/** Seconds for which a signature is valid. A recorded request cannot be replayed later. */
const SIGNATURE_TTL = 300;
/** Bytes of a request. The server sends about `portal.webhook.maxBytes`, 1 MiB by default. */
const BODY_BYTES_MAX = 4 << 20;

/** Returns whether the server signed this request within the last `SIGNATURE_TTL` seconds. */
function isSigned(headers, body) {
  const timestamp = headers['mesa-timestamp'] ?? '';
  if (!/^\d+$/.test(timestamp) || Math.abs(Date.now() / 1000 - Number(timestamp)) > SIGNATURE_TTL) return false;
  const expected = `v1=${createHmac('sha256', WEBHOOK_SECRET).update(`${timestamp}.`).update(body).digest('hex')}`;
  const actual = Buffer.from(headers['mesa-signature'] ?? '');
  return actual.length === expected.length && timingSafeEqual(actual, Buffer.from(expected));
}

/** Dispatches a message. The idempotency id makes a retry after a lost answer harmless. */
async function dispatch(id, t, d, recipients) {
  const response = await fetch(`${MESA_URL}/v1/dispatch`, {
    method: 'POST',
    headers: { authorization: `Bearer ${MESA_API_KEY}`, 'content-type': 'application/json' },
    body: JSON.stringify({ message: { op: 0, d, t }, recipients, id }),
    signal: AbortSignal.timeout(10_000),
  });
  const result = await response.json();
  if (!response.ok) throw new Error(`${result.error.code}: ${result.error.message}`);
  return result;
}

/** Handles an event. After an error the server resends it, so the id of the event is the idempotency id here. */
async function handle(event) {
  if (event.type === 'message' && event.user && event.message.t === 'ORDER') {
    await dispatch(`order-${event.id}`, 'ORDER_TAKEN', { item: event.message.d?.item ?? null }, [event.user]);
  } else if (event.type === 'undelivered') {
    console.log(`push ${JSON.stringify(event.user)}`);
  }
}

async function readBody(request) {
  const chunks = [];
  let bytes = 0;
  for await (const chunk of request) {
    bytes += chunk.length;
    if (bytes > BODY_BYTES_MAX) throw new Error('the request body is too large');
    chunks.push(chunk);
  }
  return Buffer.concat(chunks);
}

const server = createServer(async (request, response) => {
  try {
    const body = await readBody(request);
    if (!isSigned(request.headers, body)) return response.writeHead(401).end();
    // One after another: the events of a user are in order.
    for (const event of JSON.parse(body).events) await handle(event);
    response.writeHead(204).end();
  } catch (error) {
    console.error(`${error}`);
    response.writeHead(500).end();
  }
});

server.listen(Number(PORT), '127.0.0.1', () => console.log(`listening on ${server.address().port}`));
