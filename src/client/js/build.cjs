'use strict';
// Writes `mesa.cjs`, the form of `mesa.js` for `require`, and its types `mesa.d.cts`.

const fs = require('node:fs');
const path = require('node:path');

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
  fs.writeFileSync(file('mesa.cjs'), toCommonJs(source));
  fs.copyFileSync(file('mesa.d.ts'), file('mesa.d.cts'));
}

module.exports = { toCommonJs };
