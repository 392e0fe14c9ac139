// The OpenAI API of the page's own server: models, and answers as a stream of events.

const KEY = "sedge.key";
let key = null;
try { key = sessionStorage.getItem(KEY); } catch { /* storage is off: the key then lasts as long as the page */ }

/** Address of the API: works behind a proxy's path prefix too. */
export const base = new URL("v1/", document.baseURI);

export const hasKey = () => Boolean(key);

/** Keeps a key for this tab. */
export function setKey(value) {
  key = value || null;
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch { /* see above */ }
}

/** What the server, or the way to it, said went wrong. `status` 0: no answer at all. */
export class ApiError extends Error {
  constructor(status, { message, code, param, type } = {}, retryAfter = null) {
    super(message || (status ? `The server answered ${status}.` : "No answer."));
    Object.assign(this, { status, code, param, type, retryAfter });
  }
}

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(new URL(path, base), { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: error.message });
  }
  if (response.ok) return response;
  let detail;
  try {
    const body = await response.json();
    detail = typeof body.error === "string" ? { message: body.error } : body.error ?? body;
  } catch { /* not JSON: the status must do */ }
  const seconds = Number.parseFloat(response.headers.get("retry-after"));
  throw new ApiError(response.status, detail, Number.isFinite(seconds) ? seconds : null);
}

/** What an engine does: its steps after number `since`, its requests, its latencies. */
export async function getLive(model, since) {
  // A server that takes the question and says nothing is as good as gone.
  const response = await request(`../live?model=${model}&since=${since}`, { signal: AbortSignal.timeout(5000) });
  return response.json();
}

/** Lets a model's weights have so many bytes of memory; what was moved for it. */
export async function putMemory(model, bytes) {
  const response = await request(`models/${encodeURIComponent(model)}/memory`, {
    method: "PUT",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ bytes }),
  });
  return response.json();
}

/** What a model sees in a picture: the answer of `/v1/vision/TASK`. */
export async function seePicture(task, file, asked) {
  const response = await request(`vision/${task}?${new URLSearchParams(asked)}`, {
    method: "POST",
    headers: { "content-type": file.type },
    body: file,
  });
  return response.json();
}

/** The models that are served, with whatever facts the server tells about each. */
export async function listModels() {
  const response = await request("models");
  const { data } = await response.json();
  return Array.isArray(data) ? data.filter((model) => typeof model?.id === "string") : [];
}

/** Yields the chunks of one answer. Ends at `[DONE]`; throws ApiError when it breaks off before. */
export async function* streamChat(body, signal) {
  const response = await request("chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  let finished = false;
  try {
    for await (const data of serverSentEvents(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(response.status, chunk.error);
      if (chunk.choices?.some((choice) => choice.finish_reason)) finished = true;
      yield chunk;
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError(0, { message: error.message, code: "broken_stream" });
  }
  if (!finished) throw new ApiError(0, { message: "The stream ended early.", code: "broken_stream" });
}

/** Yields the data of each server-sent event; lines may end in LF or CRLF and come in any pieces. */
async function* serverSentEvents(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += done ? decoder.decode() + "\n\n" : decoder.decode(value, { stream: true });
      let from = 0;
      for (let end; (end = rest.indexOf("\n", from)) >= 0; from = end + 1) {
        const line = rest.slice(from, rest[end - 1] === "\r" && end > from ? end - 1 : end);
        if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line === "" && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
      rest = rest.slice(from);
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
