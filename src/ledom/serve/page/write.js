// The view "Write backwards": two panes, one per model. A model writes token by token and keeps its branches.
import { $, api, between, calm, el, fillSelect, isPartial, nats, percent, visible } from "./lib.js";
import { Alternatives } from "./alternatives.js";

const CHUNK = 12; // tokens per request; the next chunk is computed while this one is shown
const MOST = 400; // maximum tokens of a branch
const PACE = 40; // milliseconds per token
const LONG = 16; // a word of at least this many characters may be broken, such as a text without spaces
const SHARED = 80; // maximum characters shown of the part that two branches share

const pause = (ms, signal) => new Promise((resolve, reject) => {
  const timer = setTimeout(resolve, ms);
  signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
});

/**
 * The pane of one model. A branch is {given, steps, next, end, done, number}: `steps` are the tokens in the order in
 * which the model wrote them, each {text, logprob, alternatives}; `next` are the most likely next tokens; the one
 * named `end` ends the text.
 */
class Pane {
  constructor(direction, popover, settings) {
    this.direction = direction;
    this.backwards = direction === "reverse";
    this.settings = settings;
    this.popover = popover;
    this.root = $(`${direction}-pane`);
    this.part = Object.fromEntries([...this.root.querySelectorAll("[data-part]")].map((e) => [e.dataset.part, e]));
    this.branches = [];
    this.part.write.addEventListener("click", () => (this.job ? this.stop() : this.write()));
    this.part.resume.addEventListener("click", () => this.grow(this.branch));
    this.part.text.addEventListener("keydown", (event) => this.move(event));
    this.part.text.addEventListener("copy", (event) => { // without the marks of line ends and of the end
      event.clipboardData.setData("text/plain", String(getSelection()).replace(/↵|∎/g, ""));
      event.preventDefault();
    });
    for (const kind of ["focusin", "mouseover", "click"]) {
      this.part.text.addEventListener(kind, (event) => this.open(event.target.closest(".token")));
    }
  }

  /** Replace all branches with a recorded one. */
  load(recorded) {
    this.stop();
    this.branches = [];
    this.add({ given: recorded.given, end: recorded.end, ...this.read(recorded) });
  }

  /** Begin a branch with the text in the form. */
  write() {
    const given = this.part.given.value;
    if (!given) return this.say(`Type ${this.backwards ? "an ending" : "a beginning"} first.`);
    $("write-example").selectedIndex = -1; // each example can be chosen again
    const branch = { given, steps: [], next: [], end: "", done: false };
    this.add(branch);
    return this.grow(branch);
  }

  /** Begin a branch with the shown one up to the token `index`, followed by `choice`. */
  fork(index, choice) {
    const { given, steps, next, end } = this.branch;
    const alternatives = steps[index]?.alternatives ?? next;
    const done = choice.text === end;
    const kept = steps.slice(0, index);
    if (!done) kept.push({ ...choice, alternatives });
    this.stop();
    const branch = { given, steps: kept, next: done ? alternatives : [], end, done };
    this.add(branch);
    this.focus(index);
    if (!done) this.grow(branch);
  }

  add(branch) {
    branch.number = this.branches.push(branch);
    this.select(branch);
  }

  select(branch) {
    if (branch !== this.branch) this.stop();
    this.popover.close();
    this.branch = branch;
    this.part.given.value = branch.given;
    this.say("");
    this.render();
  }

  stop() {
    this.job?.abort(new DOMException("stopped", "AbortError"));
    this.job = null;
  }

  /** Let the model continue to the end of the text; show each token. */
  async grow(branch) {
    this.stop();
    const job = (this.job = new AbortController());
    this.say("");
    this.render();
    try {
      let made = await this.ask(branch, [], job.signal);
      const warning = made.warning ?? "";
      this.say(warning);
      for (;;) {
        const isLast = made.done || branch.steps.length + made.steps.length >= MOST;
        const more = isLast ? null : this.ask(branch, made.steps, job.signal);
        more?.catch(() => {}); // it is awaited below
        for (const step of made.steps) {
          if (!calm()) await pause(PACE, job.signal);
          this.append(branch.steps.push(step) - 1);
        }
        Object.assign(branch, { next: made.next, done: made.done });
        if (more === null) break;
        made = await more;
      }
      this.say(`${branch.done ? "Complete" : "Paused"}. ${warning}`.trim());
    } catch (error) {
      if (this.job === job) this.say(error.message);
    }
    if (this.job === job) this.job = null;
    if (this.branch === branch && !this.job) this.render();
  }

  async ask(branch, pending, signal) {
    const [temperature, seed] = this.settings();
    const made = await api("/ledom/generate", {
      model: this.direction, prompt: this.whole(branch, pending), max_tokens: CHUNK, temperature, seed, alternatives: 6,
    }, signal);
    branch.end = made.end;
    return this.read(made);
  }

  /** A response of the server, with its tokens in the order of writing. */
  read(made) {
    const steps = this.backwards ? made.tokens.toReversed() : [...made.tokens];
    const done = made.finish_reason === "stop";
    // An incomplete character cannot be part of a prompt. It is dropped, and the model writes it again.
    let whole = steps.length;
    while (!done && whole && isPartial(steps[whole - 1].text)) whole -= 1;
    return { steps: whole ? steps.slice(0, whole) : steps, next: made.next, done, warning: made.warning };
  }

  written(branch, pending = []) {
    const texts = [...branch.steps, ...pending].map((step) => step.text);
    return (this.backwards ? texts.reverse() : texts).join("");
  }

  whole(branch, pending = []) {
    const written = this.written(branch, pending);
    return this.backwards ? written + branch.given : branch.given + written;
  }

  say(text) {
    this.part.status.textContent = text;
  }

  // Rendering ------------------------------------------------------------------------------------

  render() {
    const { text, write, resume } = this.part;
    const { steps, done, next, end } = this.branch;
    const isGrowing = Boolean(this.job);
    const focused = text.contains(document.activeElement) ? document.activeElement.dataset.index : undefined;
    text.setAttribute("aria-busy", isGrowing);
    text.classList.toggle("leftward", isGrowing && this.backwards);
    text.classList.toggle("growing", isGrowing);
    text.replaceChildren();
    this.word = null;
    if (text.classList.contains("leftward")) {
      steps.forEach((_, index) => this.append(index));
    } else {
      const shown = steps.map((_, index) => this.token(index));
      if (done) shown.push(this.token(steps.length, { text: "∎", ...next.find((one) => one.text === end), name: "end" }));
      text.append(...(this.backwards ? shown.reverse() : shown));
      if (!shown.length) text.append(el("span", { class: "muted" }, "Nothing is written yet."));
    }
    if (isGrowing && document.activeElement === resume) write.focus(); // a hidden button loses the focus
    write.textContent = isGrowing ? "Stop" : this.backwards ? "Write to the left" : "Write to the right";
    resume.hidden = isGrowing || done;
    this.part.pass.hidden = isGrowing || !done || !this.canPass();
    this.renderBranches();
    this.settle();
    if (focused !== undefined) this.focus(focused);
  }

  /** Focus a token without opening its alternatives. */
  focus(index) {
    this.isQuiet = true;
    this.part.text.querySelector(`[data-index="${index}"]`)?.focus({ preventScroll: true });
    this.isQuiet = false;
  }

  /** Keep one token in the tab order; arrow keys reach the others. */
  settle() {
    const first = this.part.text.querySelector(".token");
    if (first && !this.part.text.querySelector('.token[tabindex="0"]')) first.tabIndex = 0;
  }

  token(index, step = this.branch.steps[index]) {
    const text = step.name === "end" ? "∎" : step.text.replaceAll("\n", "↵\n");
    const chance = step.logprob === undefined ? "" : `, ${percent(step.logprob)}`;
    return el("span", {
      class: "token", role: "button", tabindex: "-1", "data-index": index, "aria-haspopup": "true",
      "aria-label": (step.name === "end" ? "end of the text" : visible(step.text) || "part of a character") + chance,
      style: { "--h": step.logprob === undefined ? 0 : (1 - Math.exp(step.logprob)).toFixed(3) },
    }, text);
  }

  /** Show one more token: to the right in a line of text, to the left in boxes that fill lines from the bottom. */
  append(index) {
    const { text } = this.part;
    const made = this.token(index);
    if (!text.classList.contains("leftward")) {
      if (!text.querySelector(".token")) text.replaceChildren();
      text.append(made);
      return this.settle();
    }
    const written = this.branch.steps[index].text;
    const lines = written.split("\n").length - 1;
    const turn = () => {
      text.append(...Array.from({ length: lines }, () => el("span", { class: "turn" }, "\u200b")));
      this.word = null;
    };
    if (written.endsWith("\n")) turn();
    if (!this.word) text.append((this.word = el("span", { class: "word" })));
    made.textContent = made.textContent.replaceAll("\n", "");
    this.word.prepend(made); // in front of the rest of its word
    if (/^\s/.test(written) || this.word.textContent.length >= LONG) this.word = null;
    if (lines && !written.endsWith("\n")) turn();
    return this.settle();
  }

  renderBranches() {
    const focused = [...this.part.branches.children].indexOf(document.activeElement);
    const rows = this.branches.map((branch) => {
      const isShown = branch === this.branch;
      const sum = branch.steps.reduce((total, step) => total + step.logprob, 0);
      const count = branch.steps.length;
      const facts = `${branch.done ? "" : "unfinished, "}${count} token${count === 1 ? "" : "s"}, log P ${nats(sum)}`;
      return el("button", {
        type: "button", class: "branch", "aria-pressed": String(isShown), onclick: () => this.select(branch),
      }, el("strong", {}, `Branch ${branch.number}`), el("span", { class: "muted" }, facts), this.excerpt(branch));
    });
    this.part.branches.replaceChildren(...(rows.length > 1 ? rows : []));
    this.part.branches.children[focused]?.focus({ preventScroll: true });
  }

  /** The text of another branch. The part that it shares with the shown branch is faint, and shortened. */
  excerpt(branch) {
    const shown = this.branch;
    if (branch === shown) return null;
    let same = 0;
    while (branch.given === shown.given && same < branch.steps.length
      && branch.steps[same].text === shown.steps[same]?.text) same += 1;
    let shared = this.written({ steps: branch.steps.slice(0, same) });
    if (shared.length > SHARED) shared = this.backwards ? `${shared.slice(0, SHARED)} …` : `… ${shared.slice(-SHARED)}`;
    const parts = [el("span", { class: "faint" }, shared), this.written({ steps: branch.steps.slice(same) })];
    return el("span", { class: "excerpt" }, ...(this.backwards ? parts.reverse() : parts));
  }

  // Alternatives ---------------------------------------------------------------------------------

  open(token) {
    if (!token || this.isQuiet) return;
    const index = Number(token.dataset.index);
    const { steps, next, end } = this.branch;
    for (const other of this.part.text.querySelectorAll(".token")) other.tabIndex = other === token ? 0 : -1;
    this.popover.open(token, steps[index]?.alternatives ?? next, {
      chosen: steps[index]?.text ?? end, end, choose: (choice) => this.fork(index, choice),
    });
  }

  move(event) {
    const tokens = [...this.part.text.querySelectorAll(".token")];
    const here = tokens.indexOf(document.activeElement);
    if (here < 0) return;
    const flipped = this.part.text.classList.contains("leftward") ? -1 : 1;
    const to = { ArrowLeft: here - flipped, ArrowRight: here + flipped, Home: 0, End: tokens.length - 1 }[event.key];
    if (["ArrowDown", "Enter", " "].includes(event.key)) this.popover.enter();
    else if (event.key === "Escape") this.popover.close();
    else if (to !== undefined) tokens[Math.min(Math.max(to, 0), tokens.length - 1)].focus();
    else return;
    event.preventDefault();
  }
}

/** Set up the view. `judge(question, answers)` opens the other view. Returns a function that shows an example. */
export function setUpWrite(recorded, server, judge) {
  const popover = new Alternatives($("alternatives"));
  const settings = () => [Number($("temperature").value), Math.max(0, Math.trunc(Number($("seed").value)) || 0)];
  const reverse = new Pane("reverse", popover, settings);
  const forward = new Pane("forward", popover, settings);
  const separator = () => between(server.template);
  const questionOf = (text) => text.slice(0, Math.max(0, text.indexOf(separator())));
  reverse.canPass = () => questionOf(reverse.whole(reverse.branch)) !== "";
  forward.canPass = () => questionOf(forward.branch.given) !== "";
  reverse.part.pass.addEventListener("click", () => {
    forward.part.given.value = questionOf(reverse.whole(reverse.branch)) + separator();
    forward.write();
  });
  forward.part.pass.addEventListener("click", () => {
    const { given } = forward.branch;
    const same = forward.branches.filter((branch) => branch.given === given && branch.done);
    judge(questionOf(given), [...new Set(same.map((branch) => forward.whole(branch).slice(questionOf(given).length + separator().length)))]);
  });
  const show = (example) => {
    $("write-example").value = recorded.examples.indexOf(example);
    reverse.load({ ...example.write.reverse, end: recorded.end });
    forward.load({ ...example.write.forward, end: recorded.end });
  };
  fillSelect($("write-example"), recorded, show);
  $("temperature").addEventListener("input", () => ($("temperature-value").textContent = $("temperature").value));
  $("write-form").addEventListener("submit", (event) => {
    event.preventDefault();
    reverse.write();
    forward.write();
  });
  show(recorded.examples[0]);
  return show;
}
