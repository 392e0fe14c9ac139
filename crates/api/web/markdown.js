// Markdown as it streams in: finished blocks stay as they are, only the last one is made again.
// The parser builds DOM nodes, so a model's text can never become markup or script.

import { h } from "./dom.js";
import { copyButton } from "./copy.js";
import { inline, loneCode } from "./inline.js";

const DEEPEST = 6;
const FENCE = /^( {0,3})(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:([ \t]+)(.*))?$/;

const blank = (line) => /^\s*$/.test(line);
const spaced = (line) => line.replace(/^[ \t]+/, (start) => start.replaceAll("\t", "    "));
const indentOf = (line) => /^ */.exec(line)[0].length;
const closes = (line, fence) => {
  const mark = /^ {0,3}(`{3,}|~{3,})[ \t]*$/.exec(line)?.[1];
  return mark !== undefined && mark[0] === fence[0] && mark.length >= fence.length;
};

/** Cells of a table's row; a pipe after a backslash belongs to its cell. */
function cells(line) {
  const row = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  return row.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function isTable(lines, at) {
  if (!lines[at].includes("|") || at + 1 >= lines.length || !lines[at + 1].includes("-")) return false;
  const rule = cells(lines[at + 1]);
  return rule.every((cell) => /^:?-+:?$/.test(cell)) && rule.length === cells(lines[at]).length;
}

/** Whether the line ends a paragraph that stands before it. */
function interrupts(lines, at) {
  const line = lines[at];
  if (blank(line) || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line)) return true;
  const item = ITEM.exec(line);
  return Boolean(item?.[4] && (!/\d/.test(item[2]) || Number.parseInt(item[2]) === 1)) || isTable(lines, at);
}

/** Splits lines into blocks, each with the number of its first line. */
function parse(lines, depth = 0) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    const line = lines[at];
    const from = at;
    let match;
    if (blank(line)) {
      at += 1;
      continue;
    }
    if ((match = FENCE.exec(line))) {
      const [, indent, fence, info] = match;
      for (at += 1; at < lines.length && !closes(lines[at], fence); ) at += 1;
      const strip = new RegExp(`^ {0,${indent.length}}`);
      const closed = at < lines.length;
      const code = lines.slice(from + 1, at).map((text) => text.replace(strip, ""));
      if (!closed && code.at(-1) === "") code.pop();
      blocks.push({ kind: "code", from, fence, strip, language: info.trim().split(/\s/)[0], lines: code, closed });
      at += 1;
    } else if ((match = HEADING.exec(line))) {
      blocks.push({ kind: "heading", from, level: match[1].length, text: (match[2] ?? "").replace(/(^|\s)#+\s*$/, "").trim() });
      at += 1;
    } else if (RULE.test(line)) {
      blocks.push({ kind: "rule", from });
      at += 1;
    } else if (QUOTE.test(line) && depth < DEEPEST) {
      while (at < lines.length && (QUOTE.test(lines[at]) || !interrupts(lines, at))) at += 1;
      const inner = lines.slice(from, at).map((text) => text.replace(QUOTE, ""));
      blocks.push({ kind: "quote", from, blocks: parse(inner, depth + 1) });
    } else if (ITEM.test(line) && depth < DEEPEST) {
      const list = parseList(lines, at, depth);
      blocks.push(list);
      at = list.end;
    } else if (isTable(lines, at)) {
      const align = cells(lines[at + 1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "end") : "start"));
      const head = cells(line);
      const rows = [];
      for (at += 2; at < lines.length && lines[at].includes("|"); at++) rows.push(cells(lines[at]));
      blocks.push({ kind: "table", from, align, head, rows });
    } else {
      for (at += 1; at < lines.length && !interrupts(lines, at); ) at += 1;
      blocks.push({ kind: "paragraph", from, text: lines.slice(from, at).map((text) => text.trimStart()).join("\n").trimEnd() });
    }
  }
  return blocks;
}

function parseList(lines, from, depth) {
  const marker = (line) => {
    const match = ITEM.exec(line);
    return match && !RULE.test(line) ? match : null;
  };
  const kindOf = (match) => match[2].at(-1);
  const first = marker(lines[from]);
  const items = [];
  let loose = false;
  let at = from;
  while (at < lines.length) {
    const match = marker(lines[at]);
    if (!match || kindOf(match) !== kindOf(first)) break;
    const [, indent, mark, gap = " ", rest = ""] = match;
    const inset = indent.length + mark.length + (gap.length > 4 ? 1 : gap.length);
    const inner = [rest];
    let gapBefore = false;
    for (at += 1; at < lines.length; at++) {
      const line = spaced(lines[at]);
      // Models indent nested lists by two spaces under any marker; that much is enough to belong.
      const inside = indentOf(line) >= Math.min(inset, indent.length + 2);
      if (blank(line)) {
        gapBefore = true;
        inner.push("");
        continue;
      }
      if (!inside && (gapBefore || marker(line) || interrupts(lines, at))) break;
      if (gapBefore && inside) loose = true;
      gapBefore = false;
      inner.push(line.slice(Math.min(indentOf(line), inset)));
    }
    items.push(parse(inner, depth + 1));
    if (gapBefore && at < lines.length && marker(lines[at])) loose = true;
  }
  const ordered = /\d/.test(first[2]);
  return { kind: "list", from, end: at, ordered, start: ordered ? Number.parseInt(first[2]) : 1, loose, items };
}

/** A block of code with its language and a Copy button. */
function codeFigure(language, code) {
  const inner = h("code", {}, code);
  const name = language ? `Code: ${language}` : "Code";
  return h("figure", { class: "code" },
    h("figcaption", {}, h("span", {}, language), copyButton(() => inner.textContent)),
    h("pre", { tabindex: "0", role: "group", "aria-label": name }, inner));
}

/** A command alone on its line, as the built-in model answers: short, so without a head. */
function commandFigure(code) {
  const inner = h("code", {}, code);
  return h("figure", { class: "code command" },
    h("pre", { tabindex: "0", role: "group", "aria-label": "Command" }, inner),
    copyButton(() => inner.textContent));
}

function render(block, { open = false, loose = true } = {}) {
  switch (block.kind) {
    case "code":
      return codeFigure(block.language, block.lines.join("\n"));
    case "heading":
      return h(`h${Math.min(block.level + 2, 6)}`, {}, ...inline(block.text));
    case "rule":
      return h("hr");
    case "quote":
      return h("blockquote", {}, ...block.blocks.map((inner) => render(inner)));
    case "list":
      return h(block.ordered ? "ol" : "ul", { start: block.ordered && block.start !== 1 ? block.start : null },
        ...block.items.map((item) => h("li", {}, ...item.flatMap((inner) =>
          inner.kind === "paragraph" && !block.loose ? inline(inner.text) : [render(inner, { loose: block.loose })]))));
    case "table": {
      const row = (tag, texts) => h("tr", {}, ...block.align.map((side, i) => h(tag, { class: side }, ...inline(texts[i] ?? ""))));
      return h("div", { class: "table", tabindex: "0", role: "group", "aria-label": "Table" },
        h("table", {}, h("thead", {}, row("th", block.head)), h("tbody", {}, ...block.rows.map((texts) => row("td", texts)))));
    }
    default: {
      const code = loose ? loneCode(block.text, open) : null;
      // While it streams, one word in code may begin a sentence; more than one is a command.
      if (code !== null && (!open || code.includes(" "))) return commandFigure(code);
      return h("p", {}, ...inline(block.text));
    }
  }
}

/** Renders a text that grows at its end. */
export class MarkdownStream {
  /** The text since the last finished block. */
  #tail = "";
  /** Nodes of the tail, made again by each flush. */
  #live = [];
  /** An unclosed fence at the end: its code only ever grows, so it is appended to. */
  #code = null;
  #root;

  constructor(root) {
    this.#root = root;
  }

  /** Takes more text; nothing shows before `flush`. */
  append(text) {
    this.#tail += text.replaceAll("\r", "");
  }

  /** Shows what came so far. After the `last` flush nothing more may come. */
  flush(last = false) {
    if (this.#code && !this.#growCode(last)) return;
    const lines = this.#tail.split("\n");
    const blocks = parse(lines);

    for (const node of this.#live) node.remove();
    const nodes = blocks.map((block, i) => render(block, { open: !last && i === blocks.length - 1 }));
    this.#root.append(...nodes);

    const end = blocks.at(-1);
    if (!last && end?.kind === "code" && !end.closed && end.from < lines.length - 1) {
      const body = lines.slice(end.from + 1);
      const text = nodes.at(-1).querySelector("code");
      text.textContent = "";
      this.#code = { fence: end.fence, strip: end.strip, text: text.appendChild(document.createTextNode("")), shown: 0, first: true };
      this.#live = [];
      this.#tail = body.join("\n");
      this.#growCode(false);
      return;
    }
    // A block is finished once the first line of the next is whole: no later text can change it.
    const kept = last ? -1 : blocks.findLastIndex((block) => block.from < lines.length - 1);
    if (kept > 0) this.#tail = lines.slice(blocks[kept].from).join("\n");
    this.#live = last ? [] : nodes.slice(Math.max(kept, 0));
  }

  /** Appends to the open fence; true when it closed and `#tail` holds what follows. */
  #growCode(last) {
    const code = this.#code;
    const lines = this.#tail.split("\n");
    for (const [i, line] of lines.entries()) {
      const whole = i < lines.length - 1;
      if ((whole || last) && closes(line, code.fence)) {
        this.#code = null;
        this.#tail = lines.slice(i + 1).join("\n");
        return true;
      }
      // A part of a line waits while it may still become the closing fence or its indent.
      if (!whole && !last && /^ *[`~]*[ \t]*$/.test(line)) {
        this.#tail = line;
        return false;
      }
      const text = line.replace(code.strip, "");
      if (whole || text) this.#showCode(text, whole);
    }
    this.#tail = last ? "" : lines.at(-1);
    return false;
  }

  #showCode(line, whole) {
    const code = this.#code;
    if (code.shown === 0 && !code.lineBegun) {
      code.text.appendData(code.first ? line : "\n" + line);
      code.first = false;
    } else code.text.appendData(line.slice(code.shown));
    code.lineBegun = !whole;
    code.shown = whole ? 0 : line.length;
  }
}

/** Renders a whole text. */
export function renderMarkdown(root, text) {
  const stream = new MarkdownStream(root);
  stream.append(text);
  stream.flush(true);
}
