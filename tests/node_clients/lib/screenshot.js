'use strict';
// Saves pictures of pages.

const fs = require('node:fs');
const path = require('node:path');

/**
 * Saves what a page shows as NAME.png, if `MESA_SCREENSHOTS` names a directory.
 *
 * `metrics` are the size and scale of the window, and `features` the media features, as DevTools names them.
 */
async function saveScreenshot(page, name, { metrics, features } = {}) {
  const directory = process.env.MESA_SCREENSHOTS;
  if (!directory) return;
  if (metrics) await page.call('Emulation.setDeviceMetricsOverride', metrics);
  if (features) await page.call('Emulation.setEmulatedMedia', { features });
  const { data } = await page.call('Page.captureScreenshot', { format: 'png' });
  fs.writeFileSync(path.join(directory, `${name}.png`), Buffer.from(data, 'base64'));
}

module.exports = { saveScreenshot };
