'use strict';
// Opens the admin page in a browser, and checks what it shows.

const assert = require('node:assert/strict');
const { startBrowser } = require('./browser');
const { saveScreenshot } = require('./screenshot');

/** Contrast of text that WCAG 2 demands at level AA. */
const CONTRAST_MIN = 4.5;

/** Roles of what a person can operate or look at, which needs a name. */
const NAMED_ROLES = ['button', 'checkbox', 'combobox', 'dialog', 'image', 'img', 'link', 'searchbox', 'table', 'textbox'];

/** Returns the visible texts and controls of the page with too little contrast, as sentences. */
const findLowContrast = (minimum) => {
  const parse = (color) => {
    const [red, green, blue, alpha = 1] = color.match(/[\d.]+/g).map(Number);
    return { channels: [red, green, blue], alpha };
  };
  const over = (front, back) => front.channels.map((each, at) => each * front.alpha + back[at] * (1 - front.alpha));
  const background = (element) => {
    const layers = [];
    for (let each = element; each; each = each.parentElement) {
      const layer = parse(getComputedStyle(each).backgroundColor);
      layers.push(layer);
      if (layer.alpha === 1) break;
    }
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const luminance = (channels) => {
    const linear = channels.map((each) => (each / 255 <= 0.03928 ? each / 255 / 12.92 : ((each / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim());
  const isShown = (element) => element.checkVisibility() && !element.closest('.hidden, option, :disabled');
  return [...document.body.querySelectorAll('*')].filter((each) => isShown(each) && (hasText(each) || each.matches('input, select, textarea')))
    .map((each) => {
      const back = background(each);
      const [light, dark] = [luminance(over(parse(getComputedStyle(each).color), back)), luminance(back)].sort((a, b) => b - a);
      return { ratio: (light + 0.05) / (dark + 0.05), text: `${each.tagName} "${each.textContent.trim().slice(0, 40)}"` };
    })
    .filter(({ ratio }) => ratio < minimum)
    .map(({ ratio, text }) => `${text} has a contrast of ${ratio.toFixed(2)}`);
};

/** Opens a tab that collects what must not happen: errors, and requests to other hosts. */
async function openAdminPage(t, address) {
  const browser = await startBrowser(t);
  const page = await browser.openPage();
  const problems = [];
  const { origin } = new URL(address);
  page.on('Log.entryAdded', ({ entry }) => entry.level === 'error' && problems.push(`${entry.text} ${entry.url ?? ''}`));
  page.on('Runtime.consoleAPICalled', ({ type, args }) => {
    if (['error', 'warning', 'assert'].includes(type)) problems.push(`console.${type}: ${args.map(({ value }) => value)}`);
  });
  page.on('Network.requestWillBeSent', ({ request }) => {
    if (!request.url.startsWith(origin) && !request.url.startsWith('data:')) problems.push(`request to ${request.url}`);
  });
  await page.call('Log.enable');
  await page.call('Network.enable');
  await page.navigate(`${address}admin`);
  /** Asserts that nothing went wrong, but for errors that a pattern describes. */
  page.assertNoProblems = (...expected) => {
    const unexpected = [...problems, ...page.exceptions].filter((each) => !expected.some((pattern) => pattern.test(each)));
    assert.deepEqual(unexpected, []);
  };
  return page;
}

/** Logs in with the login form. */
async function logIn(page, password) {
  await page.waitUntil(`document.activeElement?.id === 'password'`);
  await page.call('Input.insertText', { text: password });
  await page.press('Enter');
}

/** Shows a view by its address. */
async function showView(page, hash, heading) {
  await page.run(`location.hash = ${JSON.stringify(hash)}`);
  await page.waitUntil(`document.querySelector('h1')?.textContent === ${JSON.stringify(heading)}`);
}

/** Clicks the button with a text, within an element. */
const clickButton = (page, text, within = 'main') =>
  page.run(`[...document.querySelectorAll('${within} button')].find((each) => each.textContent === ${JSON.stringify(text)}).click()`);

/** Checks contrast in both colour schemes, and the names of controls. Saves screenshots if `MESA_SCREENSHOTS` names a directory. */
async function audit(page, name) {
  const { nodes } = await page.call('Accessibility.getFullAXTree');
  const unnamed = nodes.filter(({ ignored, role, name: text }) => !ignored && NAMED_ROLES.includes(role?.value) && !text?.value?.trim());
  assert.deepEqual(unnamed.map(({ role, properties }) => [role.value, properties]), [], `controls without a name: ${name}`);
  for (const width of [1280, 390]) {
    await page.call('Emulation.setDeviceMetricsOverride', { width, height: 800, deviceScaleFactor: 1, mobile: width < 500 });
    assert.ok(await page.evaluate(`document.documentElement.scrollWidth <= ${width}`), `${name} is too wide at ${width} pixels`);
    for (const scheme of ['light', 'dark']) {
      await page.call('Emulation.setEmulatedMedia', { features: [
        { name: 'prefers-color-scheme', value: scheme }, { name: 'prefers-reduced-motion', value: 'reduce' },
      ] });
      // A transition that began before shows a colour between two.
      await page.run('document.getAnimations().forEach((animation) => animation.finish())');
      assert.deepEqual(await page.run(`return (${findLowContrast})(${CONTRAST_MIN})`), [], `${name}, ${scheme}`);
      await saveScreenshot(page, `admin-${name}-${width}-${scheme}`);
    }
  }
  await page.call('Emulation.clearDeviceMetricsOverride');
  await page.call('Emulation.setEmulatedMedia', { features: [] });
}

module.exports = { audit, clickButton, logIn, openAdminPage, showView };
