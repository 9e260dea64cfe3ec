// The view "Judge": ranks answers by both models' log-probabilities. Moving lambda re-ranks without a request.
import { $, api, el, fillSelect, nats } from "./lib.js";

const WORST = -6; // nats: a word at or below this gets the strongest color
const UNEXPLAINED = -1; // nats: a word above this counts as explained
const SAMPLES = 4;
const LONGEST = 256; // maximum tokens of a sampled answer
const BARS = [["forward", "answer given question"], ["reverse", "question given answer"], ["prior", "answer alone"]];

export class Judge {
  constructor(recorded, server) {
    this.recorded = recorded;
    this.server = server;
    fillSelect($("judge-example"), recorded, (example) => this.show(example));
    $("judge-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    $("answer-add").addEventListener("click", () => this.add("").focus());
    $("answer-sample").addEventListener("click", () => this.sample());
    $("lambda").addEventListener("input", () => this.rank());
    $("per-token").addEventListener("change", () => this.rank());
    this.show(recorded.examples[0]);
  }

  /** Show a recorded verdict. */
  show(example) {
    this.fill(example.question, example.answers);
    $("judge-example").value = this.recorded.examples.indexOf(example);
    this.verdict(example.answers, example.judge);
  }

  fill(question, answers) {
    this.job?.abort(); // its results belong to other texts
    $("question").value = question;
    $("answers").replaceChildren();
    $("judge-example").selectedIndex = -1; // no example is shown now; each can be chosen again
    for (const answer of answers) this.add(answer);
    $("verdict").hidden = true;
    this.say("");
  }

  add(text) {
    const area = el("textarea", { rows: 3, spellcheck: "false" });
    area.value = text;
    const label = el("label", { class: "given" }, el("span"), area);
    const remove = el("button", { type: "button", class: "remove", onclick: () => this.remove(row) }, "✕");
    const row = el("div", { class: "answer" }, label, remove);
    $("answers").append(row);
    this.number();
    return area;
  }

  remove(row) {
    const next = row.nextElementSibling ?? row.previousElementSibling;
    row.remove();
    this.number();
    (next?.querySelector("button") ?? $("answer-add")).focus();
  }

  number() {
    [...$("answers").children].forEach((row, index) => {
      row.querySelector("span").textContent = `Answer ${index + 1}`;
      row.querySelector("button").setAttribute("aria-label", `Remove answer ${index + 1}`);
    });
  }

  /** The answers in the form. Answers pasted together are split. */
  answers() {
    const areas = [...$("answers").querySelectorAll("textarea")];
    return areas.flatMap((area) => area.value.split(/^---$/m)).map((text) => text.replace(/^\n+|\n+$/g, "")).filter(Boolean);
  }

  async run() {
    const question = $("question").value;
    const answers = this.answers();
    if (!answers.length) return this.say("Give an answer first.");
    this.fill(question, answers);
    return this.work("Judging …", async (signal) => {
      this.verdict(answers, await api("/ledom/score", { question, answers }, signal));
    });
  }

  async sample() {
    const question = $("question").value;
    if (!question.trim()) return this.say("Type a question first.");
    return this.work("Sampling …", async (signal) => {
      this.seed = (this.seed ?? 0) + 1;
      const prompt = this.server.template.split("{solution}")[0].replace("{question}", () => question);
      const asked = { model: "forward", prompt, add_special_tokens: true };
      const { count, max_model_len: context } = await api("/tokenize", asked, signal);
      const room = Math.max(1, Math.min(LONGEST, context - count));
      const body = { model: "forward", prompt, n: SAMPLES, max_tokens: room, temperature: 0.8, seed: this.seed };
      const { choices } = await api("/v1/completions", body, signal);
      for (const area of $("answers").querySelectorAll("textarea")) if (!area.value.trim()) area.closest(".answer").remove();
      for (const choice of choices) this.add(choice.text);
      this.say(`Added ${choices.length} answers.`);
    });
  }

  async work(message, task) {
    const job = (this.job = new AbortController());
    const focused = document.activeElement; // a disabled button loses the focus
    const buttons = $("judge-form").querySelectorAll("button");
    for (const button of buttons) button.disabled = true;
    this.say(message);
    try {
      await task(job.signal);
    } catch (error) {
      if (!job.signal.aborted) this.say(error.message);
    }
    for (const button of buttons) button.disabled = false;
    if (document.activeElement === document.body) focused.focus();
  }

  say(text) {
    $("judge-status").textContent = text;
  }

  /** Show the scores of the answers. Lambda starts at the value of the server's reward. */
  verdict(answers, found) {
    const { weights } = found;
    const perToken = "forward_mean" in weights || "reverse_mean" in weights;
    const [forward, reverse] = perToken ? [weights.forward_mean, weights.reverse_mean] : [weights.forward, weights.reverse];
    const total = (forward ?? 0) + (reverse ?? 0);
    $("per-token").checked = perToken;
    $("lambda").value = total ? (reverse ?? 0) / total : 0.5;
    $("mix").hidden = !["forward", "reverse"].every((name) => name in found.results[0].features);
    const others = Object.keys(weights).filter((name) => !/^(forward|reverse)(_mean)?$/.test(name));
    const note = others.length ? `The server's reward (${found.strategy}) weighs other scores too: ${others.join(", ")}.` : null;
    $("warning").textContent = [found.warning, note].filter(Boolean).join(" ");
    $("warning").hidden = !$("warning").textContent;
    this.cards = found.results.map((result) => new Card(answers[result.index], result, found.results));
    $("verdict").hidden = false;
    this.first = null;
    this.say("");
    this.rank();
  }

  rank() {
    const lambda = Number($("lambda").value);
    const perToken = $("per-token").checked;
    $("lambda-value").textContent = Number(lambda.toFixed(3));
    const scores = this.cards.map((card) => card.score(lambda, perToken));
    const worst = Math.min(...scores);
    this.cards.forEach((card, i) => card.update(scores[i], worst, perToken));
    const order = this.cards.map((_, i) => i).sort((a, b) => scores[b] - scores[a] || a - b);
    $("ranking").replaceChildren(...order.map((i) => this.cards[i].root));
    if (order[0] !== this.first && order.length > 1) this.say(`Answer ${order[0] + 1} ranks first.`);
    this.first = order[0];
  }
}

class Card {
  constructor(answer, result, results) {
    this.features = result.features;
    this.results = results;
    const words = result.scores["x|y"]?.words ?? [];
    const isCut = Object.values(result.scores).some((score) => score.truncated);
    this.bars = el("div", { class: "bars" });
    this.root = el("li", { class: "card" },
      el("div", {}, el("h3", {}, `Answer ${result.index + 1}`), el("p", { class: "solution" }, answer),
        isCut ? el("p", { class: "muted small" }, "The models read only a part, because the answer is longer than their context.") : null),
      words.length ? el("div", {}, el("h4", {}, "The question, explained by this answer"),
        el("p", { class: "question" }, ...words.map(colored)), unexplained(words)) : null,
      this.bars);
  }

  /** (1 - lambda) log P(answer | question) + lambda log P(question | answer), or the score of the only model. */
  score(lambda, perToken) {
    const of = (name) => this.features[perToken ? `${name}_mean` : name];
    if (of("forward") === undefined || of("reverse") === undefined) return of("forward") ?? of("reverse");
    return (1 - lambda) * of("forward") + lambda * of("reverse");
  }

  update(score, worst, perToken) {
    const digits = perToken ? 3 : 1;
    const rows = [bar("score", score, worst, "total", digits)];
    for (const [name, label] of BARS) {
      const key = perToken ? `${name}_mean` : name;
      if (!(key in this.features)) continue;
      rows.push(bar(label, this.features[key], Math.min(...this.results.map((one) => one.features[key])), name, digits));
    }
    this.bars.replaceChildren(...rows.flat());
  }
}

function bar(label, value, worst, kind, digits) {
  const length = worst < 0 ? Math.min(1, value / worst) : 0;
  return [
    el("span", { class: "label" }, label),
    el("span", { class: `bar ${kind}`, "aria-hidden": "true", style: { "--p": Math.max(0, length).toFixed(4) } }),
    el("span", { class: "value" }, nats(value, digits)),
  ];
}

function colored(word) {
  if (word.logprob === null) return word.text;
  const heat = Math.min(Math.max(word.logprob / WORST, 0), 1);
  return el("span", { class: "w", style: { "--h": heat.toFixed(3) }, title: `log P = ${nats(word.logprob)}` }, word.text);
}

function unexplained(words) {
  const worst = words.filter((word) => word.logprob !== null && word.logprob <= UNEXPLAINED);
  worst.sort((a, b) => a.logprob - b.logprob);
  const items = worst.slice(0, 5).map((word) => el("li", {}, word.text, el("span", { class: "muted" }, ` ${nats(word.logprob)}`)));
  if (!items.length) return el("p", { class: "muted small" }, "Every word is explained.");
  return el("div", {}, el("h4", {}, "Least explained"), el("ul", { class: "least" }, ...items));
}
