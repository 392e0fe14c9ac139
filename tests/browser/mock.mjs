// A server that answers like `sedge serve`, by script: for what a real model cannot be made to do
// on demand (errors, long Markdown, slow answers). Alone: node mock.mjs [PORT]

import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";

const WEB = fileURLToPath(new URL("../../crates/api/web/", import.meta.url));
const TYPES = { html: "text/html", css: "text/css", js: "text/javascript", svg: "image/svg+xml" };
// The policy of crates/api/src/web.rs: the page must work under it.
const POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
  "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

export const MODELS = [
  { id: "seedling", object: "model", architecture: "llama", parameters: 26_200_000, context: 1024, generates: true, chat: true },
  { id: "qwen3-4b", object: "model", architecture: "qwen3", parameters: 4_020_000_000, context: 32768, generates: true, chat: true },
  { id: "base-1b", object: "model", architecture: "llama", parameters: 1_240_000_000, context: 4096, generates: true, chat: false },
  { id: "boxes", object: "model", architecture: "yolox", parameters: 900_000, generates: false, chat: false, task: "detect", input: [416, 416], random: false },
  { id: "pixels", object: "model", architecture: "segment", parameters: 1_100_000, generates: false, chat: false, task: "segment", input: [512, 512], random: true },
  { id: "minilm", object: "model", architecture: "bert", parameters: 22_700_000, context: 512, generates: false, chat: false },
];

export const GUIDE = `## Unpacking archives

Use **tar** with *three* flags; \`x\` extracts, \`z\` gunzips and \`f\` names the file:

\`\`\`bash
tar -xzf archive.tar.gz -C /tmp/out
ls -la /tmp/out | head -n 5
\`\`\`

1. Look inside first: \`tar -tzf archive.tar.gz\`.
2. Extract into an empty folder:
   - some archives hold no top folder
   - others overwrite files
3. Remove it with care.

| Suffix | Flag | Speed |
|:--|:-:|--:|
| .tar.gz | \`z\` | fast |
| .tar.xz | \`J\` | slow |

> Never unpack an archive as root.

More at <https://www.gnu.org/software/tar/manual/>, or [the handbook](https://example.org/tar).`;

/** Answers by the last message's text; everything else gets a command, as seedling gives it. */
const SCRIPT = [
  [/archive/, GUIDE],
  [/What is grep/, "Find patterns in files using regexes."],
  [/count lines/, "`wc --lines path/to/file`"],
  [/^echo /, (text) => text.slice(5)],
  [/think/, "<think>The user wants a number. Six times seven is 42.</think>\n\nIt is **42**."],
  [/long/, () => Array.from({ length: 400 }, (_, i) => `Line ${i} of a long answer.`).join("\n\n")],
];

function answerTo(messages) {
  const text = messages.at(-1).content;
  const answer = SCRIPT.find(([pattern]) => pattern.test(text))?.[1] ?? "`find / -size +100M`";
  return typeof answer === "function" ? answer(text) : answer;
}

/**
 * Starts it. In what it returns, `requests` holds the bodies that came, `fail` takes errors for the
 * next requests ({ status, error, headers } or "cut"), `pictures` what was sent to look at,
 * `key` is asked for when set, and `delay` is
 * the milliseconds between two pieces. `live` is what the live view's engine did: when its server
 * started, how many steps it ran, how many requests run now, whether it keeps silent, and the questions that came (`asked`).
 */
export async function startMock({ port = 0, delay = 12 } = {}) {
  const mock = { requests: [], pictures: [], fail: [], key: null, delay, cancelled: 0, live: { started: 1, steps: 300, running: 6, silent: false, asked: [] } };

  const json = (response, status, body, headers = {}) => {
    response.writeHead(status, { "content-type": "application/json", ...headers });
    response.end(JSON.stringify(body));
  };

  async function chat(request, response) {
    let text = "";
    for await (const piece of request) text += piece;
    const body = JSON.parse(text);
    mock.requests.push(body);
    const failure = mock.fail.shift();
    if (failure && failure !== "cut") return json(response, failure.status, { error: failure.error }, failure.headers);

    response.writeHead(200, { "content-type": "text/event-stream" });
    let gone = false;
    response.on("close", () => {
      if (!response.writableFinished && failure !== "cut") mock.cancelled += 1;
      gone = true;
    });
    const send = (data) => response.write(`data: ${typeof data === "string" ? data : JSON.stringify(data)}\n\n`);
    const chunk = (delta, finish_reason = null) => send({ object: "chat.completion.chunk", model: body.model, choices: [{ index: 0, delta, finish_reason }] });
    const pieces = answerTo(body.messages).match(/\s*\S{1,6}|\s+$/g) ?? [];
    const most = body.max_tokens ?? Infinity;
    chunk({ role: "assistant", content: "" });
    for (const [i, content] of pieces.entries()) {
      if (gone || i >= most) break;
      if (mock.delay) await new Promise((resolve) => setTimeout(resolve, mock.delay));
      if (failure === "cut" && i === 3) {
        // A reset overtakes what the browser has not read yet.
        await new Promise((resolve) => setTimeout(resolve, 300));
        return response.destroy();
      }
      chunk({ content });
    }
    const count = Math.min(pieces.length, most);
    const prompt = Math.ceil(body.messages.reduce((sum, message) => sum + message.content.length, 0) / 4);
    chunk({}, count < pieces.length ? "length" : "stop");
    send({ object: "chat.completion.chunk", model: body.model, choices: [], usage: { prompt_tokens: prompt, completion_tokens: count, total_tokens: prompt + count } });
    send("[DONE]");
    response.end();
  }

  function live(query, response) {
    const { started, steps, running, silent, asked } = mock.live;
    const [since, number] = [Number(query.get("since")), Number(query.get("model"))];
    asked.push({ since, number });
    if (silent) return;
    const percentiles = { p50: 12.3, p90: 45.6, p99: 789, count: 1200 };
    const step = (i) => ({ number: i + 1, at: 100 * i, ms: 80, planning_ms: 1, predicted_ms: 75, generated: 6, prompt: i % 40, running: 6, waiting: 2, preempted: 0, pages: [120, 300, 80, 10] });
    json(response, 200, {
      started,
      models: MODELS.filter(({ task }) => !task).map(({ id }) => id),
      model: {
        number, last_step: steps, waiting: 2, running,
        pages: { all: 600, running: 120, cached: 300, host: 80, disk: 10 },
        counts: { finished: 4, refused: 0, cancelled: 1, preempted: 3, reused_tokens: 30, asked_tokens: 90 },
        adapters: { registered: 1200, resident: 3, bytes: 41_943_040, capacity: 268_435_456, loads: 7, evictions: 4, hits: 90 },
        latency: { ttft_ms: percentiles, tbt_ms: number ? null : percentiles },
        steps: Array.from({ length: steps }, (_, i) => step(i)).slice(since),
        requests: Array.from({ length: 8 }, (_, i) => ({ number: 90 + i, model: i % 3 ? "seedling" : "seedling:sql", tenant: i ? `team-${i}` : "", priority: i % 3, seconds: i * 1.25, running: i > 1, prompt: 400, computed: 100 * i, generated: 10 * i })),
        unlisted: 0,
      },
    });
  }

  /** Sees the same in every picture of 640 × 320 pixels. */
  async function vision(task, query, request, response) {
    let bytes = 0;
    for await (const piece of request) bytes += piece.length;
    mock.pictures.push({ task, bytes, type: request.headers["content-type"], ...Object.fromEntries(query) });
    const failure = mock.fail.shift();
    if (failure) return json(response, failure.status, { error: failure.error });
    const sizes = { width: 640, height: 320, time_ms: 12.34 };
    if (task === "segment") return json(response, 200, { ...sizes, mask: { classes: [{ class: 0, label: "background", share: 0.75 }, { class: 8, label: "cat", share: 0.25 }], runs: [0, 153600, 8, 51200] } });
    const boxes = [
      { class: 16, label: "dog", score: 0.91, box: [80, 40, 400, 280] },
      { class: 7, label: "truck", score: 0.45, box: [90, 40, 600, 280] },
    ];
    json(response, 200, { ...sizes, boxes: boxes.filter(({ score }) => score >= Number(query.get("threshold") ?? 0)) });
  }

  const server = createServer(async (request, response) => {
    const { pathname: path, searchParams: query } = new URL(request.url, "http://mock");
    if ((path.startsWith("/v1/") || path === "/live") && mock.key && request.headers.authorization !== `Bearer ${mock.key}`)
      return json(response, 401, { error: { message: "This server needs an API key.", code: "invalid_api_key" } });
    if (path === "/v1/models") return json(response, 200, { object: "list", data: MODELS });
    if (path === "/live") return live(query, response);
    if (path === "/v1/chat/completions") return chat(request, response);
    if (path.startsWith("/v1/vision/")) return vision(path.slice(11), query, request, response);
    try {
      const name = { "/": "index.html", "/vision": "vision.html" }[path] ?? path.slice(1);
      if (!/^[a-z]+\.(html|css|js|svg)$/.test(name)) throw new Error("no such file");
      const bytes = await readFile(WEB + name);
      response.writeHead(200, { "content-type": TYPES[name.split(".")[1]], "content-security-policy": POLICY, "cache-control": "no-cache", "x-content-type-options": "nosniff" });
      response.end(bytes);
    } catch {
      json(response, 404, { error: { message: `${path} does not exist.`, code: "unknown_url" } });
    }
  });
  await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
  mock.url = `http://127.0.0.1:${server.address().port}`;
  mock.close = () => new Promise((resolve) => {
    server.close(resolve);
    server.closeAllConnections();
  });
  return mock;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const mock = await startMock({ port: Number(process.argv[2] ?? 8090), delay: 25 });
  console.log(mock.url);
}
