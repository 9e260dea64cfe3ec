// The recorded examples, and the reports that the server has.
import { $, api, el } from "./lib.js";

export async function setUpGallery(recorded, write, judge) {
  $("recorded").textContent = `Recorded by ${recorded.command}.`;
  $("cards").append(...recorded.examples.map((example, i) => el("article", { class: "card" },
    el("h2", {}, `Problem ${i + 1}`),
    el("p", {}, example.question),
    el("div", { class: "row" },
      el("button", { type: "button", "aria-label": `Problem ${i + 1}: see it written`, onclick: () => write(example) }, "See it written"),
      el("button", { type: "button", "aria-label": `Problem ${i + 1}: see it judged`, onclick: () => judge(example) }, "See it judged")))));
  try {
    const { reports } = await api("/ledom/reports");
    $("reports").append(...reports.map(({ name, written }) => el("li", {},
      el("a", { href: `/ledom/reports/${name.split("/").map(encodeURIComponent).join("/")}` }, name),
      el("span", { class: "muted" }, ` ${new Date(1000 * written).toLocaleDateString()}`))));
    $("no-reports").hidden = reports.length > 0;
  } catch {
    $("no-reports").hidden = false;
  }
}
