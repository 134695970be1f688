'use strict';
// A small client that resumes, with a fault that `client_conformance.test.js` chooses by the variable FAULT.

const WebSocket = require('ws');

const { MESA_URL, MESA_TOKEN, MESA_DEVICE, FAULT } = process.env;
const FINAL_CODES = [1000, 1002, 1003, 1007, 1008, 1009];

let attempts = 0;
let handled = 0;
let received = 0;

const print = (line) => console.log(JSON.stringify(line));

function connect() {
  const ws = new WebSocket(MESA_URL, { autoPong: FAULT !== 'no pong' });
  const send = (op, d) => ws.readyState === WebSocket.OPEN && ws.send(JSON.stringify({ op, d }));
  let silence;
  ws.on('message', (text) => {
    clearTimeout(silence);
    if (FAULT !== 'no watchdog') silence = setTimeout(() => ws.terminate(), 3_000);
    const { op, d, t, s } = JSON.parse(text);
    if (op === 1 && FAULT !== 'no op 11') send(11, {});
    else if (op === 10) send(2, { token: MESA_TOKEN, device: MESA_DEVICE, after: FAULT === 'no position' ? undefined : handled });
    else if (op === 22 && FAULT === 'resets at op 22') attempts = 0;
    else if (op === 13 && d.missed && FAULT !== 'no gaps') {
      print({ gap: d.missed });
      received = handled = d.missed.to;
    } else if (op === 0 || op >= 23) handle({ op, d, t, s }, send);
    else if (op === 11 && FAULT === 'passes op 11') print({ message: { op, d } });
  });
  ws.on('error', () => {});
  ws.on('close', (code) => {
    clearTimeout(silence);
    received = handled;
    attempts += 1;
    if (FINAL_CODES.includes(code) && FAULT !== 'comes back') setInterval(() => {}, 1000);
    else setTimeout(connect, FAULT === 'no backoff' ? 50 : Math.min(100 * 2 ** attempts, 30_000) * Math.random());
  });
}

function handle(message, send) {
  const { s } = message;
  if (s <= received && FAULT !== 'passes repeats') return;
  print({ message });
  attempts = 0;
  if (!s) return;
  received = handled = s;
  send(3, { s: FAULT === 'acknowledges too much' ? s + 1 : s });
}

connect();
