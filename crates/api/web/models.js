// What the page says about a model: facts, a description, prompts to start with.

const count = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

/** Numbers of tokens, as read: 1,024. */
export const tokens = (n) => count.format(n);

/** Whether the model can answer here; an encoder only embeds. */
export const generates = (model) => model.generates !== false;

/** Whether it has a chat template. */
export const chats = (model) => generates(model) && model.chat !== false;

const LOOPBACK = /^(localhost|.*\.localhost|127(\.\d+){3}|\[::1\])$/;

/** One line under the model's name. */
export function facts(model) {
  const place = LOOPBACK.test(location.hostname) ? "running on this machine" : `running on ${location.hostname}`;
  return [
    model.parent ? `${model.method} adapter of ${model.parent}` : model.architecture,
    model.parameters > 0 && `${short.format(model.parameters)} parameters`,
    model.context > 0 && `${tokens(model.context)} tokens of context`,
    place,
  ].filter(Boolean);
}

/** The built-in model does one thing; its introduction says which. */
const KNOWN = {
  seedling: {
    about: "Describe a task and seedling suggests a shell command, or ask what a command does. It is small and can be wrong.",
    placeholder: "Describe a task",
    system: "seedling never saw a system prompt in training: it does best without one.",
    prompts: ["find all files larger than 100MB", "how do I extract a tar.gz archive?", "What is grep?", "count lines in a file"],
  },
};

const ANY = {
  about: "Ask anything. The answer is made by the model above, and conversations stay in this browser.",
  placeholder: "Ask anything",
  system: "Sent before the first message.",
  prompts: [
    "Explain how a hash map works",
    "Write a Python function that merges two sorted lists",
    "What should I check before a code review?",
    "Summarise the difference between TCP and UDP",
  ],
};

/** Words for the empty conversation and the settings. */
export const introduction = (model) => (model ? KNOWN[model.id] ?? ANY : { ...ANY, about: "", prompts: [] });
