// The chat page in a real Chromium: the main flow against the sedge binary (SEDGE_URL), what a
// model cannot be made to do on demand against mock.mjs. Run by run.sh.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { afterEach, beforeEach, describe, test } from "node:test";
import { GUIDE, MODELS, startMock } from "./mock.mjs";
import { DESKTOP, PHONE, accessible, browser, complaints, shot, visit } from "./page.mjs";

/** Forbids the built-in model the two tokens that end an answer (assets/seedling/MODEL_CARD.md). */
const ENDLESS = { 0: -100, 4: -100 };

/** A page whose models are known. */
async function ready(url, options) {
  const page = await visit(url, options);
  await page.locator("#model:enabled").waitFor();
  return page;
}

const answers = (page) => page.locator(".assistant");
const lastAnswer = (page) => answers(page).last();
const idle = (page) => page.locator(".stage:not(.busy)").waitFor();

async function ask(page, text) {
  const count = await answers(page).count();
  await page.getByRole("textbox", { name: "Message" }).fill(text);
  await page.keyboard.press("Enter");
  await answers(page).nth(count).waitFor();
}

async function askAndWait(page, text) {
  await ask(page, text);
  await idle(page);
}

/** Asks for the last answer again; its text. */
async function regenerate(page) {
  const before = await lastAnswer(page).elementHandle();
  await page.getByRole("button", { name: "Regenerate" }).click();
  await before.waitForElementState("hidden");
  await idle(page);
  return lastAnswer(page).locator(".prose").innerText();
}

describe("the sedge binary", { skip: process.env.SEDGE_URL ? false : "SEDGE_URL is not set" }, () => {
  const url = process.env.SEDGE_URL;

  test("an example prompt is answered, with what it took, and the answer survives a reload", async () => {
    const page = await ready(url);
    assert.match(await page.locator("#model-facts").innerText(), /llama.*parameters.*1,024 tokens.*running on this machine/s);
    await shot(page, "empty-light");
    await page.getByRole("button", { name: "find all files larger than 100MB" }).click();
    await lastAnswer(page).waitFor();
    await idle(page);
    const text = await lastAnswer(page).locator(".prose").innerText();
    assert.ok(text.trim().length > 0, "the answer has text");
    assert.match(await lastAnswer(page).locator(".stats").innerText(), /\d+ tokens? · .*first after [\d.]+ m?s/);
    assert.match(await page.locator("#context").innerText(), /^\d+ of 1,024 tokens$/);
    await page.reload();
    await lastAnswer(page).waitFor();
    assert.equal(await lastAnswer(page).locator(".prose").innerText(), text);
  });

  test("greedy answers repeat; a fixed seed repeats at any temperature", async () => {
    const page = await ready(url);
    await page.getByRole("button", { name: /^Settings/ }).click();
    await page.getByLabel("Temperature").fill("0");
    await page.getByRole("button", { name: "Done" }).click();
    await askAndWait(page, "count lines in a file");
    const greedy = await lastAnswer(page).locator(".prose").innerText();
    assert.equal(await regenerate(page), greedy);
    assert.equal(await answers(page).count(), 1);
    await page.getByRole("button", { name: /^Settings/ }).click();
    for (const [name, value] of [["Temperature", "1.2"], ["Seed", "7"], ["Max tokens", "40"]])
      await page.getByRole("spinbutton", { name }).fill(value);
    await page.keyboard.press("Enter");
    const seeded = await regenerate(page);
    assert.equal(await regenerate(page), seeded);
  });

  test("a running answer stops, and what came stays", async () => {
    const page = await ready(url);
    // Forbidden to end, the greedy answer goes on to its limit: the stop cannot come too late.
    await page.route("**/v1/chat/completions", (route) => {
      const body = { ...route.request().postDataJSON(), logit_bias: ENDLESS };
      return route.continue({ postData: JSON.stringify(body) });
    });
    await page.getByRole("button", { name: /^Settings/ }).click();
    await page.getByLabel("Temperature").fill("0");
    await page.getByLabel("Max tokens").fill("900");
    await page.keyboard.press("Enter");
    await ask(page, "Explain everything about the shell");
    await page.waitForFunction(() => document.querySelector(".assistant .prose").innerText.trim().length > 40);
    await page.keyboard.press("Escape");
    await idle(page);
    assert.match(await lastAnswer(page).locator(".stats").innerText(), /stopped$/);
    assert.ok((await lastAnswer(page).locator(".prose").innerText()).trim().length > 40);
    await page.unroute("**/v1/chat/completions");
    await page.getByRole("button", { name: "New chat" }).click();
    await askAndWait(page, "What is grep?");
    assert.ok((await lastAnswer(page).locator(".prose").innerText()).length > 0, "the server still answers");
  });

  test("a conversation that outgrows the context gets a kind word and a new start", async () => {
    const page = await ready(url);
    const prompt = page.getByRole("textbox", { name: "Message" });
    await prompt.fill("list files ".repeat(1500));
    await page.keyboard.press("Enter");
    assert.match(await page.getByRole("alert").innerText(), /This message is too long.*1,024 tokens/s);
    await page.getByRole("button", { name: "Shorten it" }).click();
    assert.match(await prompt.inputValue(), /^list files/);
    assert.equal(await page.locator("#chats li").count(), 0, "nothing is left of it");
    await page.getByRole("button", { name: /^Settings/ }).click();
    await page.getByLabel("Max tokens").fill("5");
    await page.keyboard.press("Enter");
    await askAndWait(page, "list files ".repeat(300));
    await prompt.fill("now count files ".repeat(300));
    await page.keyboard.press("Enter");
    assert.match(await page.getByRole("alert").innerText(), /This conversation is too long/);
    await page.getByRole("button", { name: "Start a new chat" }).click();
    assert.match(await prompt.inputValue(), /^now count files/);
  });

  test("the live view shows what the engine does, and finds the server again", async () => {
    const live = await visit(url);
    await live.goto(new URL("live.html", url).href);
    const body = JSON.stringify({ prompt: "find", max_tokens: 400, ignore_eos: true, stream: true });
    const headers = { "content-type": "application/json", "x-sedge-tenant": "browser-test" };
    const answer = await fetch(new URL("v1/completions", url), { method: "POST", headers, body });
    await answer.text();
    await live.locator("#facts dd").first().waitFor();
    await live.locator("#latency td").first().waitFor();
    assert.match(await live.locator("#latency").innerText(), /first token/);
    await live.locator("#tokens path.area.c1[d*=M]").waitFor({ state: "attached" });
    await live.route("**/live?*", (route) => route.abort());
    await live.getByText("does not answer").waitFor();
    await live.unroute("**/live?*");
    await live.getByRole("status").getByText("seedling").waitFor();
    // A server that has been started anew counts its steps from the first.
    const asked = [];
    await live.route("**/live?*", async (route) => {
      const since = Number(new URL(route.request().url()).searchParams.get("since"));
      asked.push(since);
      const response = await route.fetch();
      const body = await response.json();
      const fresh = { ...body.model, last_step: 1, steps: since < 1 ? body.model.steps.slice(0, 1) : [] };
      fresh.steps = fresh.steps.map((step) => ({ ...step, number: 1 }));
      await route.fulfill({ json: { ...body, model: fresh } });
    });
    await live.waitForRequest((request) => request.url().endsWith("since=1"));
    assert.ok(asked[0] > 1 && asked.includes(0), String(asked));
    await live.unroute("**/live?*");
    await shot(live, "live");
  });

  test("the page is served under a policy that allows no other server and no inline script", async () => {
    const response = await fetch(url);
    const policy = response.headers.get("content-security-policy");
    assert.match(policy, /default-src '(none|self)'/);
    assert.doesNotMatch(policy, /unsafe|\*/);
    for (const [, name] of (await response.text()).matchAll(/(?:src|href)="([a-z]+\.(?:js|css|svg))"/g))
      assert.equal((await fetch(new URL(name, url))).status, 200, name);
  });

  for (const scheme of ["light", "dark"]) {
    test(`pictures in ${scheme}`, async () => {
      const page = await ready(url, { ...DESKTOP, colorScheme: scheme });
      for (const text of ["how do I extract a tar.gz archive?", "What is grep?", "count lines in a file"]) {
        await page.getByRole("button", { name: "New chat" }).click();
        await askAndWait(page, text);
      }
      await page.getByRole("button", { name: "New chat" }).click();
      await page.getByRole("button", { name: /^Settings/ }).click();
      await page.getByLabel("Temperature").fill("0");
      await page.keyboard.press("Enter");
      await askAndWait(page, "find all files larger than 100MB");
      await askAndWait(page, "What is grep?");
      await askAndWait(page, "count lines in a file");
      await page.mouse.move(700, 640);
      await shot(page, `chat-${scheme}`);
      await accessible(page, `chat in ${scheme}`);
    });
  }
});

describe("a scripted server", () => {
  let mock;
  beforeEach(async () => { mock = await startMock({ delay: 2 }); });
  afterEach(() => mock.close());

  test("Markdown becomes elements, and never markup of the model's own", async () => {
    const page = await ready(mock.url);
    await askAndWait(page, "how do I extract a tar.gz archive?");
    const prose = lastAnswer(page).locator(".prose");
    assert.equal(await prose.locator("h4").innerText(), "Unpacking archives");
    assert.equal(await prose.locator("pre code").innerText(), "tar -xzf archive.tar.gz -C /tmp/out\nls -la /tmp/out | head -n 5");
    assert.equal(await prose.locator("figcaption span").first().innerText(), "bash");
    assert.equal(await prose.locator("ol > li").count(), 3);
    assert.equal(await prose.locator("ol ul > li").count(), 2);
    assert.deepEqual(await prose.locator("tbody td").allInnerTexts(), [".tar.gz", "z", "fast", ".tar.xz", "J", "slow"]);
    for (const link of await prose.locator("a").all()) assert.equal(await link.getAttribute("rel"), "noopener noreferrer");
    await prose.getByRole("button", { name: "Copy" }).click();
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "tar -xzf archive.tar.gz -C /tmp/out\nls -la /tmp/out | head -n 5");
    await lastAnswer(page).getByRole("button", { name: "Copy the answer" }).click();
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), GUIDE);
    await shot(page, "guide-light");

    await askAndWait(page, "echo <img src=x onerror=alert(1)> <script>alert(2)</script> [x](javascript:alert(3)) ![y](http://example.org/z.png)");
    assert.equal(await lastAnswer(page).locator("img, script, iframe, [onerror]").count(), 0);
    assert.equal(await lastAnswer(page).locator('a[href^="javascript"]').count(), 0);
    assert.match(await lastAnswer(page).locator(".prose").innerText(), /<img src=x onerror=alert\(1\)> <script>alert\(2\)<\/script>/);
  });

  test("a text in any pieces renders as in one, in time linear in its length", async () => {
    const page = await ready(mock.url);
    const result = await page.evaluate(async (guide) => {
      const { MarkdownStream, renderMarkdown } = await import("/markdown.js");
      const { inline } = await import("/inline.js");
      const texts = [guide, "`ls -la`", "`grep` finds text", "a\n- b\n\n  c\n-\n\n1. d\n2. e\n\nf", "```\n\n  x\n``\n\ty\n```\nz `a``b` **c*d*e**", "~~~py\nx = '```'\n~~~~\n> q\nlazy\n\n> r",
        "|a|b|\n|-|-|\n|c \\| d|e|\nf", "# \n#x\n# y #\n***\n---\n- - -\n* a\n* b\n+ c", "````md\n```\ninner\n```\n````\n\nend", "- x\n  ```sh\n  y\n\n  z\n  ```\n- w", "```js\nopen", "**重点**内容 *a*b 2*3*4 \"*.log\" -o \"*.txt\" snake_case_name __b__ ***c***", "<think", "```a\nb\n  ```\n\n```\nc"];
      let seed = 1;
      const random = (n) => (seed = (seed * 48271) % 2147483647) % n;
      const alphabet = ["`", "```", "\n", "\n\n", "- ", "1. ", "*", "**", "_", "# ", "> ", "|", "|-|\n", "a", "b c", "  ", "[x](http://y.z)", "~~~", "\\", "\t"];
      for (let i = 0; i < 400; i++) texts.push(Array.from({ length: 5 + random(40) }, () => alphabet[random(alphabet.length)]).join(""));
      const differing = [];
      for (const text of texts) {
        const whole = document.createElement("div");
        renderMarkdown(whole, text);
        whole.normalize();
        for (const size of [1, 3, 7]) {
          const pieces = document.createElement("div");
          const stream = new MarkdownStream(pieces);
          for (let at = 0; at < text.length; at += size) { stream.append(text.slice(at, at + size)); stream.flush(); }
          stream.flush(true);
          pieces.normalize();
          if (pieces.innerHTML !== whole.innerHTML) { differing.push([text, size, pieces.innerHTML, whole.innerHTML]); break; }
        }
      }
      const time = (work) => { const start = performance.now(); work(); return performance.now() - start; };
      const stream = (text) => () => {
        const root = document.createElement("div");
        const stream = new MarkdownStream(root);
        for (let at = 0; at < text.length; at += 40) { stream.append(text.slice(at, at + 40)); stream.flush(); }
        stream.flush(true);
      };
      const times = {
        paragraphs: time(stream("Some *words* of `text` in a line.\n\n".repeat(6000))),
        code: time(stream("```\n" + "let x = 1; // a line of code\n".repeat(7000))),
        ...Object.fromEntries(["*", "_a", "[", "](", "`", "*a ", "**a*", "`` ` ", "> ", "- ", "<http://", "\\", "~~a"].map((part) => [part, time(() => {
          inline(part.repeat(20_000));
          renderMarkdown(document.createElement("div"), part.repeat(20_000));
        })])),
      };
      return { differing, times };
    }, GUIDE);
    assert.deepEqual(result.differing.slice(0, 3), []);
    console.log("milliseconds:", Object.fromEntries(Object.entries(result.times).map(([name, ms]) => [name, Math.round(ms)])));
    for (const [name, ms] of Object.entries(result.times)) assert.ok(ms < 8000, `${name}: ${ms} ms`);
  });

  test("a command alone is a block to copy; a shell pattern is not emphasis", async () => {
    const page = await ready(mock.url);
    await askAndWait(page, "find all files larger than 100MB");
    await lastAnswer(page).locator(".command").getByRole("button", { name: "Copy" }).click();
    assert.equal(await page.evaluate(() => navigator.clipboard.readText()), "find / -size +100M");
    await askAndWait(page, 'echo find . -name "*.log" -o -name "*.txt"');
    assert.equal(await lastAnswer(page).locator(".prose").innerText(), 'find . -name "*.log" -o -name "*.txt"');
  });

  test("settings and system prompt reach the server, are the conversation's own, and bad ones do not leave", async () => {
    const page = await ready(mock.url);
    await page.getByRole("button", { name: /^Settings/ }).click();
    await page.getByLabel("System prompt").fill("Be brief.");
    for (const [label, value] of [["Temperature", "0.7"], ["Top p", "0.9"], ["Top k", "40"], ["Min p", "0.05"], ["Seed", "11"], ["Repetition penalty", "1.1"]])
      await page.getByLabel(label).fill(value);
    await page.getByLabel("Max tokens").fill("0");
    await page.getByRole("button", { name: "Done" }).click();
    assert.ok(await page.locator("#settings").isVisible(), "stays open while a field is wrong");
    assert.match(await page.locator("#set-max_tokens-hint").innerText(), /Must be/);
    await shot(page, "settings-light");
    await accessible(page, "settings");
    await page.getByLabel("Max tokens").fill("3");
    await page.getByRole("button", { name: "Done" }).click();
    await askAndWait(page, "What is grep?");
    const { messages, model, stream, stream_options, ...sampling } = mock.requests.at(-1);
    assert.deepEqual(messages, [{ role: "system", content: "Be brief." }, { role: "user", content: "What is grep?" }]);
    assert.deepEqual(sampling, { temperature: 0.7, top_p: 0.9, top_k: 40, min_p: 0.05, seed: 11, repetition_penalty: 1.1, max_tokens: 3 });
    assert.deepEqual([model, stream, stream_options], ["seedling", true, { include_usage: true }]);
    assert.match(await lastAnswer(page).locator(".stats").innerText(), /^3 tokens .*cut off at the token limit$/);
    await page.getByRole("button", { name: "New chat" }).click();
    await askAndWait(page, "What is grep?");
    assert.equal(mock.requests.at(-1).temperature, undefined);
    assert.equal(mock.requests.at(-1).messages.length, 1);
  });

  test("only models that chat can be chosen, and the choice stays with the conversation", async () => {
    const page = await ready(mock.url);
    const options = page.locator("#model option");
    assert.deepEqual(await options.allInnerTexts(), ["seedling", "qwen3-4b", "base-1b (no chat template)"]);
    assert.ok(await options.nth(2).isDisabled());
    await page.getByLabel("Model").selectOption("qwen3-4b");
    assert.match(await page.locator("#model-facts").innerText(), /qwen3.*4\.02B parameters.*32,768/s);
    await askAndWait(page, "think: six times seven");
    assert.equal(mock.requests.at(-1).model, "qwen3-4b");
    assert.equal(await lastAnswer(page).locator(".prose").innerText(), "It is 42.");
    assert.equal(await lastAnswer(page).locator("summary").innerText(), "Thoughts");
    await askAndWait(page, "What is grep?");
    assert.equal(mock.requests.at(-1).messages[1].content, "It is **42**.", "thoughts are not sent back");
    await page.reload();
    await page.locator("#model:enabled").waitFor();
    assert.equal(await page.getByLabel("Model").inputValue(), "qwen3-4b");
  });

  test("conversations are listed, renamed, exported, deleted and brought back", async () => {
    const page = await ready(mock.url);
    await askAndWait(page, "What is grep?");
    await page.keyboard.press("Control+k");
    assert.equal(await answers(page).count(), 0);
    await askAndWait(page, "count lines in a file");
    const titles = () => page.locator("#chats .chat").allInnerTexts();
    assert.deepEqual(await titles(), ["count lines in a file", "What is grep?"]);
    await page.getByRole("button", { name: "What is grep?", exact: true }).click();
    assert.match(await lastAnswer(page).innerText(), /Find patterns/);

    await page.getByRole("button", { name: "More for “What is grep?”" }).click();
    await shot(page, "menu-light");
    await page.getByRole("button", { name: "Rename" }).click();
    await page.keyboard.type("About grep");
    await page.keyboard.press("Enter");
    assert.ok((await titles()).includes("About grep"));
    await page.getByRole("button", { name: "More for “About grep”" }).click();
    const [file] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Export as JSON" }).click()]);
    assert.equal(file.suggestedFilename(), "About-grep.json");
    const exported = JSON.parse(readFileSync(await file.path(), "utf8"));
    assert.deepEqual(exported.messages.map(({ role, content }) => [role, content]), [["user", "What is grep?"], ["assistant", "Find patterns in files using regexes."]]);
    await page.getByRole("button", { name: "More for “About grep”" }).click();
    await page.getByRole("button", { name: "Delete" }).click();
    assert.deepEqual(await titles(), ["count lines in a file"]);
    await page.getByRole("button", { name: "Undo" }).click();
    assert.ok((await titles()).includes("About grep"));
    await page.reload();
    assert.equal((await titles()).length, 2);
  });

  test("the last message can be changed and sent again", async () => {
    const page = await ready(mock.url);
    await askAndWait(page, "What is grep?");
    await askAndWait(page, "count limes");
    await page.locator(".user").last().hover();
    await page.getByRole("button", { name: "Edit" }).click();
    const editor = page.getByRole("textbox", { name: "Change your message" });
    assert.equal(await editor.inputValue(), "count limes");
    await editor.fill("count lines in a file");
    await page.keyboard.press("Enter");
    await page.locator(".command").waitFor();
    await idle(page);
    assert.deepEqual(mock.requests.at(-1).messages.map(({ content }) => content), ["What is grep?", "Find patterns in files using regexes.", "count lines in a file"]);
    assert.equal(await page.locator(".turn").count(), 4);
  });

  test("stopping closes the request; answers of other conversations go on", async () => {
    mock.delay = 20;
    const page = await ready(mock.url);
    await ask(page, "a long answer");
    await page.waitForFunction(() => document.querySelector(".running .prose")?.innerText.length > 40);
    await page.getByRole("button", { name: "Stop" }).click();
    await idle(page);
    assert.match(await lastAnswer(page).locator(".stats").innerText(), /^about \d+ tokens .*stopped$/);
    for (let i = 0; mock.cancelled === 0 && i < 100; i++) await new Promise((resolve) => setTimeout(resolve, 20));
    assert.equal(mock.cancelled, 1);

    await page.keyboard.press("Control+k");
    await ask(page, "how do I extract a tar.gz archive?");
    await page.getByRole("button", { name: "a long answer", exact: true }).click();
    await page.locator("#chats .running").waitFor();
    await page.locator("#chats li:not(.running)").nth(1).waitFor();
    await page.getByRole("button", { name: /^how do I extract/ }).click();
    await idle(page);
    await lastAnswer(page).locator("a").last().waitFor();
    assert.equal(await lastAnswer(page).locator("tbody tr").count(), 2);
  });

  test("a reader who scrolls up is left there and can jump to the end", async () => {
    const page = await ready(mock.url);
    await ask(page, "a long answer");
    await page.waitForFunction(() => document.querySelector("#scroller").scrollTop > 600);
    await page.mouse.move(700, 300);
    await page.mouse.wheel(0, -500);
    await page.getByRole("button", { name: "Latest" }).waitFor();
    const at = await page.evaluate(() => document.querySelector("#scroller").scrollTop);
    const length = await page.locator(".prose").innerText();
    await page.waitForFunction((before) => document.querySelector(".prose").innerText.length > before + 300, length.length);
    assert.equal(await page.evaluate(() => document.querySelector("#scroller").scrollTop), at);
    await page.getByRole("button", { name: "Latest" }).click();
    await page.waitForFunction(() => { const s = document.querySelector("#scroller"); return s.scrollHeight - s.scrollTop - s.clientHeight < 60; });
  });

  test("each failure says what to do, and trying again works", async () => {
    const page = await ready(mock.url);
    const alert = page.getByRole("alert");
    const failing = async (failure, says) => {
      mock.fail.push(failure);
      await page.getByRole("textbox", { name: "Message" }).fill("What is grep?");
      await page.keyboard.press("Enter");
      await alert.waitFor();
      assert.match(await alert.innerText(), says);
    };
    await failing({ status: 429, error: { message: "full", code: "queue_full" }, headers: { "retry-after": "3" } }, /busy.*Try again in 3 seconds/s);
    await shot(page, "error-light");
    await accessible(page, "error");
    await page.getByRole("button", { name: "Try again" }).click();
    await lastAnswer(page).waitFor();
    await idle(page);
    assert.equal(await alert.count(), 0);
    assert.match(await lastAnswer(page).innerText(), /Find patterns/);

    await failing({ status: 500, error: { message: "boom" } }, /The server failed.*boom/s);
    await failing({ status: 400, error: { message: "top_p must be at most 1", param: "top_p", code: "invalid_value" } }, /refused.*top_p must be at most 1/s);
    await alert.getByRole("button", { name: "Settings" }).click();
    assert.equal(await page.evaluate(() => document.activeElement.id), "set-top_p");
    await page.keyboard.press("Escape");
    await failing({ status: 404, error: { message: "no", code: "model_not_found" } }, /not served/);
    await failing("cut", /broke off/);
    assert.match(await lastAnswer(page).locator(".stats").innerText(), /broke off/);
    await page.getByRole("button", { name: "Try again" }).click();
    await idle(page);
    assert.equal(await lastAnswer(page).locator(".prose").innerText(), "Find patterns in files using regexes.");

    await failing({ status: 400, error: { message: "too long", code: "context_length_exceeded", param: "messages" } }, /too long.*1,024 tokens/s);
    await page.getByRole("button", { name: "Start a new chat" }).click();
    assert.equal(await answers(page).count(), 0);
    assert.equal(await page.getByRole("textbox", { name: "Message" }).inputValue(), "What is grep?");
  });

  test("a server that is gone is named, and found again", async () => {
    const page = await ready(mock.url);
    const port = Number(new URL(mock.url).port);
    await mock.close();
    await page.getByRole("textbox", { name: "Message" }).fill("What is grep?");
    await page.keyboard.press("Enter");
    await page.getByRole("alert").waitFor();
    assert.match(await page.getByRole("alert").innerText(), /does not answer.*sedge serve/s);
    mock = await startMock({ port, delay: 2 });
    await page.getByRole("button", { name: "Try again" }).click();
    await lastAnswer(page).locator(".stats:not(:empty)").waitFor();
    assert.match(await lastAnswer(page).innerText(), /Find patterns/);
  });

  test("a server with keys asks for one, keeps it for the tab only, and says when it is wrong", async () => {
    mock.key = "s3cret";
    const page = await visit(mock.url);
    const dialog = page.getByRole("dialog");
    await dialog.waitFor();
    await accessible(page, "key");
    await shot(page, "key-light");
    await page.getByLabel("API key").fill("wrong");
    await page.getByRole("button", { name: "Continue" }).click();
    await page.getByRole("heading", { name: "That key is not accepted" }).waitFor();
    await page.getByLabel("API key").fill("s3cret");
    await page.keyboard.press("Enter");
    await page.locator("#model:enabled").waitFor();
    await askAndWait(page, "What is grep?");
    assert.match(await lastAnswer(page).innerText(), /Find patterns/);
    assert.ok(!(await page.evaluate(() => JSON.stringify(localStorage))).includes("s3cret"));
    await page.reload();
    await page.locator("#model:enabled").waitFor();
    mock.key = "changed";
    await page.getByRole("textbox", { name: "Message" }).fill("count lines in a file");
    await page.keyboard.press("Enter");
    await dialog.waitFor();
    await page.getByLabel("API key").fill("changed");
    await page.keyboard.press("Enter");
    await page.locator(".command").waitFor();
  });

  test("the keyboard does everything", async () => {
    const page = await ready(mock.url);
    const focused = () => page.evaluate(() => document.activeElement.id || document.activeElement.className || document.activeElement.tagName);
    assert.equal(await focused(), "prompt");
    await page.keyboard.type("echo one");
    await page.keyboard.press("Shift+Enter");
    await page.keyboard.type("two");
    assert.equal(mock.requests.length, 0);
    await page.keyboard.press("Enter");
    await answers(page).first().waitFor();
    await idle(page);
    assert.equal(mock.requests[0].messages[0].content, "echo one\ntwo");
    assert.equal(await focused(), "prompt");
    mock.delay = 20;
    await ask(page, "a long answer");
    await page.keyboard.press("Escape");
    await idle(page);
    assert.match(await lastAnswer(page).locator(".stats").innerText(), /stopped/);
    await page.keyboard.press("Control+k");
    assert.equal(await focused(), "prompt");
    const more = page.locator("#chats .more").first();
    await more.focus();
    await page.keyboard.press("Enter");
    await page.keyboard.press("ArrowDown");
    assert.equal(await page.evaluate(() => document.activeElement.textContent), "Export as JSON");
    await page.keyboard.press("Escape");
    assert.match(await focused(), /more/);
    await page.getByRole("button", { name: /^Settings/ }).focus();
    await page.keyboard.press("Enter");
    await page.locator("#settings[open]").waitFor();
    await page.keyboard.press("Escape");
    assert.equal(await focused(), "open-settings");
  });

  test("screen readers hear an answer once, when it is whole", async () => {
    const page = await ready(mock.url);
    await page.evaluate(() => {
      window.heard = [];
      new MutationObserver(() => window.heard.push(document.querySelector("#announce").textContent)).observe(document.querySelector("#announce"), { childList: true, characterData: true, subtree: true });
    });
    await askAndWait(page, "What is grep?");
    assert.deepEqual(await page.evaluate(() => window.heard), ["Answering.", "Find patterns in files using regexes."]);
    assert.equal(await page.locator("main [aria-live], main [role=log]").count(), 0);
  });

  test("the theme follows the system until one is chosen, and the choice stays", async () => {
    const page = await ready(mock.url, { ...DESKTOP, colorScheme: "dark" });
    const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    assert.equal(await ground(), "rgb(15, 23, 21)");
    await page.getByRole("button", { name: "Theme: as the system" }).click();
    assert.equal(await ground(), "rgb(245, 248, 245)");
    await page.reload();
    assert.equal(await ground(), "rgb(245, 248, 245)");
    await page.getByRole("button", { name: "Theme: light" }).click();
    await page.getByRole("button", { name: "Theme: dark" }).waitFor();
  });

  test("About tells the address and a curl line that works as it stands", async () => {
    const page = await ready(mock.url);
    await page.getByRole("button", { name: "About & API" }).click();
    assert.equal(await page.locator("#api-base").innerText(), `${mock.url}/v1`);
    await accessible(page, "about");
    await shot(page, "about-light");
    await page.locator("#about").getByRole("button", { name: "Copy" }).nth(1).click();
    const line = await page.evaluate(() => navigator.clipboard.readText());
    const { execFile } = await import("node:child_process");
    const output = await new Promise((resolve, reject) => execFile("sh", ["-c", line.replace(/^curl /, "curl -sS --noproxy '*' ")], (error, stdout) => (error ? reject(error) : resolve(stdout))));
    assert.equal(mock.requests.at(-1).messages[0].content, "What is grep?");
    assert.match(output, /chat\.completion/);
  });

  test("on a phone nothing is cut off and the list is a drawer", async () => {
    const page = await ready(mock.url, PHONE);
    const fits = async () => assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 360);
    await fits();
    await shot(page, "phone-empty");
    await page.getByRole("textbox", { name: "Message" }).fill("how do I extract a tar.gz archive?");
    await page.getByRole("button", { name: "Send" }).tap();
    await answers(page).first().waitFor();
    await idle(page);
    await fits();
    await shot(page, "phone-chat");
    await accessible(page, "phone");
    await page.getByRole("button", { name: "Open the list of conversations" }).tap();
    await page.getByRole("button", { name: /^how do I extract/ }).waitFor();
    await shot(page, "phone-drawer");
    await accessible(page, "drawer");
    await page.keyboard.press("Escape");
    await page.getByRole("button", { name: "Open the list of conversations" }).waitFor();
    await page.getByRole("button", { name: /^Settings/ }).tap();
    await page.getByRole("button", { name: "Done" }).waitFor();
    await fits();
    await shot(page, "phone-settings");
  });

  for (const scheme of ["light", "dark"]) {
    test(`nothing serious for axe in ${scheme}`, async () => {
      const page = await ready(mock.url, { ...DESKTOP, colorScheme: scheme });
      await accessible(page, `empty ${scheme}`);
      await askAndWait(page, "how do I extract a tar.gz archive?");
      await askAndWait(page, "find all files larger than 100MB");
      await accessible(page, `answered ${scheme}`);
    });
  }

  /** The live view, once it shows something. */
  async function liveView(options) {
    const page = await visit(mock.url, options);
    await page.goto(new URL("live.html", mock.url).href);
    return page;
  }

  for (const [name, options] of [["light", DESKTOP], ["dark", { ...DESKTOP, colorScheme: "dark" }], ["phone", PHONE]]) {
    test(`the live view fits, can be read and is nothing serious for axe: ${name}`, async () => {
      const page = await liveView(options);
      await page.locator("#requests progress").first().waitFor();
      assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), options.viewport.width);
      // Text of drawings is not scaled down with them.
      assert.ok(await page.locator("#tokens svg").evaluate((svg) => svg.getScreenCTM().a > 0.95));
      await accessible(page, `live ${name}`);
      await shot(page, `live-${name}`);
      // The tables are reached and scrolled by keyboard.
      await page.getByRole("region", { name: "Requests" }).focus();
      assert.ok(await page.getByRole("region", { name: "Requests" }).evaluate((it) => it === document.activeElement));
    });
  }

  test("the live view asks for a key, says when it is wrong, and goes on with the right one", async () => {
    mock.key = "sesame";
    const page = await liveView();
    await page.getByRole("status").getByText("needs an API key").waitFor();
    await page.keyboard.type("wrong");
    await page.keyboard.press("Enter");
    await page.getByRole("status").getByText("not accepted").waitFor();
    await page.getByLabel("API key").fill("sesame");
    await page.keyboard.press("Enter");
    await page.locator("#requests progress").first().waitFor();
    await page.reload();
    await page.locator("#requests progress").first().waitFor();
  });

  test("the live view begins again with a server that was started again, and sees one that keeps silent", async () => {
    const page = await liveView();
    await page.locator("#requests progress").first().waitFor();
    while (mock.live.asked.at(-1).since !== 300) await page.waitForTimeout(100);
    // It has already run further than the one before, so that its number tells nothing.
    Object.assign(mock.live, { started: 2, steps: 330, asked: [] });
    while (mock.live.asked.at(-1)?.since !== 330) await page.waitForTimeout(100);
    assert.deepEqual(mock.live.asked.slice(0, 2).map(({ since }) => since), [300, 0]);
    // After the last step, in which 6 ran, the line goes on with what the server says of now.
    const ends = () => page.locator("#queue path.line.c1").getAttribute("d").then((d) => Number(d.split(" ").at(-1)));
    const busy = await ends();
    mock.live.running = 0;
    await page.waitForFunction((before) => Number(document.querySelector("#queue path.line.c1").getAttribute("d").split(" ").at(-1)) > before, busy);
    mock.live.silent = true;
    await page.getByRole("status").getByText("does not answer").waitFor();
    mock.live.silent = false;
    await page.getByRole("status").getByText("seedling").waitFor();
    await page.getByLabel("Model").selectOption("qwen3-4b");
    await page.getByRole("status").getByText("qwen3-4b").waitFor();
    await page.getByRole("cell", { name: "–" }).first().waitFor();
  });

  test("a browser with other programs' entries, or no storage at all, still chats", async () => {
    const page = await ready(mock.url);
    await page.evaluate(() => {
      localStorage.setItem("sedge.chat.bad", "{not json");
      localStorage.setItem("sedge.chat.odd", JSON.stringify({ id: "odd", messages: [{ role: "user", content: 7 }, null, { role: "tool" }], sampling: [], title: 3 }));
      localStorage.setItem("sedge.defaults", "[]");
    });
    await page.reload();
    await page.locator("#model:enabled").waitFor();
    await askAndWait(page, "What is grep?");
    assert.match(await lastAnswer(page).innerText(), /Find patterns/);

    const bare = await browser.newContext(DESKTOP);
    await bare.addInitScript(() => {
      for (const name of ["localStorage", "sessionStorage"]) Object.defineProperty(window, name, { get() { throw new DOMException("no", "SecurityError"); } });
    });
    const other = await bare.newPage();
    other.on("pageerror", (error) => complaints.push(error.stack));
    await other.goto(mock.url);
    await other.locator("#model:enabled").waitFor();
    await askAndWait(other, "What is grep?");
    assert.match(await lastAnswer(other).innerText(), /Find patterns/);
  });

  test("a server that tells only its models' names is enough", async () => {
    const facts = MODELS.splice(0, MODELS.length, { id: "plain", object: "model" });
    try {
      const page = await ready(mock.url);
      assert.equal(await page.locator("#model-facts").innerText(), "running on this machine");
      await askAndWait(page, "What is grep?");
      assert.equal(await page.locator("#context").innerText(), "");
    } finally {
      MODELS.splice(0, MODELS.length, ...facts);
    }
  });
});
