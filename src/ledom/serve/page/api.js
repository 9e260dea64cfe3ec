// Lists the routes of openapi.json, each with an example that can be edited and sent.

const element = (name, text, properties = {}) =>
  Object.assign(document.createElement(name), { textContent: text }, properties);

// An example body, made of the examples of a schema's fields.
function example(schema, description) {
  const name = schema.$ref.split("/").pop();
  const fields = Object.entries(description.components.schemas[name].properties);
  const given = fields.filter(([, field]) => field.examples);
  return Object.fromEntries(given.map(([key, field]) => [key, field.examples[0]]));
}

async function send(method, path, body, output) {
  const token = document.getElementById("token").value;
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  output.textContent = "...";
  try {
    const answer = await fetch(path, { method, headers, body });
    const text = await answer.text();
    const isJson = (answer.headers.get("content-type") ?? "").includes("json");
    const shown = isJson ? JSON.stringify(JSON.parse(text), null, 2) : text;
    output.textContent = `${answer.status}\n${shown}`;
  } catch (error) {
    output.textContent = `The request failed: ${error.message}`;
  }
}

// The summary is the description's first sentence; the other sentences appear when the route is opened.
function route(method, path, operation, description) {
  const box = document.createElement("details");
  const [first, ...others] = operation.description.split(/(?<=\.)\s+/);
  const head = element("summary", "");
  head.append(
    element("code", method.toUpperCase(), { className: "method" }), " ", element("code", path), " ",
    element("span", first, { className: "muted" }),
  );
  box.append(head, element("p", others.join(" ")));
  const schema = operation.requestBody?.content["application/json"].schema;
  let input;
  if (schema) {
    const body = JSON.stringify(example(schema, description), null, 2);
    input = element("textarea", "", { value: body, spellcheck: false });
    input.setAttribute("aria-label", `Body of ${path}`);
    box.append(input);
  }
  const output = element("pre", "", { tabIndex: 0 });
  output.setAttribute("aria-label", `Answer of ${path}`);
  output.setAttribute("role", "log");
  const button = element("button", "Send", { type: "button" });
  button.setAttribute("aria-label", `Send to ${path}`);
  button.addEventListener("click", () => send(method.toUpperCase(), path, input?.value, output));
  box.append(button, output);
  return box;
}

// The section of a tag, created on first use.
function section(name) {
  const id = `routes-${name}`;
  if (!document.getElementById(id)) {
    const made = element("section", "", { id });
    made.append(element("h2", name[0].toUpperCase() + name.slice(1)));
    routes.append(made);
  }
  return document.getElementById(id);
}

document.getElementById("access").addEventListener("submit", (event) => event.preventDefault());
const routes = document.getElementById("routes");
const answer = await fetch("/openapi.json");
if (answer.ok) {
  const description = await answer.json();
  for (const [path, operations] of Object.entries(description.paths))
    for (const [method, operation] of Object.entries(operations))
      if (!path.includes("{")) section(operation.tags[0]).append(route(method, path, operation, description));
} else {
  routes.append(element("p", `/openapi.json failed with status ${answer.status}.`));
}
