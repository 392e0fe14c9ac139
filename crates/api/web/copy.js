// Copying to the clipboard, and the button that does it.

import { h, icon } from "./dom.js";

/** Copies text; true when it worked. Pages not from localhost or HTTPS lack the modern way. */
export async function copyText(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch { /* not allowed: try the old way */ }
  }
  const area = h("textarea", { class: "unseen", "aria-hidden": "true" });
  area.value = text;
  const host = document.querySelector("dialog[open]") ?? document.body;
  const before = document.activeElement;
  host.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  before?.focus({ preventScroll: true });
  return done;
}

/** A Copy button for what `text()` returns when it is pressed. */
export function copyButton(text, name = "Copy", props = {}) {
  const label = h("span", {}, name);
  const self = h("button", { type: "button", class: "tool", ...props }, icon("copy"), label);
  let timer;
  self.addEventListener("click", async () => {
    const done = await copyText(text());
    label.textContent = done ? "Copied" : "Not allowed";
    self.firstChild.firstChild.setAttribute("href", done ? "#i-check" : "#i-alert");
    clearTimeout(timer);
    timer = setTimeout(() => {
      label.textContent = name;
      self.firstChild.firstChild.setAttribute("href", "#i-copy");
    }, 1600);
  });
  return self;
}
