'use strict';
// JSON Web Tokens made by hand, so that they can also be wrong.

const { createHmac } = require('node:crypto');

const encoded = (object) => Buffer.from(JSON.stringify(object)).toString('base64url');

/** A token with these claims; `alg` is what its header says and how it is signed. */
function token(claims, secret, { alg = 'HS256' } = {}) {
  const signed = `${encoded({ alg, typ: 'JWT' })}.${encoded(claims)}`;
  if (alg === 'none') return `${signed}.`;
  return `${signed}.${createHmac(alg.replace('HS', 'sha'), secret).update(signed).digest('base64url')}`;
}

/** Seconds since 1970. */
const now = () => Math.floor(Date.now() / 1000);

module.exports = { now, token };
