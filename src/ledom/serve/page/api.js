// Lists the routes of openapi.json, each with an example that can be edited and sent.

import { $, address, api, el } from "./lib.js";

// An example body, built from the examples of a schema's fields.
function example(schema, description) {
  const name = schema.$ref.split("/").pop();
  const fields = Object.entries(description.components.schemas[name].properties);
  const given = fields.filter(([, field]) => field.examples);
  return Object.fromEntries(given.map(([key, field]) => [key, field.examples[0]]));
}

async function send(method, path, body, output) {
  const token = $("token").value;
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  output.textContent = "...";
  try {
    const answer = await fetch(address(path), { method, headers, body });
    const text = await answer.text();
    const isJson = (answer.headers.get("content-type") ?? "").includes("json");
    const shown = isJson ? JSON.stringify(JSON.parse(text), null, 2) : text;
    output.textContent = `${answer.status}\n${shown}`;
  } catch (error) {
    output.textContent = `The request failed: ${error.message}`;
  }
}

// A description's words; those between backticks are code.
const words = (text) => text.split("`").map((part, i) => (i % 2 ? el("code", {}, part) : part));

// The summary is the description's first sentence; the other sentences appear when the route is opened.
function route(method, path, operation, description) {
  const [first, ...others] = operation.description.split(/(?<=\.)\s+/);
  const schema = operation.requestBody?.content["application/json"].schema;
  const input = schema ? el("textarea", { spellcheck: "false", "aria-label": `Body of ${path}` }) : null;
  if (input) input.value = JSON.stringify(example(schema, description), null, 2);
  const output = el("pre", { tabindex: "0", role: "log", "aria-label": `Answer of ${path}` });
  const button = el("button", {
    type: "button", "aria-label": `Send to ${path}`,
    onclick: () => send(method.toUpperCase(), path, input?.value, output),
  }, "Send");
  const head = el("summary", {}, el("code", { class: "method" }, method.toUpperCase()), " ",
    el("code", {}, path), " ", el("span", { class: "muted" }, ...words(first)));
  return el("details", {}, head, el("p", {}, ...words(others.join(" "))), input, button, output);
}

// The section of a tag, created on first use.
function section(name) {
  const id = `routes-${name}`;
  if (!$(id)) $("routes").append(el("section", { id }, el("h2", {}, name[0].toUpperCase() + name.slice(1))));
  return $(id);
}

$("access").addEventListener("submit", (event) => event.preventDefault());
try {
  const description = await api("/openapi.json");
  for (const [path, operations] of Object.entries(description.paths))
    for (const [method, operation] of Object.entries(operations))
      if (!path.includes("{")) section(operation.tags[0]).append(route(method, path, operation, description));
} catch (error) {
  $("routes").append(el("p", {}, `The list of routes cannot be shown: ${error.message}.`));
}
