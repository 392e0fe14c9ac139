// Conversations in the browser: one localStorage entry each, so that tabs do not overwrite each other's.

const PREFIX = "sedge.chat.";
const DEFAULTS = "sedge.defaults";

/** Conversations of this page's life, by id; what storage refuses lives here only. */
const chats = new Map();
let storage = null;
try {
  storage = window.localStorage;
} catch { /* blocked: conversations last as long as the page */ }

const newId = () => {
  const [a, b] = crypto.getRandomValues(new Uint32Array(2));
  return Date.now().toString(36) + a.toString(36) + b.toString(36);
};

const text = (value) => (typeof value === "string" ? value : "");
const plain = (value) => (value && typeof value === "object" && !Array.isArray(value) ? value : {});

/** A conversation from stored JSON, or null: another program may have written there. */
function restore(json) {
  let raw;
  try { raw = JSON.parse(json); } catch { return null; }
  if (typeof raw?.id !== "string" || !Array.isArray(raw.messages)) return null;
  return {
    id: raw.id,
    title: text(raw.title),
    created: Number(raw.created) || 0,
    updated: Number(raw.updated) || 0,
    model: text(raw.model),
    system: text(raw.system),
    sampling: plain(raw.sampling),
    messages: raw.messages
      .filter((message) => message && ["user", "assistant"].includes(message.role))
      .map((message) => ({ ...message, content: text(message.content) })),
  };
}

function readAll() {
  if (!storage) return;
  for (let i = 0; i < storage.length; i++) {
    const key = storage.key(i);
    if (!key?.startsWith(PREFIX)) continue;
    const chat = restore(storage.getItem(key));
    if (chat && PREFIX + chat.id === key) chats.set(chat.id, chat);
  }
}
readAll();

/** All conversations, latest first. */
export const allChats = () => [...chats.values()].sort((a, b) => b.updated - a.updated);

export const getChat = (id) => chats.get(id);

/** A new conversation; nothing is kept until its first message. */
export function newChat(model) {
  const { system, sampling } = defaults();
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, model, system, sampling, messages: [] };
}

/** Keeps a conversation; false when the browser has no room for it. */
export function saveChat(chat) {
  chats.set(chat.id, chat);
  if (!storage) return true;
  try {
    storage.setItem(PREFIX + chat.id, JSON.stringify(chat));
    return true;
  } catch {
    return false;
  }
}

export function deleteChat(id) {
  chats.delete(id);
  storage?.removeItem(PREFIX + id);
}

/** Calls back when another tab changes a conversation that `busy` does not hold. */
export function onOtherTab(busy, changed) {
  addEventListener("storage", (event) => {
    if (event.storageArea !== storage || !event.key?.startsWith(PREFIX)) return;
    const id = event.key.slice(PREFIX.length);
    if (busy(id)) return;
    const chat = event.newValue && restore(event.newValue);
    if (chat) chats.set(id, chat);
    else chats.delete(id);
    changed(id);
  });
}

/** System prompt and sampling of new conversations. */
export function defaults() {
  try {
    const raw = JSON.parse(storage?.getItem(DEFAULTS) ?? "{}");
    return { system: text(raw.system), sampling: { ...plain(raw.sampling) } };
  } catch {
    return { system: "", sampling: {} };
  }
}

export function setDefaults({ system, sampling }) {
  try { storage?.setItem(DEFAULTS, JSON.stringify({ system, sampling })); } catch { /* full: stays as it was */ }
}
