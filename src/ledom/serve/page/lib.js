// Helpers for all views: elements, requests, numbers. Texts become text nodes, never markup.

export const $ = (id) => document.getElementById(id);

/** Create an element. `on...` adds a listener, `style` takes an object, null and false omit an attribute. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, set] of Object.entries(value)) made.style.setProperty(key, set);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** A path of the server as an address. It is relative, since a reverse proxy may put a prefix before it. */
export const address = (path) => `.${path}`;

/** Request `path` (POST if there is a body); throws an Error with the server's message. */
export async function api(path, body, signal) {
  let answer;
  try {
    answer = await fetch(address(path), body === undefined ? { signal } : {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server does not answer; start it with: ledom serve");
  }
  const data = await answer.json().catch(() => null);
  if (!answer.ok) throw new Error(data?.error?.message ?? `the server answered ${answer.status}`);
  if (data === null) throw new Error("the server's answer is not valid JSON");
  return data;
}

export function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return share >= 99.95 ? "100%" : share >= 10 ? `${share.toFixed(0)}%` : share >= 0.1 ? `${share.toFixed(1)}%` : "<0.1%";
}

export const nats = (value, digits = 1) => value.toFixed(digits).replace(/^-(?=0\.?0*$)/, "").replace("-", "−");

/** Whether a token is only part of a character. If several share one, the last of them has it as its text. */
export const isPartial = (text) => text === "" || text.includes("\ufffd");

/** A token's text with visible white space. */
export const visible = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣");

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** The text between question and solution in a template. */
export const between = (template) => template.split("{question}")[1].split("{solution}")[0];

const title = ({ question }, i) => `${i + 1}. ${question.slice(0, 32).replace(/\W*\w*$/, "")} …`;

export function fillSelect(select, data, choose) {
  select.append(...data.examples.map((example, i) => el("option", { value: i }, title(example, i))));
  select.addEventListener("change", () => choose(data.examples[select.value]));
}
