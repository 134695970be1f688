'use strict';
// Crafts JSON Web Tokens, valid and invalid.

const { createHmac } = require('node:crypto');

const encode = (object) => Buffer.from(JSON.stringify(object)).toString('base64url');

/** Returns a token with these claims. `alg` is the algorithm in its header and of its signature; `none`: unsigned. */
function createToken(claims, secret, { alg = 'HS256' } = {}) {
  const signed = `${encode({ alg, typ: 'JWT' })}.${encode(claims)}`;
  if (alg === 'none') return `${signed}.`;
  return `${signed}.${createHmac(alg.replace('HS', 'sha'), secret).update(signed).digest('base64url')}`;
}

/** Returns the time in whole seconds since 1970, as in `exp`. */
const nowSeconds = () => Math.floor(Date.now() / 1000);

module.exports = { createToken, nowSeconds };
