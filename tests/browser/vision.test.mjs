// The page for pictures in a real Chromium: with a network of random weights against the sedge
// binary (SEDGE_URL), boxes and masks against mock.mjs. Run by run.sh.

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { after, before, beforeEach, describe, test } from "node:test";
import { deflateSync } from "node:zlib";
import { MODELS, startMock } from "./mock.mjs";
import { DESKTOP, PHONE, accessible, shot, visit } from "./page.mjs";

/** A grey PNG file of 640 × 320 pixels. */
const GREY = (() => {
  const chunk = (type, data) => {
    const body = Buffer.concat([Buffer.from(type), data]);
    const head = Buffer.alloc(4);
    head.writeUInt32BE(data.length);
    const crc = Buffer.alloc(4);
    crc.writeUInt32BE(crc32(body));
    return Buffer.concat([head, body, crc]);
  };
  const row = Buffer.concat([Buffer.from([0]), Buffer.alloc(640 * 3, 128)]);
  const head = Buffer.from([0, 0, 2, 128, 0, 0, 1, 64, 8, 2, 0, 0, 0]);
  const rows = deflateSync(Buffer.concat(Array.from({ length: 320 }, () => row)));
  const start = Buffer.from([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
  return Buffer.concat([start, chunk("IHDR", head), chunk("IDAT", rows), chunk("IEND", Buffer.alloc(0))]);
})();

function crc32(bytes) {
  let crc = ~0;
  for (const byte of bytes) {
    crc ^= byte;
    for (let i = 0; i < 8; i++) crc = (crc >>> 1) ^ (0xedb88320 & -(crc & 1));
  }
  return ~crc >>> 0;
}

const PICTURE = { name: "grey.png", mimeType: "image/png", buffer: GREY };
const rows = (page) => page.locator("#found tbody tr");
const choose = (page, file = PICTURE) => page.locator("#file").setInputFiles(file);

/** The page, once it knows its models. */
async function open(url, options) {
  const page = await visit(url, options);
  await page.goto(new URL("vision", url).href);
  return page;
}

/** Red, green and blue of a place of the drawing, in its own pixels. */
const pixel = (page, x, y) =>
  page.locator("#canvas").evaluate((canvas, [x, y]) => [...canvas.getContext("2d").getImageData(x, y, 1, 1).data.slice(0, 3)], [x, y]);

describe("the sedge binary", { skip: process.env.SEDGE_URL ? false : "SEDGE_URL is not set" }, () => {
  test("the chat page leads to pictures, and a network says what one shows", async () => {
    const page = await visit(process.env.SEDGE_URL);
    await page.locator("#model:enabled").waitFor();
    await page.getByRole("link", { name: "Pictures" }).click();
    await page.locator("#random:visible").waitFor();
    await choose(page);
    await rows(page).first().waitFor();
    assert.equal(await rows(page).count(), 5);
    assert.match(await page.locator("#facts").innerText(), /^640 × 320 pixels, \d+ ms$/);
    await page.getByLabel("Least score").fill("1");
    await page.keyboard.press("Enter");
    await page.getByRole("status").getByText("Nothing is seen.").waitFor();
    // A file that is no picture never leaves the page.
    await choose(page, { name: "a.png", mimeType: "image/png", buffer: Buffer.from("text") });
    await page.getByRole("status").getByText("cannot read").waitFor();
  });
});

describe("a scripted server", () => {
  let mock;
  before(async () => { mock = await startMock(); });
  after(() => mock?.close());
  beforeEach(() => Object.assign(mock, { pictures: [], fail: [], key: null }));

  test("boxes are drawn where they are, and told in a table", async () => {
    const page = await open(mock.url);
    await choose(page);
    await rows(page).nth(1).waitFor();
    assert.deepEqual(mock.pictures, [{ task: "detect", model: "boxes", type: "image/png", bytes: GREY.length }]);
    assert.match(await rows(page).first().innerText(), /^dog\s+91 %\s+80\s+40\s+320\s+240$/);
    assert.notDeepEqual(await pixel(page, 80, 250), [128, 128, 128], "the left side of the dog's box");
    assert.deepEqual(await pixel(page, 635, 315), [128, 128, 128], "outside of all boxes");
    await page.getByRole("img", { name: "Seen: dog, truck." }).waitFor();
    await page.getByLabel("Least score").fill("0.5");
    await page.keyboard.press("Enter");
    await rows(page).nth(1).waitFor({ state: "detached" });
    assert.equal(mock.pictures.at(-1).threshold, "0.5");
  });

  test("a mask colours its pixels, and the background has no colour", async () => {
    const page = await open(mock.url);
    await choose(page);
    await page.getByLabel("Model").selectOption("pixels");
    await rows(page).getByText("cat").waitFor();
    assert.equal(await page.getByLabel("Least score").isVisible(), false);
    assert.deepEqual(await pixel(page, 5, 5), [128, 128, 128]);
    assert.notDeepEqual(await pixel(page, 5, 300), [128, 128, 128]);
    await page.locator("#random:visible").waitFor();
  });

  test("a dropped picture of another kind is sent as JPEG", async () => {
    const page = await open(mock.url);
    await page.locator("#main:visible").waitFor();
    const data = await page.evaluateHandle((bytes) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(bytes)], "grey.bmp", { type: "image/bmp" }));
      return transfer;
    }, [...GREY]);
    await page.dispatchEvent("#drop", "drop", { dataTransfer: data });
    await rows(page).first().waitFor();
    assert.equal(mock.pictures[0].type, "image/jpeg");
  });

  test("errors are said, and another picture goes on", async () => {
    const page = await open(mock.url);
    mock.fail.push({ status: 413, error: { message: "The body has more than 10 bytes." } });
    await choose(page);
    await page.getByRole("status").getByText("more than 10 bytes").waitFor();
    await choose(page);
    await rows(page).first().waitFor();
  });

  test("a key is asked for", async () => {
    mock.key = "sesame";
    const page = await open(mock.url);
    await page.getByRole("status").getByText("needs an API key").waitFor();
    await page.keyboard.type("sesame");
    await page.keyboard.press("Enter");
    await page.locator("#main:visible").waitFor();
  });

  test("without a network that sees, the page says how to start one", async () => {
    const all = MODELS.splice(0, MODELS.length, ...MODELS.filter(({ task }) => !task));
    try {
      const page = await open(mock.url);
      await page.getByRole("status").getByText("--vision MODEL").waitFor();
    } finally {
      MODELS.splice(0, MODELS.length, ...all);
    }
  });

  for (const [name, options] of [["light", DESKTOP], ["dark", { ...DESKTOP, colorScheme: "dark" }], ["phone", PHONE]]) {
    test(`it fits, works by keyboard and is nothing serious for axe: ${name}`, async () => {
      const page = await open(mock.url, options);
      await page.locator("#main:visible").waitFor();
      for (const id of ["model", "threshold", "file"]) {
        while (!(await page.locator(`#${id}`).evaluate((it) => it === document.activeElement))) await page.keyboard.press("Tab");
      }
      await choose(page);
      await rows(page).first().waitFor();
      assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), options.viewport.width);
      await accessible(page, `vision ${name}`);
      await shot(page, `vision-${name}`);
    });
  }
});
