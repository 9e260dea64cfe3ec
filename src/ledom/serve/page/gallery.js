// The view "Gallery": the recorded examples, and the server's reports.
import { $, address, api, between, el } from "./lib.js";

/** The question that the model wrote: the text before the solution. */
const writtenQuestion = ({ tokens }, template) => tokens.map((token) => token.text).join("").split(between(template))[0];

export async function setUpGallery(recorded, write, judge) {
  $("recorded").textContent = `Recorded by ${recorded.command}.`;
  $("cards").append(...recorded.examples.map((example, i) => el("article", { class: "card" },
    el("h2", {}, `Problem ${i + 1}`),
    el("p", {}, example.question),
    el("h3", {}, "Written backwards from the last two lines of the solution"),
    el("p", {}, writtenQuestion(example.write.reverse, recorded.template)),
    el("div", { class: "row" },
      el("button", { type: "button", "aria-label": `Problem ${i + 1}: see it written`, onclick: () => write(example) }, "See it written"),
      el("button", { type: "button", "aria-label": `Problem ${i + 1}: see it judged`, onclick: () => judge(example) }, "See it judged")))));
  try {
    const { reports } = await api("/ledom/reports");
    $("reports").append(...reports.map(({ name, written }) => el("li", {},
      el("a", { href: address(`/ledom/reports/${name.split("/").map(encodeURIComponent).join("/")}`) }, name),
      el("span", { class: "muted" }, ` ${new Date(1000 * written).toLocaleDateString()}`))));
    $("no-reports").hidden = reports.length > 0;
  } catch {
    $("no-reports").hidden = false;
  }
}
