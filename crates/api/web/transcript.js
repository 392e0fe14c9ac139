// The conversation on the page: turns, the streaming answer, what stands under it, errors.

import { $, button, h, icon } from "./dom.js";
import { copyButton } from "./copy.js";
import { MarkdownStream } from "./markdown.js";
import { introduction, tokens } from "./models.js";

const THINK = "<think>";

/** Splits what a reasoning model thought from what it answers. */
export function split(message) {
  const text = message.content;
  if (message.thinking) return { thinking: message.thinking, answer: text };
  if (!text.startsWith(THINK)) return THINK.startsWith(text) ? { thinking: "", answer: "" } : { thinking: "", answer: text };
  const end = text.indexOf("</think>");
  if (end < 0) return { thinking: text.slice(THINK.length).trimStart(), answer: "" };
  return { thinking: text.slice(THINK.length, end).trim(), answer: text.slice(end + 8).trimStart() };
}

/** The line under an answer: what it cost and how it ended. */
export function statsLine({ stats, finish }) {
  const parts = [];
  if (stats?.tokens > 0) parts.push(`${stats.about ? "about " : ""}${tokens(stats.tokens)} ${stats.tokens === 1 ? "token" : "tokens"}`);
  if (stats?.rate > 0) parts.push(`${stats.rate >= 100 ? tokens(Math.round(stats.rate)) : stats.rate.toPrecision(3)} tokens/s`);
  if (stats?.first >= 0) parts.push(`first after ${stats.first < 1 ? `${Math.round(stats.first * 1000)} ms` : `${stats.first.toFixed(2)} s`}`);
  if (finish === "stopped") parts.push("stopped");
  if (finish === "length") parts.push("cut off at the token limit");
  if (finish === "broken") parts.push("broke off");
  return parts.join(" · ");
}

/** One answer's text; grows with its message. */
class Answer {
  #stream;
  #shown = 0;
  #thinking = null;
  #root;

  constructor(root) {
    this.#root = root;
    this.#stream = new MarkdownStream(root.appendChild(h("div", { class: "prose" })));
  }

  update(message, last) {
    const { thinking, answer } = split(message);
    if (thinking && !this.#thinking) {
      const text = h("div", { class: "thought" });
      this.#thinking = { text: text.appendChild(document.createTextNode("")), head: h("summary", {}, "Thinking…") };
      this.#root.prepend(h("details", { class: "thinking" }, this.#thinking.head, text));
    }
    if (this.#thinking) {
      const { text, head } = this.#thinking;
      if (thinking.startsWith(text.data.slice(0, 64))) text.appendData(thinking.slice(text.length));
      else text.data = thinking;
      if (answer || last) head.textContent = "Thoughts";
    }
    this.#stream.append(answer.slice(this.#shown));
    this.#shown = answer.length;
    this.#stream.flush(last);
  }
}

export class Transcript {
  #on;
  #root = $("transcript");
  #scroller = $("scroller");
  /** Message → its element and Answer, of the shown conversation. */
  #turns = new Map();
  #frame = 0;
  #nextAt = 0;
  #sticky = true;
  #live = null;

  /** `on`: what the user may ask for here (example, edit, regenerate). */
  constructor(on) {
    this.#on = on;
    this.#scroller.addEventListener("scroll", () => this.#noteScroll(), { passive: true });
    $("jump").addEventListener("click", () => this.toEnd());
    new ResizeObserver(() => this.#follow()).observe(this.#scroller);
  }

  /** Shows a conversation; `running` is the message that is being answered, if any. */
  show(chat, model, running) {
    this.#turns.clear();
    this.#live = running ?? null;
    this.#root.replaceChildren();
    if (!chat.messages.length) this.#root.append(this.#welcome(model));
    for (const message of chat.messages) this.#add(message, chat);
    this.#markLast(chat);
    this.toEnd();
  }

  /** Adds the turns that the conversation has and the page lacks. */
  extend(chat, running) {
    this.#root.querySelector(".welcome")?.remove();
    this.clearError();
    for (const [message, turn] of this.#turns) {
      if (chat.messages.includes(message)) continue;
      turn.element.remove();
      this.#turns.delete(message);
    }
    this.#live = running ?? null;
    for (const message of chat.messages) if (!this.#turns.has(message)) this.#add(message, chat);
    this.#markLast(chat);
    this.toEnd();
  }

  #add(message, chat) {
    const turn = message.role === "user" ? this.#userTurn(message, chat) : this.#answerTurn(message, chat);
    this.#turns.set(message, turn);
    this.#root.append(turn.element);
  }

  #markLast(chat) {
    const [user, answer] = ["user", "assistant"].map((role) => chat.messages.findLast((message) => message.role === role));
    for (const [message, { element }] of this.#turns) element.classList.toggle("last", message === user || message === answer);
  }

  #userTurn(message, chat) {
    const bubble = h("div", { class: "bubble" }, message.content);
    const element = h("article", { class: "turn user", "aria-label": "You" }, bubble,
      h("div", { class: "below" },
        copyButton(() => message.content, "Copy", { "aria-label": "Copy your message" }),
        button("edit", "Edit", () => this.#edit(message, chat, element, bubble), { class: "tool edit" })));
    return { element };
  }

  #answerTurn(message, chat) {
    const body = h("div", { class: "answer" });
    const stats = h("span", { class: "stats" });
    const element = h("article", { class: "turn assistant", "aria-label": message.model || "Answer" }, body,
      h("div", { class: "below" }, stats,
        copyButton(() => split(message).answer, "Copy", { "aria-label": "Copy the answer" }),
        button("again", "Regenerate", () => this.#on.regenerate(chat), { class: "tool again" })));
    const turn = { element, stats, answer: new Answer(body) };
    const running = message === this.#live;
    element.classList.toggle("running", running);
    element.setAttribute("aria-busy", String(running));
    turn.answer.update(message, !running);
    stats.textContent = statsLine(message);
    return turn;
  }

  #welcome(model) {
    const { about, prompts } = introduction(model);
    return h("section", { class: "welcome", "aria-labelledby": "welcome-title" },
      h("div", { class: "mark" }, icon("sedge")),
      h("h1", { id: "welcome-title" }, "What would you like to do?"),
      h("p", {}, about),
      h("ul", { class: "examples" }, ...prompts.map((prompt) =>
        h("li", {}, h("button", { type: "button", onclick: () => this.#on.example(prompt) }, prompt)))));
  }

  /** Lets the user change their last message and send it again. */
  #edit(message, chat, element, bubble) {
    const area = h("textarea", { class: "editor", "aria-label": "Change your message", rows: Math.min(12, message.content.split("\n").length + 1) });
    area.value = message.content;
    const end = () => {
      form.replaceWith(bubble);
      element.classList.remove("editing");
      element.querySelector(".edit").focus();
    };
    const send = () => {
      const text = area.value.trim();
      if (text) this.#on.edit(chat, message, text);
    };
    const form = h("form", { class: "edit-form", onsubmit: (event) => { event.preventDefault(); send(); } }, area,
      h("div", { class: "edit-foot" },
        h("button", { type: "button", class: "quiet", onclick: end }, "Cancel"),
        h("button", { type: "submit", class: "primary" }, "Send again")));
    form.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Escape") { event.preventDefault(); event.stopPropagation(); end(); }
      if (event.key === "Enter" && !event.shiftKey && event.target === area) { event.preventDefault(); send(); }
    });
    element.classList.add("editing");
    bubble.replaceWith(form);
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  /** The message grew: show it at the next frame, and not so often that showing it takes most of the time. */
  progress(message) {
    if (this.#frame || !this.#turns.has(message)) return;
    this.#frame = requestAnimationFrame(() => {
      this.#frame = 0;
      const start = performance.now();
      if (start < this.#nextAt) return this.progress(message);
      const turn = this.#turns.get(message);
      if (!turn || message !== this.#live) return;
      turn.answer.update(message, false);
      this.#follow();
      const end = performance.now();
      this.#nextAt = end + 3 * (end - start);
    });
  }

  /** The answer ended: show all of it, and what it took. */
  finish(message) {
    const turn = this.#turns.get(message);
    if (!turn) return;
    if (this.#live === message) this.#live = null;
    turn.answer.update(message, true);
    turn.stats.textContent = statsLine(message);
    turn.element.classList.remove("running");
    turn.element.setAttribute("aria-busy", "false");
    this.#follow();
  }

  /** Says what went wrong and offers ways on: `actions` are [label, run] pairs, the first the likeliest. */
  showError({ title, text, actions }) {
    this.clearError();
    this.#root.append(h("div", { class: "error", role: "alert" }, icon("alert"),
      h("div", {}, h("strong", {}, title), h("p", {}, text),
        h("div", { class: "actions" }, ...actions.map(([label, run], i) =>
          h("button", { type: "button", class: i ? "quiet" : "primary", onclick: run }, label))))));
    this.toEnd();
  }

  clearError() {
    this.#root.querySelector(".error")?.remove();
  }

  toEnd() {
    this.#sticky = true;
    this.#follow();
    this.#noteScroll();
  }

  #follow() {
    if (this.#sticky) this.#scroller.scrollTop = this.#scroller.scrollHeight;
    else $("jump").hidden = false;
  }

  #noteScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.#scroller;
    this.#sticky = scrollHeight - scrollTop - clientHeight < 48;
    $("jump").hidden = this.#sticky;
  }
}
