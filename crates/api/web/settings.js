// System prompt and sampling settings of one conversation.

import { $, h } from "./dom.js";
import { setDefaults } from "./store.js";
import { introduction } from "./models.js";

/** Request field, label, least, most, step, what it does. */
const FIELDS = [
  ["temperature", "Temperature", 0, 2, 0.05, "0 always takes the likeliest token; more varies more."],
  ["max_tokens", "Max tokens", 1, null, 1, "Longest answer."],
  ["top_p", "Top p", 0, 1, 0.01, "Keep the likeliest tokens up to this share."],
  ["top_k", "Top k", 0, null, 1, "Keep this many tokens; 0 keeps all."],
  ["min_p", "Min p", 0, 1, 0.01, "Drop tokens below this share of the likeliest."],
  ["repetition_penalty", "Repetition penalty", 0.1, 2, 0.01, "Above 1 repeats less."],
  ["seed", "Seed", 0, Number.MAX_SAFE_INTEGER, 1, "The same seed gives the same answer."],
];

/** The settings that the server shall see: those that are set. */
export const samplingOf = (chat) =>
  Object.fromEntries(FIELDS.map(([name]) => [name, chat.sampling[name]]).filter(([, value]) => Number.isFinite(value)));

/** How many settings differ from the server's choice. */
export const changed = (chat) => Object.keys(samplingOf(chat)).length + (chat.system.trim() ? 1 : 0);

export class Settings {
  #chat = null;
  #changed;
  #inputs = new Map();

  /** `onChange(chat)` is called after each change, `say(text)` tells the user something. */
  constructor(onChange, say) {
    this.#changed = onChange;
    for (const field of FIELDS) $("sampling").append(this.#field(...field));
    $("set-system").addEventListener("input", () => {
      this.#chat.system = $("set-system").value;
      this.#changed(this.#chat);
    });
    $("settings-reset").addEventListener("click", () => {
      Object.assign(this.#chat, { system: "", sampling: {} });
      this.#changed(this.#chat);
      this.#fill();
    });
    $("settings-default").addEventListener("click", () => {
      if (!this.#valid()) return;
      setDefaults(this.#chat);
      say("New chats start with these settings.");
    });
    $("settings-form").addEventListener("submit", (event) => {
      if (!this.#valid()) event.preventDefault();
    });
  }

  #field(name, label, min, max, step, hint) {
    const id = `set-${name}`;
    const input = h("input", {
      id, name, type: "number", min, max, step: step < 1 ? "any" : step, placeholder: "auto",
      inputmode: step < 1 ? "decimal" : "numeric", autocomplete: "off", "aria-describedby": `${id}-hint`,
    });
    const note = h("p", { class: "hint", id: `${id}-hint` }, hint);
    input.addEventListener("input", () => {
      const fine = input.checkValidity();
      const range = max === null || max > 1e6 ? `a whole number from ${min}` : `a number from ${min} to ${max}`;
      input.setAttribute("aria-invalid", String(!fine));
      note.textContent = fine ? hint : `Must be ${range}.`;
      if (fine && input.value !== "") this.#chat.sampling[name] = input.valueAsNumber;
      else delete this.#chat.sampling[name];
      this.#changed(this.#chat);
    });
    this.#inputs.set(name, input);
    return h("div", { class: "field row" }, h("label", { for: id }, label), input, note);
  }

  #valid() {
    const bad = [...this.#inputs.values()].find((input) => !input.checkValidity());
    bad?.focus();
    return !bad;
  }

  #fill() {
    $("set-system").value = this.#chat.system;
    for (const [name, input] of this.#inputs) {
      input.value = this.#chat.sampling[name] ?? "";
      input.setAttribute("aria-invalid", String(!input.checkValidity()));
    }
  }

  /** Opens the sheet; `focus` names the field that the server complained about. */
  open(chat, model, focus) {
    this.#chat = chat;
    this.#fill();
    $("set-system-hint").textContent = introduction(model).system;
    $("settings").showModal();
    (this.#inputs.get(focus) ?? $("set-system")).focus();
  }
}
