// The list of conversations: open, rename, export, delete.

import { $, h, icon } from "./dom.js";

/** Keeps the list; `on` is told what the user wants: open, rename, export, delete. */
export class Sidebar {
  #on;
  #menuFor = null;

  constructor(on) {
    this.#on = on;
    $("chat-menu").addEventListener("click", (event) => {
      const what = event.target.closest("button")?.dataset.do;
      if (!what) return;
      const { chat, row } = this.#menuFor;
      $("chat-menu").hidePopover();
      if (what === "rename") this.#rename(chat, row);
      else this.#on[what](chat);
    });
    $("chat-menu").addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const buttons = [...$("chat-menu").children];
      buttons.at((buttons.indexOf(document.activeElement) + step) % buttons.length).focus();
    });
  }

  /** Shows the conversations; `isRunning(id)` marks those that are being answered. */
  show(chats, currentId, isRunning) {
    const focused = document.activeElement?.closest?.("#chats li");
    const again = focused && [focused.dataset.id, document.activeElement.className];
    if (focused && document.activeElement.tagName === "INPUT") return;
    $("chats").replaceChildren(...chats.map((chat) => this.#row(chat, chat.id === currentId, isRunning(chat.id))));
    if (again) document.querySelector(`#chats li[data-id="${CSS.escape(again[0])}"] button.${again[1].split(" ").at(-1)}`)?.focus();
  }

  #row(chat, current, running) {
    const row = h("li", { data: { id: chat.id }, class: running ? "running" : null });
    const more = h("button", { type: "button", class: "plain icon-only more", "aria-label": `More for “${chat.title}”`, "aria-haspopup": "true" }, icon("more"));
    more.addEventListener("click", () => this.#openMenu(chat, row, more));
    row.append(
      h("button", { type: "button", class: "chat", "aria-current": current ? "page" : null, title: chat.title, onclick: () => this.#on.open(chat) },
        h("span", {}, chat.title), running && h("span", { class: "unseen" }, " (answering)")),
      more);
    return row;
  }

  #openMenu(chat, row, anchor) {
    this.#menuFor = { chat, row };
    const menu = $("chat-menu");
    menu.setAttribute("aria-label", `“${chat.title}”`);
    menu.showPopover();
    const spot = anchor.getBoundingClientRect();
    const size = menu.getBoundingClientRect();
    menu.style.left = `${Math.max(8, Math.min(spot.left, innerWidth - size.width - 8))}px`;
    menu.style.top = `${spot.bottom + size.height + 8 > innerHeight ? spot.top - size.height - 4 : spot.bottom + 4}px`;
    menu.firstElementChild.focus();
  }

  #rename(chat, row) {
    const input = h("input", { class: "rename", "aria-label": "Name of the conversation", maxlength: "120" });
    input.value = chat.title;
    let done = false;
    const end = (keep) => {
      if (done) return;
      done = true;
      const title = input.value.trim();
      const id = row.dataset.id;
      input.blur();
      this.#on.rename(chat, keep && title ? title : chat.title);
      document.querySelector(`#chats li[data-id="${CSS.escape(id)}"] .chat`)?.focus();
    };
    input.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter" || event.key === "Escape") {
        event.preventDefault();
        event.stopPropagation();
        end(event.key === "Enter");
      }
    });
    input.addEventListener("blur", () => end(true));
    row.replaceChildren(input);
    input.focus();
    input.select();
  }
}
