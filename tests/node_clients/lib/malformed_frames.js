'use strict';
// Malformed and unusual frames. Each row has a name, the content, and the close codes that are correct for it.

const { OPCODE, encodeFrame, encodeText } = require('./frames');

const NOT_JSON = [1007];
const NOT_A_FRAME = [1008];
/** Both codes are correct: the server may reject the text as JSON, or as a frame. */
const EITHER = [1007, 1008];
const BINARY = [1003];
const PROTOCOL_ERROR = [1002];
const TOO_LARGE = [1009];

const nested = (depth, open, close, inside = '') => open.repeat(depth) + inside + close.repeat(depth);

/** Text frames that close the connection. */
const TEXTS = [
  ['an empty text', '', NOT_JSON],
  ['a space', ' ', NOT_JSON],
  ['a word', 'hello', NOT_JSON],
  ['an incomplete object', '{"op":0,"d":{', NOT_JSON],
  ['an object with trailing text', '{"op":0,"d":{}}x', NOT_JSON],
  ['two objects', '{"op":0,"d":{}}{"op":0,"d":{}}', NOT_JSON],
  ['single quotes', "{'op':0}", NOT_JSON],
  ['a trailing comma', '{"op":0,"d":{},}', NOT_JSON],
  ['a comment', '{"op":0,/* */"d":{}}', NOT_JSON],
  ['NaN', '{"op":NaN}', NOT_JSON],
  ['a NUL byte', '\u0000', NOT_JSON],
  ['a NUL byte within a string', '{"op":0,"d":{},"t":"a\u0000b"}', NOT_JSON],
  ['a byte order mark', '\uFEFF{"op":0,"d":{}}', NOT_JSON],
  ['an unterminated string', `{"op":0,"t":"${'x'.repeat(50_000)}`, NOT_JSON],
  ['an unknown escape', '{"op":0,"t":"\\x41"}', NOT_JSON],
  ['null', 'null', NOT_A_FRAME],
  ['true', 'true', NOT_A_FRAME],
  ['a number', '7', NOT_A_FRAME],
  ['a string', '"op"', NOT_A_FRAME],
  ['an empty array', '[]', NOT_A_FRAME],
  ['an array of frames', '[{"op":0,"d":{}}]', NOT_A_FRAME],
  ['an object without op', '{}', NOT_A_FRAME],
  ['an op that is a string', '{"op":"0","d":{}}', NOT_A_FRAME],
  ['an op that is null', '{"op":null,"d":{}}', NOT_A_FRAME],
  ['an op that is an array', '{"op":[0],"d":{}}', NOT_A_FRAME],
  ['a negative op', '{"op":-1,"d":{}}', NOT_A_FRAME],
  ['a fractional op', '{"op":0.5,"d":{}}', NOT_A_FRAME],
  ['an op that overflows a number', '{"op":1e400,"d":{}}', EITHER],
  ['an op of a thousand digits', `{"op":${'9'.repeat(1000)},"d":{}}`, EITHER],
  ['a type that is a number', '{"op":0,"d":{},"t":5}', NOT_A_FRAME],
  ['a type that is an object', '{"op":0,"d":{},"t":{}}', NOT_A_FRAME],
  ['arrays nested 20,000 deep', nested(20_000, '[', ']'), EITHER],
  ['objects nested 8,000 deep', nested(8_000, '{"a":', '}', '1'), EITHER],
  ['data nested 20,000 deep', `{"op":0,"d":${nested(20_000, '[', ']')}}`, EITHER],
  ['unclosed arrays', '['.repeat(60_000), EITHER],
  ['a text above the size limit', `{"op":0,"d":{"x":"${'x'.repeat(70_000)}"}}`, TOO_LARGE],
];

/** Text frames that close the connection of an unauthenticated client. */
const AUTHENTICATIONS = [
  ['an authentication without data', '{"op":2}', NOT_A_FRAME],
  ['an authentication whose data is a string', '{"op":2,"d":"alice"}', NOT_A_FRAME],
  ['an authentication whose data is an array', '{"op":2,"d":["alice"]}', NOT_A_FRAME],
  ['an authentication whose data is null', '{"op":2,"d":null}', NOT_A_FRAME],
  ['an authentication whose token has a NUL', '{"op":2,"d":{"token":"a\\u0000b"}}', NOT_A_FRAME],
  ['an authentication whose token has a lone surrogate', '{"op":2,"d":{"token":"\\udc00"}}', EITHER],
  ['an authentication whose shouldSync is a string', '{"op":2,"d":{"token":"mallory","shouldSync":"yes"}}', NOT_A_FRAME],
  ['an authentication nested 3,000 deep', `{"op":2,"d":{"token":"mallory","x":${nested(3_000, '[', ']')}}}`, EITHER],
];

const INVALID_UTF8 = Buffer.from([0x7b, 0x22, 0xff, 0xfe, 0x22, 0x7d]);
const closeFrame = (code, reason = '') => {
  const codeBytes = Buffer.alloc(2);
  codeBytes.writeUInt16BE(code);
  return encodeFrame(OPCODE.CLOSE, Buffer.concat([codeBytes, Buffer.from(reason)]));
};

/** Bytes that close the connection. */
const BYTES = [
  ['a binary frame', encodeFrame(OPCODE.BINARY, '{"op":0,"d":{}}'), BINARY],
  ['an empty binary frame', encodeFrame(OPCODE.BINARY, ''), BINARY],
  ['a fragmented binary message', Buffer.concat([
    encodeFrame(OPCODE.BINARY, 'a', { fin: false }), encodeFrame(OPCODE.CONTINUATION, 'b')]), BINARY],
  ['invalid UTF-8', encodeText(INVALID_UTF8), NOT_JSON],
  ['a lone surrogate in UTF-8 bytes', encodeText(Buffer.from([0x22, 0xed, 0xa0, 0x80, 0x22])), NOT_JSON],
  ['an overlong encoding of a slash', encodeText(Buffer.from([0x22, 0xc0, 0xaf, 0x22])), NOT_JSON],
  ['invalid UTF-8 in fragments', Buffer.concat([
    encodeText(INVALID_UTF8.subarray(0, 3), { fin: false }),
    encodeFrame(OPCODE.CONTINUATION, INVALID_UTF8.subarray(3))]), NOT_JSON],
  ['invalid JSON in fragments', Buffer.concat([
    encodeText('{"op', { fin: false }),
    encodeFrame(OPCODE.CONTINUATION, '\u{1F600}', { fin: false }),
    encodeFrame(OPCODE.CONTINUATION, '}')]), NOT_JSON],
  ['a frame without a mask', encodeText('{"op":0,"d":{}}', { masked: false }), PROTOCOL_ERROR],
  ['the first reserved bit', encodeText('{"op":0,"d":{}}', { reserved: 4 }), PROTOCOL_ERROR],
  ['all reserved bits', encodeText('{"op":0,"d":{}}', { reserved: 7 }), PROTOCOL_ERROR],
  ['a reserved data opcode', encodeFrame(3, '{"op":0,"d":{}}'), PROTOCOL_ERROR],
  ['a reserved control opcode', encodeFrame(11, ''), PROTOCOL_ERROR],
  ['a continuation frame without a message', encodeFrame(OPCODE.CONTINUATION, '{"op":0,"d":{}}'), PROTOCOL_ERROR],
  ['a text frame within a fragmented text', Buffer.concat([
    encodeText('{"op"', { fin: false }), encodeText(':0}')]), PROTOCOL_ERROR],
  ['a fragmented ping', encodeFrame(OPCODE.PING, 'x', { fin: false }), PROTOCOL_ERROR],
  ['a ping of 126 bytes', encodeFrame(OPCODE.PING, 'x'.repeat(126)), PROTOCOL_ERROR],
  ['a close frame of one byte', encodeFrame(OPCODE.CLOSE, 'x'), PROTOCOL_ERROR],
  ['a close code that must not be sent', closeFrame(1005), PROTOCOL_ERROR],
  ['a close code below 1000', closeFrame(7), PROTOCOL_ERROR],
  ['a length of 2^62 bytes', encodeText('x', { length: 2n ** 62n }), TOO_LARGE],
  ['a length of 2^63 bytes', encodeText('x', { length: 2n ** 63n }), [...PROTOCOL_ERROR, ...TOO_LARGE]],
  ['a length of 4 GiB', encodeText('x', { length: 2n ** 32n }), TOO_LARGE],
  ['a text one byte above the size limit', encodeText('x'.repeat(65_537)), TOO_LARGE],
  ['fragments that exceed the size limit together', Buffer.concat([
    encodeText('x'.repeat(40_000), { fin: false }),
    encodeFrame(OPCODE.CONTINUATION, 'x'.repeat(40_000), { fin: false })]), TOO_LARGE],
];

/** Texts that the server may ignore or reject, without an effect on other connections. */
const UNUSUAL = [
  ['a hello from the client', '{"op":10,"d":{}}'],
  ['an op 22 from the client', '{"op":22,"d":{"id":"root"}}'],
  ['an event for backends', '{"op":5,"d":{},"t":"DISCONNECT_CLIENT"}'],
  ['a type that is a lone surrogate', '{"op":0,"d":{},"t":"\\ud800"}'],
  ['an unknown op', '{"op":99,"d":{}}'],
  ['the largest op', '{"op":18446744073709551615,"d":{}}'],
  ['an op given twice', '{"op":0,"op":2,"d":{"token":"mallory"}}'],
  ['unknown keys', '{"op":0,"d":{},"__proto__":{"op":5},"constructor":1}'],
  ['a message with a sequence', '{"op":0,"d":{},"s":-1}'],
  ['a message without data', '{"op":0}'],
  ['a message whose data is an array', '{"op":0,"d":[1,2]}'],
  ['an op 11 that was not requested', '{"op":11}'],
  ['a version that is a number', '{"op":0,"d":{"v":1},"t":"CLIENT_VERSION"}'],
];

module.exports = { AUTHENTICATIONS, BYTES, TEXTS, UNUSUAL };
