// Markdown inside a line: code, emphasis, links. Text in, DOM nodes out; time is linear in the text.

import { h } from "./dom.js";

const DEEPEST = 6;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}]/u;
const SPACE = /\s/;
const TAGS = { "*": ["em", "strong"], _: ["em", "strong"], "~": [null, "del"] };

/** The address if it is one that a page may link to, else null. */
export function safeUrl(text) {
  try {
    const url = new URL(text);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

/** The inside of a code span that is all of `text`, else null. Unclosed counts where `open`. */
export function loneCode(text, open) {
  const ticks = /^`+/.exec(text)?.[0].length;
  if (!ticks) return null;
  const close = runOf(text, "`", ticks, ticks);
  if (close < 0) return open ? text.slice(ticks).replace(/`+$/, "") : null;
  return close + ticks === text.length ? codeText(text.slice(ticks, close)) : null;
}

const codeText = (text) => {
  const flat = text.replaceAll("\n", " ");
  return flat.startsWith(" ") && flat.endsWith(" ") && flat.trim() ? flat.slice(1, -1) : flat;
};

const runLength = (text, at) => {
  let end = at + 1;
  while (text[end] === text[at]) end++;
  return end - at;
};

/** Where a run of exactly `length` times `mark` begins, at or after `from`; −1 if nowhere. */
function runOf(text, mark, length, from) {
  for (let at = text.indexOf(mark, from); at >= 0; ) {
    const run = runLength(text, at);
    if (run === length) return at;
    at = text.indexOf(mark, at + run);
  }
  return -1;
}

const link = (url, children) => h("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, ...children);

/** Nodes for the text of one paragraph, heading or cell. */
export function inline(text, depth = 0) {
  const nodes = [];
  let literal = "";
  const flush = () => {
    if (literal) nodes.push(literal);
    literal = "";
  };
  const put = (node) => {
    flush();
    nodes.push(node);
  };
  // Searches that failed once fail from every later place too; remembering them keeps the time linear.
  const missing = new Set();
  let target = null;

  for (let at = 0; at < text.length; ) {
    const char = text[at];
    const next = text[at + 1] ?? " ";

    if (char === "\n") {
      literal = literal.trimEnd();
      put(h("br"));
      at += 1;
      while (text[at] === " ") at++;
    } else if (char === "\\" && PUNCTUATION.test(next)) {
      literal += next;
      at += 2;
    } else if (char === "`") {
      const ticks = runLength(text, at);
      const close = missing.has(ticks) ? -1 : runOf(text, "`", ticks, at + ticks);
      if (close < 0) {
        missing.add(ticks);
        literal += text.slice(at, at + ticks);
        at += ticks;
      } else {
        put(h("code", {}, codeText(text.slice(at + ticks, close))));
        at = close + ticks;
      }
    } else if (char in TAGS) {
      const run = runLength(text, at);
      const close = depth < DEEPEST && opens(text, at, run) && !missing.has(char + run) ? closer(text, char, run, at + run) : -1;
      if (close < 0) {
        if (opens(text, at, run)) missing.add(char + run);
        literal += text.slice(at, at + run);
        at += run;
      } else {
        put(emphasis(char, run, inline(text.slice(at + run, close), depth + 1)));
        at = close + run;
      }
    } else if (char === "[") {
      if (!missing.has("[") && (target === null || target.middle < at)) target = linkTarget(text, at);
      if (target === null) missing.add("[");
      if (target?.start === at && target.url && depth < DEEPEST) {
        put(link(target.url, inline(text.slice(at + 1, target.middle), DEEPEST)));
        at = target.end;
      } else {
        literal += char;
        at += 1;
      }
    } else if ((char === "h" || char === "<") && depth < DEEPEST && /^<?https?:\/\//.test(text.slice(at, at + 9)) && !WORD.test(text[at - 1] ?? " ")) {
      const start = char === "<" ? at + 1 : at;
      const address = /^[^\s<>`]+/.exec(text.slice(start, start + 2000))[0].replace(/[).,;:!?'"*_\]]+$/, "");
      const url = safeUrl(address);
      if (url) put(link(url, [address]));
      else literal += text.slice(at, start + address.length);
      at = start + address.length;
      if (url && char === "<" && text[at] === ">") at += 1;
    } else {
      literal += char;
      at += 1;
    }
  }
  flush();
  return nodes;
}

function emphasis(char, run, children) {
  const [single, double] = TAGS[char];
  if (run === 3) return h(single, {}, h(double, {}, ...children));
  return h(run === 2 ? double : single, {}, ...children);
}

/** Whether a run may begin emphasis. Stricter than CommonMark for one star: `"*.log"` is no emphasis. */
function opens(text, at, run) {
  const char = text[at];
  if (run > 3 || (char === "~" && run !== 2)) return false;
  const before = text[at - 1] ?? " ";
  const after = text[at + run] ?? " ";
  if (SPACE.test(after)) return false;
  if (char === "_") return !WORD.test(before);
  if (run > 1) return true;
  return !WORD.test(before) && (!PUNCTUATION.test(after) || "\"'`[(*_~$<".includes(after));
}

/** Where the run that ends the emphasis begins; −1 if nowhere. Skips code spans and escapes. */
function closer(text, char, run, from) {
  const unclosed = new Set();
  for (let at = from; at < text.length; ) {
    if (text[at] === "\\") at += 2;
    else if (text[at] === "`") {
      const ticks = runLength(text, at);
      const close = unclosed.has(ticks) ? -1 : runOf(text, "`", ticks, at + ticks);
      if (close < 0) unclosed.add(ticks);
      at = close < 0 ? at + ticks : close + ticks;
    } else if (text[at] === char) {
      const length = runLength(text, at);
      const after = text[at + length] ?? " ";
      const fits = length === run || (length > run && length === 3);
      const ends = at > from && !SPACE.test(text[at - 1]) && (run > 1 && char !== "_" ? true : !WORD.test(after));
      if (fits && ends) return at + length - run;
      at += length;
    } else at += 1;
  }
  return -1;
}

/** The next `[text](address)` at or after `from`: where its parts lie, `url` null if it is not allowed. */
function linkTarget(text, from) {
  const middle = text.indexOf("](", from);
  if (middle < 0) return null;
  const start = text.lastIndexOf("[", middle - 1);
  let depth = 0;
  for (let at = middle + 2; at < text.length && at < middle + 2000; at++) {
    if (text[at] === "(") depth += 1;
    else if (text[at] === "\n") break;
    else if (text[at] === ")" && depth-- === 0) {
      const address = text.slice(middle + 2, at).trim().replace(/\s+(["']).*\1$/, "").replace(/^<(.*)>$/, "$1");
      return { start, middle, end: at + 1, url: safeUrl(address) };
    }
  }
  return { start, middle, end: middle + 2, url: null };
}
