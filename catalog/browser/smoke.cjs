// Renders a page without a network and reads it back.
const { chromium } = require('playwright');

(async () => {
  const browser = await chromium.launch({ timeout: 120000, args: ['--no-sandbox'] });
  const page = await browser.newPage();
  await page.setContent('<h1>hello from chromium</h1>');
  console.log(await page.textContent('h1'), browser.version());
  await browser.close();
})();
