'use strict';
// Things no well-behaved client sends. Each has the close codes that are right for it.

const { OPCODE, frame, text } = require('./frames');

const NOT_JSON = [1007];
const SHAPE = [1008];
/** Where both readings are right: it is no JSON that we read, and it is no frame that we know. */
const EITHER = [1007, 1008];
const BINARY = [1003];
const PROTOCOL = [1002];
const TOO_LARGE = [1009];

const nested = (depth, open, close, inside = '') => open.repeat(depth) + inside + close.repeat(depth);

/** Texts that end the connection. */
const TEXTS = [
  ['nothing', '', NOT_JSON],
  ['a space', ' ', NOT_JSON],
  ['a word', 'hello', NOT_JSON],
  ['half an object', '{"op":0,"d":{', NOT_JSON],
  ['an object and something', '{"op":0,"d":{}}x', NOT_JSON],
  ['two objects', '{"op":0,"d":{}}{"op":0,"d":{}}', NOT_JSON],
  ['single quotes', "{'op':0}", NOT_JSON],
  ['a trailing comma', '{"op":0,"d":{},}', NOT_JSON],
  ['a comment', '{"op":0,/* */"d":{}}', NOT_JSON],
  ['NaN', '{"op":NaN}', NOT_JSON],
  ['a NUL byte', '\u0000', NOT_JSON],
  ['a NUL byte within a string', '{"op":0,"d":{},"t":"a\u0000b"}', NOT_JSON],
  ['a byte order mark', '\uFEFF{"op":0,"d":{}}', NOT_JSON],
  ['a string that never ends', `{"op":0,"t":"${'x'.repeat(50_000)}`, NOT_JSON],
  ['an unknown escape', '{"op":0,"t":"\\x41"}', NOT_JSON],
  ['null', 'null', SHAPE],
  ['true', 'true', SHAPE],
  ['a number', '7', SHAPE],
  ['a string', '"op"', SHAPE],
  ['an empty array', '[]', SHAPE],
  ['an array of frames', '[{"op":0,"d":{}}]', SHAPE],
  ['an object without op', '{}', SHAPE],
  ['an op that is a string', '{"op":"0","d":{}}', SHAPE],
  ['an op that is null', '{"op":null,"d":{}}', SHAPE],
  ['an op that is an array', '{"op":[0],"d":{}}', SHAPE],
  ['a negative op', '{"op":-1,"d":{}}', SHAPE],
  ['half an op', '{"op":0.5,"d":{}}', SHAPE],
  ['an op beyond all numbers', '{"op":1e400,"d":{}}', EITHER],
  ['an op of a thousand digits', `{"op":${'9'.repeat(1000)},"d":{}}`, EITHER],
  ['a type that is a number', '{"op":0,"d":{},"t":5}', SHAPE],
  ['a type that is an object', '{"op":0,"d":{},"t":{}}', SHAPE],
  ['arrays 20,000 deep', nested(20_000, '[', ']'), EITHER],
  ['objects 8,000 deep', nested(8_000, '{"a":', '}', '1'), EITHER],
  ['data 20,000 deep', `{"op":0,"d":${nested(20_000, '[', ']')}}`, EITHER],
  ['arrays that never close', '['.repeat(60_000), EITHER],
  ['a text too large', `{"op":0,"d":{"x":"${'x'.repeat(70_000)}"}}`, TOO_LARGE],
];

/** Texts that end the connection of one who has yet to authenticate. */
const AUTHENTICATIONS = [
  ['an authentication without data', '{"op":2}', SHAPE],
  ['an authentication by a string', '{"op":2,"d":"alice"}', SHAPE],
  ['an authentication by an array', '{"op":2,"d":["alice"]}', SHAPE],
  ['an authentication by null', '{"op":2,"d":null}', SHAPE],
  ['an authentication with a NUL', '{"op":2,"d":{"token":"a\\u0000b"}}', SHAPE],
  ['an authentication with half a character', '{"op":2,"d":{"token":"\\udc00"}}', EITHER],
  ['shouldSync that is a word', '{"op":2,"d":{"token":"mallory","shouldSync":"yes"}}', SHAPE],
  ['an authentication 3,000 deep', `{"op":2,"d":{"token":"mallory","x":${nested(3_000, '[', ']')}}}`, EITHER],
];

const invalid = Buffer.from([0x7b, 0x22, 0xff, 0xfe, 0x22, 0x7d]);
const closing = (code, reason = '') => {
  const head = Buffer.alloc(2);
  head.writeUInt16BE(code);
  return frame(OPCODE.CLOSE, Buffer.concat([head, Buffer.from(reason)]));
};

/** Bytes that end the connection. */
const BYTES = [
  ['a binary frame', frame(OPCODE.BINARY, '{"op":0,"d":{}}'), BINARY],
  ['an empty binary frame', frame(OPCODE.BINARY, ''), BINARY],
  ['a binary message in pieces', Buffer.concat([
    frame(OPCODE.BINARY, 'a', { fin: false }), frame(OPCODE.CONTINUATION, 'b')]), BINARY],
  ['invalid UTF-8', text(invalid), NOT_JSON],
  ['half a surrogate as bytes', text(Buffer.from([0x22, 0xed, 0xa0, 0x80, 0x22])), NOT_JSON],
  ['an overlong slash', text(Buffer.from([0x22, 0xc0, 0xaf, 0x22])), NOT_JSON],
  ['invalid UTF-8 in pieces', Buffer.concat([
    text(invalid.subarray(0, 3), { fin: false }), frame(OPCODE.CONTINUATION, invalid.subarray(3))]), NOT_JSON],
  ['garbage in pieces', Buffer.concat([
    text('{"op', { fin: false }), frame(OPCODE.CONTINUATION, '\u{1F600}', { fin: false }), frame(OPCODE.CONTINUATION, '}')]), NOT_JSON],
  ['a frame without a mask', text('{"op":0,"d":{}}', { masked: false }), PROTOCOL],
  ['the first reserved bit', text('{"op":0,"d":{}}', { reserved: 4 }), PROTOCOL],
  ['all reserved bits', text('{"op":0,"d":{}}', { reserved: 7 }), PROTOCOL],
  ['a reserved data opcode', frame(3, '{"op":0,"d":{}}'), PROTOCOL],
  ['a reserved control opcode', frame(11, ''), PROTOCOL],
  ['a continuation of nothing', frame(OPCODE.CONTINUATION, '{"op":0,"d":{}}'), PROTOCOL],
  ['a text within a text', Buffer.concat([text('{"op"', { fin: false }), text(':0}')]), PROTOCOL],
  ['a ping in pieces', frame(OPCODE.PING, 'x', { fin: false }), PROTOCOL],
  ['a ping too long', frame(OPCODE.PING, 'x'.repeat(126)), PROTOCOL],
  ['a close frame of one byte', frame(OPCODE.CLOSE, 'x'), PROTOCOL],
  ['a close code nobody may send', closing(1005), PROTOCOL],
  ['a close code below all codes', closing(7), PROTOCOL],
  ['a length of 2^62 bytes', text('x', { length: 2n ** 62n }), TOO_LARGE],
  ['a length of 2^63 bytes', text('x', { length: 2n ** 63n }), [...PROTOCOL, ...TOO_LARGE]],
  ['a length of 4 GiB', text('x', { length: 2n ** 32n }), TOO_LARGE],
  ['a text of one byte too many', text('x'.repeat(65_537)), TOO_LARGE],
  ['pieces too large together', Buffer.concat([
    text('x'.repeat(40_000), { fin: false }), frame(OPCODE.CONTINUATION, 'x'.repeat(40_000), { fin: false })]), TOO_LARGE],
];

/** What may be ignored or refused, as long as nobody else notices. */
const ODD = [
  ['a hello from the client', '{"op":10,"d":{}}'],
  ['an op 22 from the client', '{"op":22,"d":{"id":"root"}}'],
  ['an event for backends', '{"op":5,"d":{},"t":"DISCONNECT_CLIENT"}'],
  ['a type that is half a character', '{"op":0,"d":{},"t":"\\ud800"}'],
  ['an unknown op', '{"op":99,"d":{}}'],
  ['the largest op', '{"op":18446744073709551615,"d":{}}'],
  ['an op given twice', '{"op":0,"op":2,"d":{"token":"mallory"}}'],
  ['unknown keys', '{"op":0,"d":{},"__proto__":{"op":5},"constructor":1}'],
  ['a message with a sequence', '{"op":0,"d":{},"s":-1}'],
  ['a message without data', '{"op":0}'],
  ['a message whose data is an array', '{"op":0,"d":[1,2]}'],
  ['a receipt of nothing', '{"op":11}'],
  ['a version that is a number', '{"op":0,"d":{"v":1},"t":"CLIENT_VERSION"}'],
];

module.exports = { AUTHENTICATIONS, BYTES, ODD, TEXTS };
