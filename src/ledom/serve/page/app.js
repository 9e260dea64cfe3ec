// Switches between the three views, and fills them with recorded examples and the server's models.
import { $, api } from "./lib.js";
import { setUpGallery } from "./gallery.js";
import { Judge } from "./judge.js";
import { setUpWrite } from "./write.js";

const VIEWS = ["write", "judge", "gallery"];

function showView() {
  const view = VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : VIEWS[0];
  for (const name of VIEWS) $(name).hidden = name !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${document.querySelector(`nav a[href="#${view}"]`).textContent} · ledom`;
  $("alternatives").hidden = true;
}

function go(view) {
  location.hash = view;
  scrollTo(0, 0);
}

async function start() {
  showView();
  addEventListener("hashchange", showView);
  const recorded = await api("/page/examples.json");
  // The recorded template is replaced by the one of the server's own models.
  const server = { template: recorded.template, models: null };
  const judge = new Judge(recorded, server);
  const show = setUpWrite(recorded, server, (question, answers) => {
    judge.fill(question, answers);
    go("judge");
  });
  setUpGallery(recorded, (example) => (show(example), go("write")), (example) => (judge.show(example), go("judge")));
  try {
    const found = await api("/ledom/models");
    server.models = found.models;
    server.template = Object.values(found.models)[0].template;
    for (const name of ["forward", "reverse"]) $(`${name}-pane`).hidden = !(name in found.models);
    $("write-both").hidden = Object.keys(found.models).length < 2;
    $("answer-sample").hidden = !("forward" in found.models);
  } catch (error) {
    $("notice").textContent = `Only recorded examples can be shown: ${error.message}.`;
    $("notice").hidden = false;
  }
  document.body.dataset.ready = "true";
}

start().catch((error) => {
  $("notice").textContent = `The page cannot start: ${error.message}.`;
  $("notice").hidden = false;
});
