// Asks a question on the page of a running `zmlx serve` in headless Chromium, and takes a screenshot of the answer.
// usage: node picture.mjs URL OUT.png [light|dark]
import { chromium } from "playwright-core";

const [url, out, colorScheme = "light"] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 960, height: 540 }, deviceScaleFactor: 2, colorScheme });
await page.goto(url);
await page.fill("#input", "Tell me of Mr. Darcy.");
await page.click("#send");
// The answer is complete when the button is back to "send".
await page.waitForSelector("body.busy");
await page.waitForSelector("body:not(.busy)", { timeout: 60000 });
await page.waitForTimeout(500);
await page.screenshot({ path: out });
await browser.close();
