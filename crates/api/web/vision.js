// The page for pictures: sends one to the server and draws what a network sees in it.

import { hasKey, listModels, seePicture, setKey } from "./api.js";
import { $, h } from "./dom.js";

/** Longest side of the drawing; larger pictures are drawn smaller. */
const SIDE = 1600;
/** Kinds of files that the server reads; others are made to JPEG here. */
const KINDS = ["image/jpeg", "image/png", "image/webp"];
const SVG = "http://www.w3.org/2000/svg";

let models = [];
/** The picture as the browser has it, and the file that is sent. */
let bitmap = null;
let file = null;
/** Counts questions: only the last one's answer is shown. */
let asked = 0;

const model = () => models[$("model").selectedIndex];

function say(text, bad = false) {
  $("state").textContent = text;
  $("state").classList.toggle("bad", bad);
}

/** A colour for each class, the same for all pictures; neighbours are far apart on the wheel. */
const hue = (number) => Math.round((number * 137.508) % 360);
const colour = (number) => `hsl(${hue(number)} 85% 32%)`;

const percent = (x) => `${(100 * x).toFixed(x < 0.1 ? 1 : 0)} %`;

/** Draws the picture and, over it, the answer. */
function draw(answer) {
  const canvas = $("canvas");
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.hidden = false;
  const pen = canvas.getContext("2d");
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  if (answer?.mask) drawMask(pen, answer);
  if (answer?.boxes) drawBoxes(pen, answer);
}

function drawBoxes(pen, { boxes, width, height }) {
  const { canvas } = pen;
  const [sx, sy] = [canvas.width / width, canvas.height / height];
  // As large on the screen for every picture.
  const unit = canvas.width / (canvas.clientWidth || canvas.width);
  pen.lineWidth = 2.5 * unit;
  pen.font = `600 ${13 * unit}px system-ui, sans-serif`;
  pen.textBaseline = "middle";
  const high = 20 * unit;
  const names = [];
  for (const { class: number, label, score, box } of boxes) {
    const [left, top, right, bottom] = [box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy];
    pen.strokeStyle = colour(number);
    pen.strokeRect(left, top, right - left, bottom - top);
    const text = `${label} ${percent(score)}`;
    const wide = pen.measureText(text).width + 10 * unit;
    const [x, y] = [Math.min(left, Math.max(0, canvas.width - wide)), Math.max(0, top - high)];
    // Below the names that are there already, of which the likeliest has its place first.
    const name = { number, text, x, y, wide };
    for (const other of names.toSorted((a, b) => a.y - b.y)) {
      const beside = other.x + other.wide <= x || x + wide <= other.x;
      if (!beside && Math.abs(other.y - name.y) < high) name.y = other.y + high;
    }
    names.push(name);
  }
  for (const { number, text, x, y, wide } of names) {
    pen.fillStyle = colour(number);
    pen.fillRect(x, y, wide, high);
    pen.fillStyle = "#fff";
    pen.fillText(text, x + 5 * unit, y + high / 2);
  }
}

/** Colours through which the picture is seen; the background has none. */
function drawMask(pen, { mask, width, height }) {
  const layer = new OffscreenCanvas(width, height);
  const ink = layer.getContext("2d");
  const names = new Map(mask.classes.map(({ class: number, label }) => [number, label]));
  let at = 0;
  for (let i = 0; i < mask.runs.length; i += 2) {
    const number = mask.runs[i];
    let left = mask.runs[i + 1];
    ink.fillStyle = colour(number);
    while (left > 0) {
      const x = at % width;
      const part = Math.min(left, width - x);
      if (names.get(number) !== "background") ink.fillRect(x, Math.floor(at / width), part, 1);
      at += part;
      left -= part;
    }
  }
  pen.globalAlpha = 0.55;
  pen.drawImage(layer, 0, 0, pen.canvas.width, pen.canvas.height);
  pen.globalAlpha = 1;
}

/** A square in a class's colour. Attributes, as the page's policy allows no inline styles. */
function square(number) {
  const svg = document.createElementNS(SVG, "svg");
  const rect = document.createElementNS(SVG, "rect");
  for (const [name, value] of Object.entries({ width: 10, height: 10, rx: 2, fill: colour(number) })) rect.setAttribute(name, value);
  svg.setAttribute("viewBox", "0 0 10 10");
  svg.setAttribute("aria-hidden", "true");
  svg.append(rect);
  return svg;
}

/** The table, and what the drawing shows in words. */
function tell(answer) {
  const { labels, boxes, mask } = answer;
  const rows = labels ?? boxes ?? mask.classes;
  const heads = boxes ? ["Score", "Left", "Top", "Width", "Height"] : [mask ? "Share" : "Score"];
  const number = (text) => h("td", { class: "number" }, text);
  const cells = ({ score, share, box }) => {
    const place = box ? [box[0], box[1], box[2] - box[0], box[3] - box[1]].map((x) => x.toFixed(0)) : [];
    return [percent(score ?? share), ...place].map(number);
  };
  const head = h("tr", {}, h("th", { scope: "col" }, "What"), ...heads.map((text) => h("th", { scope: "col", class: "number" }, text)));
  const row = (one) => h("tr", {}, h("td", {}, labels ? null : square(one.class), one.label), ...cells(one));
  $("found").replaceChildren(...(rows.length ? [h("thead", {}, head), h("tbody", {}, ...rows.map(row))] : []));
  const names = rows.slice(0, 10).map(({ label }) => label).join(", ");
  $("canvas").setAttribute("aria-label", `The picture. Seen: ${names || "nothing"}.`);
  $("facts").textContent = `${answer.width} × ${answer.height} pixels, ${answer.time_ms.toFixed(0)} ms`;
  say(rows.length ? `${rows.length} ${rows.length === 1 ? "answer" : "answers"}` : "Nothing is seen.");
}

/** Asks the model about the picture. */
async function look() {
  if (!file) return;
  const turn = ++asked;
  const { id, task } = model();
  const least = task === "segment" ? "" : $("threshold").value;
  say("Looking…");
  try {
    const answer = await seePicture(task, file, { model: id, ...(least && { threshold: least }) });
    if (turn !== asked) return;
    draw(answer);
    tell(answer);
  } catch (error) {
    if (turn !== asked) return;
    draw(null);
    $("found").replaceChildren();
    $("facts").textContent = "";
    refused(error);
  }
}

/** Takes a picture that was chosen, dropped or pasted. */
async function take(chosen) {
  if (!chosen) return;
  const turn = ++asked;
  try {
    const picture = await createImageBitmap(chosen);
    const sent = KINDS.includes(chosen.type) ? chosen : await asJpeg(picture);
    if (turn !== asked) return;
    [bitmap, file] = [picture, sent];
  } catch {
    if (turn === asked) say("This browser cannot read that file as a picture.", true);
    return;
  }
  draw(null);
  await look();
}

function asJpeg(picture) {
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  canvas.getContext("2d").drawImage(picture, 0, 0);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 });
}

function refused(error) {
  if (error.status !== 401) return say(error.status ? error.message : "The server does not answer.", true);
  say(hasKey() ? "The key was not accepted." : "This server needs an API key.", true);
  $("main").hidden = true;
  $("ask").hidden = false;
  $("key").focus();
}

function chosen() {
  const { task, random } = model();
  $("least").hidden = task === "segment";
  $("random").hidden = !random;
}

async function start() {
  try {
    models = (await listModels()).filter(({ task }) => task);
  } catch (error) {
    return refused(error);
  }
  $("ask").hidden = true;
  if (!models.length) return say("No model here sees. Start the server with --vision MODEL.", true);
  $("model").replaceChildren(...models.map(({ id, task }) => h("option", { value: id }, `${id} · ${task}`)));
  $("which").hidden = $("main").hidden = false;
  chosen();
  say("Ready.");
  await look();
}

$("model").addEventListener("change", () => { chosen(); look(); });
$("threshold").addEventListener("change", look);
$("file").addEventListener("change", () => {
  take($("file").files[0]);
  // The same file may be chosen again after it has changed.
  $("file").value = "";
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey($("key").value);
  start();
});
const over = (is) => (event) => {
  if (!event.dataTransfer?.types.includes("Files")) return;
  event.preventDefault();
  $("place").classList.toggle("over", is);
};
document.addEventListener("dragover", over(true));
document.addEventListener("dragleave", over(false));
document.addEventListener("drop", (event) => {
  over(false)(event);
  if (models.length) take(event.dataTransfer?.files[0]);
});
document.addEventListener("paste", (event) => {
  const picture = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
  if (picture && models.length) take(picture);
});
start();
