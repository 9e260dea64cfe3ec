// A popover next to a token: the most likely tokens at its position.
import { el, isPartial, percent, visible } from "./lib.js";

export class Alternatives {
  constructor(root) {
    this.root = root;
    root.addEventListener("keydown", (event) => this.move(event));
    for (const kind of ["pointerdown", "focusin"]) {
      document.addEventListener(kind, ({ target }) => {
        if (!root.contains(target) && !target.closest(".token")) this.close();
      });
    }
    addEventListener("resize", () => this.close());
  }

  /** Show alternatives below a token. `chosen` is the token's text; `end` is the name of the end token. */
  open(token, alternatives, { chosen, end, choose }) {
    if (token === this.token && !this.root.hidden) return;
    this.token = token;
    const rows = alternatives.map((one) => el("button", {
      type: "button", tabindex: "-1", "aria-current": one.text === chosen ? "true" : null,
      disabled: isPartial(one.text),
      onclick: () => (this.close(), choose(one)),
    },
    el("span", { class: "piece" }, one.text === end ? "∎ end of the text" : visible(one.text)),
    el("span", { class: "bar", "aria-hidden": "true", style: { "--p": Math.exp(one.logprob).toFixed(4) } }),
    el("span", { class: "share" }, percent(one.logprob))));
    this.root.replaceChildren(...rows);
    this.root.hidden = rows.length === 0;
    const place = token.getBoundingClientRect();
    const left = Math.min(place.left, document.documentElement.clientWidth - this.root.offsetWidth - 8);
    this.root.style.setProperty("left", `${Math.max(8, left) + scrollX}px`);
    this.root.style.setProperty("top", `${place.bottom + scrollY}px`);
  }

  /** Move the focus into the list. */
  enter() {
    this.buttons()[0]?.focus();
  }

  close() {
    this.root.hidden = true;
    this.token = null;
  }

  buttons() {
    return [...this.root.querySelectorAll("button:enabled")];
  }

  move(event) {
    const buttons = this.buttons();
    const to = buttons.indexOf(document.activeElement) + { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape" || to < 0) {
      const { token } = this;
      token?.focus();
      if (event.key === "Escape") this.close();
    } else if (to < buttons.length) buttons[to].focus();
    else return;
    event.preventDefault();
  }
}
