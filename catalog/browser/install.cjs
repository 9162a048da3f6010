// Puts links to the distribution's Chromium where Playwright looks for its own browsers.
const fs = require('node:fs');
const path = require('node:path');
const { registry } = require('playwright-core/lib/server');

for (const name of ['chromium', 'chromium-headless-shell']) {
  const browser = registry.findExecutable(name);
  const program = browser.executablePath('javascript');
  fs.mkdirSync(path.dirname(program), { recursive: true });
  fs.symlinkSync('/usr/bin/chromium', program);
  fs.writeFileSync(path.join(browser.directory, 'INSTALLATION_COMPLETE'), '');
}
