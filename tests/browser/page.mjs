// A real Chromium, and what every test of a page holds it to.

import assert from "node:assert/strict";
import { mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, afterEach, before, beforeEach } from "node:test";
import { chromium } from "playwright-core";

const SHOTS = new URL("shots/", import.meta.url).pathname;
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
export const DESKTOP = { viewport: { width: 1280, height: 800 }, colorScheme: "light", reducedMotion: "reduce" };
export const PHONE = { viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2, colorScheme: "light", reducedMotion: "reduce" };

export let browser;
export let complaints = [];
before(async () => {
  mkdirSync(SHOTS, { recursive: true });
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: FLAGS });
});
after(() => browser?.close());

/** A page of a fresh profile. Script errors, policy violations and requests to other servers fail the test. */
export async function visit(url, options = DESKTOP) {
  const context = await browser.newContext({ ...options, permissions: ["clipboard-read", "clipboard-write"] });
  const page = await context.newPage();
  page.setDefaultTimeout(15_000);
  page.on("pageerror", (error) => complaints.push(error.stack));
  page.on("console", (line) => {
    if (line.type() === "error" && !/Failed to load resource|ERR_/.test(line.text())) complaints.push(line.text());
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !/^(blob|data):/.test(request.url())) complaints.push(`asked ${request.url()}`);
  });
  await page.goto(url);
  return page;
}

beforeEach(() => { complaints = []; });
afterEach(async () => {
  await Promise.all(browser.contexts().map((context) => context.close()));
  assert.deepEqual(complaints, []);
});

export const shot = (page, name) => page.screenshot({ path: `${SHOTS}${name}.png` });

/** No serious accessibility violation, by axe-core's rules for WCAG 2.2 A and AA. */
export async function accessible(page, what) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => window.axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }));
  const serious = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  assert.deepEqual(serious.map(({ id, nodes }) => [what, id, nodes.map(({ html }) => html.slice(0, 160))]), []);
}
