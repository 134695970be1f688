'use strict';
// Writes the other forms of `mesa.js`: `mesa.min.js`, without comments and with short names, and `mesa.cjs` with
// `mesa.d.cts`, for `require`. The server contains `mesa.min.js`, so that file is in the repository.

const fs = require('node:fs');
const path = require('node:path');

const LETTERS = 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ';

/** Splits a source without regular expressions into comments, strings, and code. Code in templates is code. */
function tokenize(source) {
  const tokens = [];
  /** Depth of braces at which each open template continues. */
  const templates = [];
  let depth = 0;
  let at = 0;
  const take = (type, pattern) => {
    pattern.lastIndex = at;
    const [text] = pattern.exec(source) ?? [];
    if (text === undefined) throw new Error(`unterminated ${type} at ${source.slice(at, at + 40)}`);
    tokens.push({ type, text });
    at += text.length;
    return text;
  };
  const takeTemplate = () => {
    if (take('string', /(?:[^`\\$]|\\[^]|\$(?!\{))*(?:`|\$\{)/y).endsWith('`')) return;
    depth += 1;
    templates.push(depth);
  };
  while (at < source.length) {
    const next = source[at];
    if (source.startsWith('//', at)) take('comment', /[^\n]*/y);
    else if (source.startsWith('/*', at)) take('comment', /\/\*[^]*?\*\//y);
    else if (next === "'") take('string', /'(?:[^'\\\n]|\\.)*'/y);
    else if (next === '"') take('string', /"(?:[^"\\\n]|\\.)*"/y);
    else if (next === '`') {
      take('string', /`/y);
      takeTemplate();
    } else if (next === '}' && depth === templates.at(-1)) {
      templates.pop();
      depth -= 1;
      take('string', /\}/y);
      takeTemplate();
    } else {
      if (next === '{') depth += 1;
      if (next === '}') depth -= 1;
      take('code', /[^'"`/{}]+|[{}/]/y);
    }
  }
  return tokens;
}

/** Removes white space that has no meaning. In the source each statement that is no block ends with a semicolon. */
function squeeze(code) {
  return code
    .replace(/\s*\n\s*/g, '\n')
    .replace(/ *([{}()[\];,:=?<>|&!*]) */g, '$1')
    .replace(/([{([;,:=?&|>])\n/g, '$1')
    .replace(/\n([}\])?:&|.])|(?<=\})\n/g, '$1')
    .replace(/;\}|,(?=[}\])])/g, (text) => text.slice(1))
    .replace(/(\d)_(?=\d)/g, '$1')
    .replace(/ (\+=|[-+/]) ?(?![-+])/g, '$1')
    .replace(/\bconst\b/g, 'let')
    .replace(/(?<!\w)\((\w+)\)=>/g, '$1=>');
}

/** Returns the source without comments and white space, with short names of private members and constants. */
function strip(source) {
  const literal = /^const ([A-Z_]+) = ([\d_]+|\[[\d, ]+\]|Number\.\w+);$/gm;
  const literals = new Map([...source.matchAll(literal)].map(([, name, value]) => [name, value]));
  const constants = [...source.matchAll(/^const ([A-Z_]+) =/gm)].map(([, name]) => name);
  const pattern = new RegExp(`#[A-Za-z]\\w*|(?<!\\w\\.)\\b(?:${constants.join('|')})\\b`, 'g');
  const tokens = tokenize(source.replace(literal, ''));
  const names = shortNames(tokens.filter(({ type }) => type === 'code').flatMap(({ text }) => text.match(pattern) ?? []));
  let stripped = '';
  let code = '';
  for (const { type, text } of [...tokens, { type: 'string', text: '' }]) {
    if (type === 'code') code += text;
    if (type !== 'string') continue;
    stripped += squeeze(code.replace(pattern, (name) => literals.get(name) ?? names.get(name))) + text;
    code = '';
  }
  return `${stripped.trim()}\n`;
}

/** Maps names to short ones: the more frequent, the shorter. */
function shortNames(uses) {
  const counts = new Map();
  for (const name of uses) counts.set(name, (counts.get(name) ?? 0) + 1);
  const sorted = [...counts.keys()].sort((one, other) => counts.get(other) - counts.get(one));
  const shorten = (name, at) => {
    const { length } = LETTERS;
    const short = LETTERS[at % length] + (LETTERS[Math.floor(at / length) - 1] ?? '');
    return [name, `${name.startsWith('#') ? '#' : '$'}${short}`];
  };
  return new Map(sorted.map(shorten));
}

/** Returns the source as a CommonJS module. */
function toCommonJs(source) {
  const names = [...source.matchAll(/^export (?:class|const|function) (\w+)/gm)].map(([, name]) => name);
  const body = source.replace(/^export default \w+;\n/m, '').replace(/^export /gm, '');
  const exported = `module.exports = { ${names.join(', ')}, default: Client };`;
  // By this mark compilers of `import` statements find the default export.
  return `'use strict';\n${body}\n${exported}\nObject.defineProperty(module.exports, '__esModule', { value: true });\n`;
}

const file = (name) => path.join(__dirname, name);

if (require.main === module) {
  const source = fs.readFileSync(file('mesa.js'), 'utf8');
  fs.writeFileSync(file('mesa.min.js'), strip(source));
  fs.writeFileSync(file('mesa.cjs'), toCommonJs(source));
  fs.copyFileSync(file('mesa.d.ts'), file('mesa.d.cts'));
}

module.exports = { strip, toCommonJs };
