// Calls the server. Every request has the session's token, which no page of another origin knows.

/** Time for a response. */
const REQUEST_TIMEOUT = 10_000;

/** Bytes of a line in a stream of events; with more the stream is opened again. */
const LINE_MAX = 32 << 20;

let csrf;

/** The server has answered with an error. */
export class ApiError extends Error {
  constructor(status, { code, message } = {}) {
    super(message ?? `the server answered with the status ${status}`);
    Object.assign(this, { status, code });
  }
}

/** No response has come. */
export class UnreachableError extends Error {
  constructor() {
    super('The server cannot be reached.');
  }
}

/** Dispatched at `events` when the session has ended. */
export const events = new EventTarget();

/** Parses JSON without a change of its numbers, where the browser can. */
export const parse = (text) => JSON.parse(text, (_, value, context) => {
  const isInexact = typeof value === 'number' && context?.source !== undefined && String(value) !== context.source;
  return isInexact && JSON.rawJSON ? JSON.rawJSON(context.source) : value;
});

async function request(method, path, { body, signal, exact } = {}) {
  const headers = { ...(csrf && { 'x-csrf-token': csrf }), ...(body !== undefined && { 'content-type': 'application/json' }) };
  let response;
  try {
    response = await fetch(`admin/${path}`, { method, headers, body, signal, cache: 'no-store', redirect: 'error' });
    if (exact === 'stream' && response.ok) return response;
    const text = await response.text();
    if (response.ok) return exact ? parse(text) : JSON.parse(text);
    throw new ApiError(response.status, JSON.parse(text).error);
  } catch (error) {
    if (error instanceof ApiError) {
      if (error.code === 'no_session') events.dispatchEvent(new Event('ended'));
      throw error;
    }
    // A proxy answers with a page of its own while the server is away.
    throw new UnreachableError();
  }
}

/** Calls an endpoint of the API. `body` is JSON text. `exact` leaves numbers in messages as they are. */
export const call = (method, path, { body, exact, timeout = REQUEST_TIMEOUT } = {}) =>
  request(method, `v1/${path}`, { body, exact, signal: AbortSignal.timeout(timeout) });

/** Returns the path of a user. */
export const userPath = (id, more = '') => `users/${encodeURIComponent(id)}${more}`;

/** Returns `{ open, csrf, version }`, and takes on a session that exists. */
export async function readSession() {
  const session = await request('GET', 'session', { signal: AbortSignal.timeout(REQUEST_TIMEOUT) });
  csrf = session.csrf;
  return session;
}

/** Begins a session. */
export async function logIn(password) {
  const session = await request('POST', 'session', {
    body: JSON.stringify({ password }),
    // A wrong password is answered after a delay.
    signal: AbortSignal.timeout(2 * REQUEST_TIMEOUT),
  });
  csrf = session.csrf;
}

/** Ends the session. */
export async function logOut() {
  try {
    await request('DELETE', 'session', { signal: AbortSignal.timeout(REQUEST_TIMEOUT) });
  } finally {
    csrf = undefined;
  }
}

/** Reads client events, until `signal` aborts or the connection breaks. Calls `opened` once the stream is open. */
export async function* streamEvents(signal, opened) {
  const response = await request('GET', 'v1/events?observe=true', { signal, exact: 'stream' });
  opened();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let partial = '';
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (partial + value).split('\n');
      partial = lines.pop();
      for (const line of lines) if (line.startsWith('data: ')) yield parse(line.slice(6));
      if (partial.length > LINE_MAX) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
