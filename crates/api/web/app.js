// The chat page: which conversation is open, which are being answered, and what each control does.

import { $ } from "./dom.js";
import { ApiError, base, hasKey, listModels, setKey, streamChat } from "./api.js";
import { allChats, deleteChat, getChat, newChat, onOtherTab, saveChat } from "./store.js";
import { chats as canChat, facts, generates, introduction, tokens } from "./models.js";
import { Settings, changed, samplingOf } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Transcript, split } from "./transcript.js";
import { copyButton } from "./copy.js";

const touch = matchMedia("(pointer: coarse)").matches;
const prompt = $("prompt");

let models = [];
/** The open conversation. */
let chat = null;
/** Conversation id → the answer being made: its message and how to stop it. */
const running = new Map();
/** Conversation id → what went wrong with its last request. */
const errors = new Map();

const modelOf = (chat) => models.find((model) => model.id === chat.model);

const transcript = new Transcript({
  example: (text) => { prompt.value = text; submit(); },
  regenerate: (chat) => { if (!running.has(chat.id)) regenerate(chat); },
  edit: (chat, message, text) => {
    if (running.has(chat.id)) return;
    chat.messages.length = chat.messages.indexOf(message);
    ask(chat, text);
    focusPrompt();
  },
});

const sidebar = new Sidebar({
  open: (chat) => { open(chat); closeDrawer(); focusPrompt(); },
  rename: (chat, title) => {
    chat.title = title;
    keep(chat);
    showTitle();
  },
  export: exportChat,
  delete: remove,
});

const settings = new Settings((chat) => {
  if (chat.messages.length) keep(chat);
  showSettingsMark();
}, (text) => toast(text));

// ---- Conversations

function open(next) {
  chat = next;
  if (models.length && !modelOf(chat)) chat.model = models.find(canChat)?.id ?? chat.model;
  history.replaceState(null, "", getChat(chat.id) ? `#chat=${chat.id}` : location.pathname + location.search);
  transcript.show(chat, modelOf(chat), running.get(chat.id)?.message);
  const error = errors.get(chat.id);
  if (error) showError(chat, error);
  showAll();
}

const startNew = () => {
  open(newChat(chat?.model || models.find(canChat)?.id || ""));
  closeDrawer();
  focusPrompt();
};

function keep(chat) {
  if (!saveChat(chat)) toast("The browser has no room left: this conversation is lost when you leave. Delete or export some.");
  showList();
}

function remove(gone) {
  running.get(gone.id)?.controller.abort();
  deleteChat(gone.id);
  errors.delete(gone.id);
  if (chat.id === gone.id) startNew();
  showList();
  toast(`Deleted “${gone.title}”.`, () => {
    keep(gone);
    open(gone);
  });
}

function exportChat({ title, model, system, sampling, messages, created, updated }) {
  const json = JSON.stringify({
    title, model, system, sampling, messages,
    created: new Date(created).toISOString(), updated: new Date(updated).toISOString(),
  }, null, 2);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([json], { type: "application/json" }));
  link.download = `${title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60) || "chat"}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// ---- Asking and answering

function submit() {
  const text = prompt.value.trim();
  if (!text || running.has(chat.id)) return;
  if (!modelOf(chat)) return void loadModels();
  prompt.value = "";
  fitPrompt();
  ask(chat, text);
}

function ask(chat, text) {
  if (!chat.title) chat.title = text.split("\n")[0].slice(0, 80);
  chat.messages.push({ role: "user", content: text });
  answer(chat);
}

function regenerate(chat) {
  const user = chat.messages.findLastIndex((message) => message.role === "user");
  if (user < 0) return;
  chat.messages.length = user + 1;
  answer(chat);
}

/** What the server is sent: turns alternate, since many templates refuse two of one role in a row. */
function messagesOf(chat) {
  const turns = chat.system.trim() ? [{ role: "system", content: chat.system.trim() }] : [];
  for (const message of chat.messages) {
    const content = message.role === "user" ? message.content : split(message).answer;
    if (!content) continue;
    if (turns.at(-1)?.role === message.role) turns.at(-1).content += `\n\n${content}`;
    else turns.push({ role: message.role, content });
  }
  return turns;
}

async function answer(chat) {
  const body = { model: chat.model, messages: messagesOf(chat), ...samplingOf(chat) };
  const message = { role: "assistant", content: "", model: chat.model };
  const controller = new AbortController();
  chat.messages.push(message);
  chat.updated = Date.now();
  running.set(chat.id, { message, controller });
  errors.delete(chat.id);
  keep(chat);
  if (isOpen(chat)) {
    history.replaceState(null, "", `#chat=${chat.id}`);
    transcript.extend(chat, message);
    showAll();
  }
  announce("Answering.");

  const start = performance.now();
  let first = 0, latest = 0, pieces = 0, usage = null, error = null;
  try {
    for await (const chunk of streamChat(body, controller.signal)) {
      usage = chunk.usage ?? usage;
      const choice = chunk.choices?.[0];
      const { content, reasoning_content: thinking } = choice?.delta ?? {};
      if (thinking) message.thinking = (message.thinking ?? "") + thinking;
      if (content) message.content += content;
      if (content || thinking) {
        latest = performance.now();
        first ||= latest;
        pieces += 1;
        transcript.progress(message);
      }
      if (choice?.finish_reason) message.finish = choice.finish_reason;
    }
  } catch (caught) {
    if (caught.name === "AbortError") message.finish = "stopped";
    else {
      error = caught;
      message.finish = "broken";
    }
  }

  // Without usage (stopped, broken off) each piece counts as one token.
  const count = usage?.completion_tokens ?? pieces;
  const seconds = (latest - first) / 1000;
  message.stats = {
    tokens: count, about: !usage, prompt: usage?.prompt_tokens ?? null,
    first: first ? (first - start) / 1000 : null,
    rate: count > 1 && seconds > 0.001 ? (count - 1) / seconds : null,
  };
  running.delete(chat.id);
  const empty = !message.content && !message.thinking;
  if (error && empty) chat.messages.splice(chat.messages.indexOf(message), 1);
  if (error) errors.set(chat.id, error);
  if (getChat(chat.id)) {
    chat.updated = Date.now();
    keep(chat);
  }
  if (isOpen(chat)) {
    transcript.finish(message);
    if (error && empty) transcript.extend(chat);
    if (error) showError(chat, error);
    showAll();
  }
  if (!error) announce(spoken(message));
}

const isOpen = (other) => chat.id === other.id;

/** What a screen reader says at the end: the answer, unless it is long. */
function spoken(message) {
  const { answer } = split(message);
  const how = message.finish === "stopped" ? "Stopped. " : "";
  return how + (answer.length > 500 ? `${answer.slice(0, 500)} … The answer goes on in the conversation.` : answer || "The answer is empty.");
}

// ---- When something goes wrong

/** Title, explanation and ways on for each kind of error. */
function explain(chat, error) {
  const retry = ["Try again", () => regenerate(chat)];
  const fresh = ["Start a new chat", () => moveToNewChat(chat)];
  const context = modelOf(chat)?.context;
  if (!(error instanceof ApiError)) return ["Something went wrong in this page", String(error.message), [retry]];
  const { status, code, param, message, retryAfter } = error;
  if (code === "context_length_exceeded") {
    const room = context ? `${chat.model} can hold ${tokens(context)} tokens of conversation` : "The model can hold less";
    if (chat.messages.length < 2) return ["This message is too long", `${room}, its answer included.`, [["Shorten it", fresh[1]]]];
    return ["This conversation is too long", `${room}, and this one has more. A new chat begins with your last message.`, [fresh]];
  }
  if (code === "broken_stream") return ["The answer broke off", "The connection to the server ended before the answer did.", [retry]];
  if (status === 0) return ["The server does not answer", "It may have been stopped. Start it again (sedge serve), then try again.", [retry]];
  if (status === 401) return ["A key is needed", message, [["Enter a key", () => askKey(() => regenerate(chat))]]];
  if (status === 404) return [`${chat.model} is not served`, "Choose another model above, then try again.", [["Look again", () => loadModels().then(retry[1])]]];
  if (status === 413) return ["The message is too large", message, [fresh]];
  if (status === 429) {
    const wait = retryAfter ? `Try again in ${Math.ceil(retryAfter)} ${Math.ceil(retryAfter) === 1 ? "second" : "seconds"}.` : "Try again in a moment.";
    return ["The server is busy", `Others are being answered and the queue is full. ${wait}`, [retry]];
  }
  if (status === 503) return ["The server is not ready", message, [retry]];
  if (status >= 400 && status < 500) return ["The server refused the request", message, param ? [["Settings", () => openSettings(param)], retry] : [retry]];
  return ["The server failed", `${message} Its log says more.`, [retry]];
}

function showError(chat, error) {
  const [title, text, actions] = explain(chat, error);
  transcript.showError({ title, text, actions });
  if (error.status === 401) askKey(() => regenerate(chat));
}

/** Takes the last message, which did not fit, to the prompt of a new conversation. */
function moveToNewChat(chat) {
  const last = chat.messages.at(-1);
  if (last?.role === "user") chat.messages.pop();
  errors.delete(chat.id);
  if (chat.messages.length) keep(chat);
  else deleteChat(chat.id);
  const { model, system, sampling } = chat;
  open(Object.assign(newChat(model), { system, sampling: { ...sampling } }));
  prompt.value = last?.role === "user" ? last.content : "";
  fitPrompt();
  prompt.focus();
}

let afterKey = null;
function askKey(then) {
  if ($("key").open) return;
  afterKey = then;
  $("key-title").textContent = hasKey() ? "That key is not accepted" : "This server asks for a key";
  $("key-input").value = "";
  $("key").returnValue = "";
  $("key").showModal();
}
$("key-cancel").addEventListener("click", () => $("key").close());
$("key").addEventListener("close", () => {
  const value = $("key-input").value.trim();
  if ($("key").returnValue !== "use" || !value) return;
  setKey(value);
  showAbout();
  (models.length ? Promise.resolve() : loadModels()).then(afterKey);
});

// ---- Models

async function loadModels() {
  try {
    models = (await listModels()).filter(generates);
  } catch (error) {
    const needsKey = error.status === 401;
    $("model").replaceChildren(new Option(needsKey ? "Key needed" : "No server"));
    $("model-facts").replaceChildren();
    if (needsKey) return askKey(() => {});
    const [title, text] = explain(chat, error);
    return transcript.showError({ title, text, actions: [["Try again", () => { transcript.clearError(); loadModels(); }]] });
  }
  $("model").replaceChildren(...models.map((model) => {
    const option = new Option(canChat(model) ? model.id : `${model.id} (no chat template)`, model.id);
    option.disabled = !canChat(model);
    return option;
  }));
  $("model").disabled = models.length === 0;
  if (!models.length) $("model").append(new Option("No model"));
  open(chat);
}

$("model").addEventListener("change", () => {
  chat.model = $("model").value;
  if (chat.messages.length) keep(chat);
  else open(chat);
  showAll();
});

// ---- What the page shows

function showAll() {
  showList();
  showTitle();
  showSettingsMark();
  const model = modelOf(chat);
  prompt.placeholder = introduction(model).placeholder;
  if (model) {
    $("model").value = model.id;
    $("model-facts").replaceChildren(...facts(model).map((fact) => Object.assign(document.createElement("span"), { textContent: fact })));
  }
  const busy = running.has(chat.id);
  $("send").setAttribute("aria-label", busy ? "Stop" : "Send");
  $("send").classList.toggle("stop", busy);
  $("send").querySelector("use").setAttribute("href", busy ? "#i-stop" : "#i-send");
  $("stage").classList.toggle("busy", busy);
  showSend();
  showContext(model);
  showAbout();
}

const showList = () => sidebar.show(allChats(), chat.id, (id) => running.has(id));

function showTitle() {
  document.title = chat.title ? `${chat.title} · Sedge` : "Sedge";
}

function showSettingsMark() {
  const count = changed(chat);
  $("open-settings").classList.toggle("marked", count > 0);
  $("open-settings").setAttribute("aria-label", `Settings of this conversation${count ? ` (${count} set)` : ""}`);
}

const showSend = () => { $("send").disabled = !running.has(chat.id) && !prompt.value.trim(); };

/** How much of the model's context the conversation holds, by the last answer's count. */
function showContext(model) {
  const stats = chat.messages.findLast((message) => message.stats?.prompt > 0)?.stats;
  const used = stats ? stats.prompt + stats.tokens : 0;
  const room = model?.context;
  $("context").textContent = used && room ? `${tokens(used)} of ${tokens(room)} tokens` : "";
  $("context").classList.toggle("full", used > 0.8 * room);
}

function showAbout() {
  const url = base.href.replace(/\/$/, "");
  const body = JSON.stringify({ model: chat.model, messages: [{ role: "user", content: "What is grep?" }] });
  const auth = hasKey() ? ' -H "Authorization: Bearer $SEDGE_API_KEY"' : "";
  $("api-base").textContent = url;
  $("api-curl").textContent = `curl ${url}/chat/completions${auth} -H "Content-Type: application/json" -d '${body.replaceAll("'", "'\\''")}'`;
}

/** Says it to screen readers, once. */
const announce = (text) => { $("announce").textContent = text; };

let toastTimer;
function toast(text, undo) {
  const [words, action] = $("toast").children;
  words.textContent = text;
  action.hidden = !undo;
  action.onclick = () => {
    $("toast").hidePopover();
    undo();
  };
  // Above an open dialog too: what is shown last in the top layer lies on top.
  $("toast").hidePopover();
  $("toast").showPopover();
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => $("toast").hidePopover(), 8000);
}

// ---- Controls

const focusPrompt = () => { if (!touch) prompt.focus(); };

function fitPrompt() {
  prompt.style.height = "auto";
  prompt.style.height = `${Math.min(prompt.scrollHeight, innerHeight * 0.4)}px`;
  showSend();
}

const openSettings = (focus) => settings.open(chat, modelOf(chat), focus);

const drawer = matchMedia("(max-width: 760px)");

function setDrawer(isOpen) {
  document.body.classList.toggle("drawer-open", isOpen);
  $("open-drawer").setAttribute("aria-expanded", String(isOpen));
  // What is behind or out of sight takes no focus.
  $("stage").inert = isOpen;
  $("sidebar").inert = drawer.matches && !isOpen;
}

function closeDrawer() {
  const wasOpen = document.body.classList.contains("drawer-open");
  setDrawer(false);
  if (wasOpen) $("open-drawer").focus();
}
drawer.addEventListener("change", () => setDrawer(false));

$("open-drawer").addEventListener("click", () => { setDrawer(true); $("close-drawer").focus(); });
$("close-drawer").addEventListener("click", closeDrawer);
$("veil").addEventListener("click", closeDrawer);
$("new-chat").addEventListener("click", startNew);
$("open-settings").addEventListener("click", () => openSettings());
$("open-about").addEventListener("click", () => $("about").showModal());
for (const id of ["api-base", "api-curl"]) $(id).after(copyButton(() => $(id).textContent));

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => {
    const { left, right, top, bottom } = dialog.getBoundingClientRect();
    const outside = event.clientX < left || event.clientX > right || event.clientY < top || event.clientY > bottom;
    if (event.target === dialog && outside) dialog.close();
  });
}

function showTheme() {
  const theme = window.sedgeTheme.get();
  $("theme").querySelector("use").setAttribute("href", `#i-${theme}`);
  const label = { auto: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" }[theme];
  $("theme").setAttribute("aria-label", label);
  $("theme").title = label;
}
$("theme").addEventListener("click", () => {
  window.sedgeTheme.set({ auto: "light", light: "dark", dark: "auto" }[window.sedgeTheme.get()]);
  showTheme();
});

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const run = running.get(chat.id);
  if (run) run.controller.abort();
  else submit();
});
prompt.addEventListener("input", fitPrompt);
prompt.addEventListener("keydown", (event) => {
  // On a touch keyboard Enter is the only way to a new line; the button sends there.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || touch) return;
  event.preventDefault();
  submit();
});

addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey && event.key.toLowerCase() === "k") {
    event.preventDefault();
    if (!document.querySelector("dialog[open]")) startNew();
  } else if (event.key === "Escape" && !event.defaultPrevented && !document.querySelector("dialog[open], .menu:popover-open")) {
    if (document.body.classList.contains("drawer-open")) closeDrawer();
    else running.get(chat.id)?.controller.abort();
  }
});

// A page that is left in the middle of an answer keeps what came so far.
addEventListener("pagehide", () => {
  for (const [id, { message }] of running) {
    message.finish ??= "stopped";
    const left = getChat(id);
    if (left) saveChat(left);
  }
});

onOtherTab((id) => running.has(id), (id) => {
  if (id === chat.id) open(getChat(id) ?? newChat(chat.model));
  else showList();
});

// ---- Start

if (/Mac|iPhone|iPad/.test(navigator.platform)) $("new-chat-key").textContent = "⌘ K";
setDrawer(false);
showTheme();
open(getChat(new URLSearchParams(location.hash.slice(1)).get("chat")) ?? newChat(""));
loadModels().then(focusPrompt);
