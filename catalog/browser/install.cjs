// Puts links to the distribution's Chromium where Playwright looks for its own browsers.
const fs = require('node:fs');
const path = require('node:path');
const { chromium } = require('playwright');

const link = (program) => {
  fs.mkdirSync(path.dirname(program), { recursive: true });
  fs.symlinkSync('/usr/bin/chromium', program);
};

// Where the one without windows is, Playwright tells only when it is missing.
const missing = async (options) => {
  try {
    await (await chromium.launch(options)).close();
  } catch (error) {
    return /executable doesn't exist at (\S+)/i.exec(error.message)?.[1];
  }
};

(async () => {
  link(chromium.executablePath());
  const program = await missing({ headless: true });
  if (!program) throw new Error('Playwright does not say where its headless browser is missing');
  link(program);
})();
