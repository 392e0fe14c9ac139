// The live view: asks the server once a second what its engines do, and draws it.

import { getLive, hasKey, putMemory, setKey } from "./api.js";
import { $, h } from "./dom.js";

/** Milliseconds of the past that charts show, and between two questions. */
const WINDOW = 60_000;
const PAUSE = 1000;
/** Size of a chart's drawing, as wide as its place so that its text keeps its size. */
const [HEIGHT, LEFT] = [150, 34];
/** Vertical slices of a chart: steps within one are drawn together. */
const SLICES = 150;

/** The steps of the window, and one before it. */
let steps = [];
let since = 0;
let model = 0;
/** How things are after the last step, in a step's words. */
let current = null;
/** When the server started: another time is another server, whose steps count from 1. */
let started = null;
/** The served model's name, and whether its wished size is being chosen. */
let named = "";
let choosing = false;
/** This page's time less the engine's, as nearly as an answer has shown it. */
let ahead = Infinity;

/** The engine's time now, also while it has nothing to do. */
const now = () => performance.now() - ahead;

function forget() {
  steps = [];
  current = null;
  since = 0;
  ahead = Infinity;
}

const count = (n) => n >= 10_000 ? `${(n / 1000).toFixed(0)}k` : String(n);
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
const bytes = (n) => {
  const unit = Math.min(Math.floor(Math.log2(Math.max(n, 1)) / 10), UNITS.length - 1);
  return `${(n / 1024 ** unit).toFixed(unit && n / 1024 ** unit < 10 ? 1 : 0)} ${UNITS[unit]}`;
};
const ms = (x) => x === undefined || x === null ? "–" : x >= 100 ? x.toFixed(0) : x.toFixed(1);

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** The next of 1, 2 and 5 times a power of ten. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map((x) => x * power).find((x) => x >= value);
}

/** The steps of the last minute in slices of equal time; if `held`, one without steps has what was last. */
function slices(held) {
  const slices = Array.from({ length: SLICES }, () => []);
  let last = [];
  for (const step of steps) {
    const slice = SLICES - 1 - Math.floor(Math.max(0, now() - step.at) / WINDOW * SLICES);
    if (slice < 0) last = [step];
    else slices[slice].push(step);
  }
  if (held) {
    const end = slices.findLastIndex((slice) => slice.length);
    slices.forEach((slice, i) => {
      if (slice.length) last = slice.slice(-1);
      else slices[i] = i > end && last.length && current ? [current] : last;
    });
  }
  return slices;
}

const mean = (steps, of) => steps.length ? steps.reduce((sum, step) => sum + of(step), 0) / steps.length : null;
const max = (steps, of) => steps.length ? Math.max(...steps.map(of)) : null;

/** A chart of series over the slices: areas on top of each other, or lines. What is `held` lasts until the next step. */
function chart(place, series, { stacked, held, label }) {
  const WIDTH = Math.max(200, Math.round(place.clientWidth) || 600);
  const all = slices(held);
  const values = series.map(({ of }) => all.map(of));
  const sums = all.map((_, i) => stacked
    ? values.reduce((sum, line) => sum + (line[i] ?? 0), 0)
    : Math.max(0, ...values.map((line) => line[i] ?? 0)));
  const top = nice(Math.max(...sums));
  const x = (i) => LEFT + i / SLICES * (WIDTH - LEFT);
  const y = (value) => HEIGHT - 16 - value / top * (HEIGHT - 28);
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
  for (const share of [0, 0.5, 1]) {
    drawing.append(
      svg("path", { class: "grid", d: `M${LEFT} ${y(top * share)}H${WIDTH}` }),
      svg("text", { x: LEFT - 4, y: y(top * share) + 3, "text-anchor": "end" }, count(top * share)),
    );
  }
  for (const [share, text] of [[0, "−60 s"], [0.5, "−30 s"]]) {
    drawing.append(svg("text", { x: x(share * SLICES), y: HEIGHT - 3 }, text));
  }
  const below = all.map(() => 0);
  series.forEach(({ colour }, n) => {
    if (stacked) {
      let d = "";
      all.forEach((_, i) => {
        const value = values[n][i];
        if (!value) return;
        const base = below[i];
        below[i] += value;
        d += `M${x(i).toFixed(1)} ${y(base).toFixed(1)}V${y(below[i]).toFixed(1)}H${x(i + 1).toFixed(1)}V${y(base).toFixed(1)}Z`;
      });
      drawing.append(svg("path", { class: `area ${colour}`, d }));
    } else {
      let [d, pen] = ["", "M"];
      values[n].forEach((value, i) => {
        if (value === null) { pen = "M"; return; }
        d += `${pen}${x(i + 0.5).toFixed(1)} ${y(value).toFixed(1)}`;
        pen = "L";
      });
      drawing.append(svg("path", { class: `line ${colour}`, d }));
    }
  });
  place.replaceChildren(drawing);
}

function drawCharts() {
  chart($("tokens"), [
    { colour: "c1", of: (s) => mean(s, (step) => step.generated) },
    { colour: "c2", of: (s) => mean(s, (step) => step.prompt) },
  ], { stacked: true, held: false, label: "Tokens of each step, of answers and of prompts" });
  chart($("times"), [
    { colour: "c1", of: (s) => max(s, (step) => step.ms) },
    { colour: "c3", of: (s) => max(s.filter((step) => step.predicted_ms !== null), (step) => step.predicted_ms) },
  ], { stacked: false, held: false, label: "Milliseconds of each step" });
  chart($("queue"), [
    { colour: "c1", of: (s) => max(s, (step) => step.running) },
    { colour: "c2", of: (s) => max(s, (step) => step.waiting) },
  ], { stacked: false, held: true, label: "Requests that run and that wait" });
  chart($("pages"), [0, 1, 2, 3].map((tier) => (
    { colour: `c${tier + 1}`, of: (s) => mean(s, (step) => step.pages[tier]) }
  )), { stacked: true, held: true, label: "Pages of keys and values in each tier" });
}

function row(cell, values, numbers) {
  const props = (i) => ({ class: numbers.has(i) ? "number" : null, scope: cell === "th" ? "col" : null });
  return h("tr", {}, ...values.map((value, i) => h(values[i] === "" ? "td" : cell, props(i), value)));
}

function drawFacts(view) {
  const { pages, counts } = view;
  const recent = steps.filter((step) => step.at > now() - 5000);
  const span = recent.length ? Math.max(now() - recent[0].at, 1000) / 1000 : 1;
  const rate = (of) => Math.round(recent.reduce((sum, step) => sum + of(step), 0) / span);
  const reused = counts.asked_tokens ? `${(100 * counts.reused_tokens / counts.asked_tokens).toFixed(0)} %` : "–";
  const facts = [
    ["running", view.running],
    ["waiting", view.waiting],
    ["answers, tokens/s", rate((step) => step.generated)],
    ["prompts, tokens/s", rate((step) => step.prompt)],
    ["pages in use", `${Math.round(100 * pages.running / Math.max(pages.all, 1))} %`],
    ["prefixes reused", reused],
    ["preempted", count(counts.preempted)],
    ["refused", count(counts.refused)],
  ];
  const cards = (facts) => facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(value))));
  $("facts").replaceChildren(...cards(facts));
  drawMemory(view.memory, cards);
  const adapters = view.adapters;
  $("adapters").hidden = !adapters?.registered;
  if (!adapters?.registered) return;
  $("adapter-facts").replaceChildren(...cards([
    ["in memory, of all", `${count(adapters.resident)} of ${count(adapters.registered)}`],
    ["memory in use, of all", `${bytes(adapters.bytes)} of ${bytes(adapters.capacity)}`],
    ["requests that found theirs", count(adapters.hits)],
    ["read for a request", count(adapters.loads)],
    ["gave way to another", count(adapters.evictions)],
  ]));
}

function drawMemory(memory, cards) {
  $("memory").hidden = !memory;
  if (!memory) return;
  $("memory-facts").replaceChildren(...cards([
    ["in memory", bytes(memory.bytes)],
    ["smallest, largest", `${bytes(memory.smallest)}, ${bytes(memory.largest)}`],
    ["blocks, of all", `${count(memory.blocks)} of ${count(memory.blocks_of)}`],
  ]));
  const size = $("size");
  size.min = memory.smallest;
  size.max = memory.largest;
  // What somebody is choosing stays.
  if (!choosing) size.value = memory.target ?? memory.bytes;
  $("size-says").textContent = bytes(Number(size.value));
}

function drawTables(view) {
  const numbers = new Set([1, 2, 3, 4]);
  const latency = [["first token, ms", view.latency.ttft_ms], ["between tokens, ms", view.latency.tbt_ms]];
  $("latency").replaceChildren(
    row("th", ["", "p50", "p90", "p99", "count"], numbers),
    ...latency.map(([name, p]) => row("td", [name, ms(p?.p50), ms(p?.p90), ms(p?.p99), String(p?.count ?? 0)], numbers)),
  );
  $("none").hidden = view.requests.length > 0;
  const right = new Set([0, 3, 4, 6]);
  const requests = view.requests.map((r) => row("td", [
    String(r.number),
    r.model ?? "–",
    r.tenant || "–",
    String(r.priority),
    r.seconds.toFixed(1),
    r.running
      ? h("span", {}, h("progress", { max: r.prompt, value: Math.min(r.computed, r.prompt), "aria-label": "prompt" }), ` ${Math.min(r.computed, r.prompt)}/${r.prompt}`)
      : `waits, ${r.prompt}`,
    String(r.generated),
  ], right));
  const head = row("th", ["no.", "model", "tenant", "priority", "age, s", "prompt", "answer"], right);
  const more = view.unlisted ? [row("td", [`and ${view.unlisted} more`], new Set())] : [];
  $("requests").replaceChildren(...(requests.length ? [head, ...requests, ...more] : []));
}

function say(text, bad = false) {
  // A status that is set again would be read out again.
  if ($("state").textContent !== text) $("state").textContent = text;
  $("state").classList.toggle("bad", bad);
}

async function look() {
  const asked = model;
  const { started: start, models, model: view } = await getLive(asked, since);
  if (asked !== model) return;
  if (!view) {
    $("main").hidden = true;
    return say("No model here has an engine: networks that see run one picture at a time.");
  }
  // Another start, or fewer steps than were seen: another server, whose steps are asked for from the first.
  const other = (started !== null && started !== start) || view.last_step < since;
  started = start;
  named = models[model];
  if (other) {
    forget();
    return look();
  }
  $("which").hidden = models.length < 2;
  if ($("model").options.length !== models.length) {
    $("model").replaceChildren(...models.map((name, i) => h("option", { value: i }, name)));
  }
  steps.push(...view.steps);
  if (view.steps.length) {
    const last = view.steps.at(-1);
    since = last.number;
    ahead = Math.min(ahead, performance.now() - last.at - last.ms);
  }
  current = { running: view.running, waiting: view.waiting, pages: [view.pages.running, view.pages.cached, view.pages.host, view.pages.disk] };
  const within = steps.findIndex((step) => step.at >= now() - WINDOW);
  steps = steps.slice(within < 0 ? -1 : Math.max(within - 1, 0));
  $("ask").hidden = true;
  $("main").hidden = false;
  drawFacts(view);
  drawCharts();
  drawTables(view);
  say(models[model] + (view.running + view.waiting ? "" : " · idle"));
}

async function watch() {
  for (;;) {
    try {
      if (!document.hidden) await look();
    } catch (error) {
      if (error.status === 401) {
        say(hasKey() ? "The key was not accepted." : "This server needs an API key.", true);
        $("main").hidden = true;
        if ($("ask").hidden) {
          $("ask").hidden = false;
          $("key").focus();
        }
      } else {
        say("The server does not answer; trying again…", true);
      }
    }
    await new Promise((resume) => setTimeout(resume, PAUSE));
  }
}

$("model").addEventListener("change", (event) => {
  model = Number(event.target.value);
  choosing = false;
  $("resized").textContent = "";
  forget();
});
$("size").addEventListener("input", () => {
  choosing = true;
  $("size-says").textContent = bytes(Number($("size").value));
});
$("resize").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    const { moved } = await putMemory(named, Math.ceil(Number($("size").value)));
    $("resized").textContent = `loaded ${bytes(moved.loaded_bytes)}, released ${bytes(moved.released_bytes)}`;
  } catch (error) {
    $("resized").textContent = error.message;
  }
  choosing = false;
});
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey($("key").value);
});
watch();
