/**
 * The tokens of a text in a row, each a colored box, of which one is chosen by mouse or keyboard: arrows,
 * Home, End, Page Up and Page Down. A token is one element, and its listeners are those of the strip, so
 * that thousands of them are no burden.
 */

import { h, uniqueId } from "./dom.js";
import { appendText, quoted } from "./text.js";

/** @import { Scale } from "./scales.js" */

/** The rest is counted. */
export const MAX_TOKENS = 20_000;
const PAGE = 20;

export class TokenStrip {
  /**
   * @param {string} label what it is called
   * @param {(index: number) => void} [onChoose] what is done when a token is chosen
   */
  constructor(label, onChoose = () => undefined) {
    this.onChoose = onChoose;
    /** The token that is chosen, or -1. */
    this.chosen = -1;
    /** @type {string[]} */
    this.texts = [];
    /** @type {HTMLElement[]} */
    this.tokens = [];
    this.id = uniqueId("strip");
    this.element = h("div", {
      class: "strip",
      role: "listbox",
      tabindex: "0",
      hidden: true,
      "aria-label": label,
      onclick: (/** @type {MouseEvent} */ event) => this.#click(event),
      onkeydown: (/** @type {KeyboardEvent} */ event) => this.#key(event),
    });
  }

  /** Shows tokens in place of those that it has. @param {string[]} texts */
  show(texts) {
    this.chosen = -1;
    this.texts = texts.slice(0, MAX_TOKENS);
    this.element.removeAttribute("aria-activedescendant");
    this.element.replaceChildren();
    this.tokens = [];
    this.#add(this.texts, 0);
    this.element.hidden = texts.length === 0;
    if (texts.length > MAX_TOKENS) {
      this.element.append(
        h("span", { class: "rest", role: "presentation" }, `and ${texts.length - MAX_TOKENS} more`),
      );
    }
  }

  /** Adds tokens at the end. @param {string[]} texts */
  add(texts) {
    const taken = texts.slice(0, MAX_TOKENS - this.texts.length);
    this.#add(taken, this.texts.length);
    this.texts.push(...taken);
    this.element.hidden = this.texts.length === 0;
  }

  /**
   * Colors the tokens, and says of each what its value is.
   *
   * @param {ArrayLike<number | null>} values one for each token; null where it has none
   * @param {Scale} scale
   * @param {(value: number, index: number) => string} said
   */
  paint(values, scale, said) {
    this.tokens.forEach((token, index) => {
      const value = values[index] ?? null;
      token.className = scale.className(value);
      const text = value === null || Number.isNaN(value) ? "no value" : said(value, index);
      token.title = `${index}: ${text}`;
      token.setAttribute("aria-label", `${quoted(this.texts[index] ?? "")}, ${text}`);
    });
    this.#mark(this.chosen);
  }

  /** Chooses a token, without telling. @param {number} index */
  choose(index) {
    if (index < 0 || index >= this.tokens.length) return;
    this.tokens[this.chosen]?.setAttribute("aria-selected", "false");
    this.chosen = index;
    this.#mark(index);
    this.element.setAttribute("aria-activedescendant", `${this.id}-${index}`);
    this.tokens[index]?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  /** @param {number} index */
  #mark(index) {
    this.tokens[index]?.setAttribute("aria-selected", "true");
  }

  /** @param {string[]} texts @param {number} first */
  #add(texts, first) {
    const all = document.createDocumentFragment();
    texts.forEach((text, index) => {
      const token = document.createElement("span");
      token.id = `${this.id}-${first + index}`;
      token.className = "none";
      token.setAttribute("role", "option");
      token.setAttribute("aria-selected", "false");
      token.setAttribute("aria-label", quoted(text));
      if (text) appendText(token, text, { lineMarks: true });
      else token.textContent = "∅";
      this.tokens.push(token);
      all.append(token);
      if (text.includes("\n")) all.append(document.createElement("br"));
    });
    this.element.append(all);
  }

  /** @param {number} index */
  #chosenByUser(index) {
    this.choose(index);
    this.onChoose(index);
  }

  /** @param {MouseEvent} event */
  #click(event) {
    const token = /** @type {Element} */ (event.target).closest("[role=option]");
    if (token) this.#chosenByUser(Number(token.id.slice(this.id.length + 1)));
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const last = this.tokens.length - 1;
    const at = Math.max(this.chosen, 0);
    /** @type {Record<string, () => number>} */
    const moves = {
      ArrowRight: () => (this.chosen < 0 ? 0 : at + 1),
      ArrowLeft: () => at - 1,
      ArrowDown: () => this.#nextLine(at, 1),
      ArrowUp: () => this.#nextLine(at, -1),
      PageDown: () => at + PAGE,
      PageUp: () => at - PAGE,
      Home: () => 0,
      End: () => last,
      Enter: () => at,
      " ": () => at,
    };
    const move = moves[event.key];
    if (!move || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    if (last >= 0) this.#chosenByUser(Math.min(Math.max(move(), 0), last));
  }

  /** The token above or below another one. @param {number} from @param {1 | -1} step */
  #nextLine(from, step) {
    const start = this.tokens[from];
    if (!start) return from;
    let line = start.offsetTop;
    let best = from;
    for (let at = from + step; this.tokens[at]; at += step) {
      const token = /** @type {HTMLElement} */ (this.tokens[at]);
      if (token.offsetTop === start.offsetTop) continue;
      if (line === start.offsetTop) line = token.offsetTop;
      if (token.offsetTop !== line) break;
      const nearer = Math.abs(token.offsetLeft - start.offsetLeft);
      const before = /** @type {HTMLElement} */ (this.tokens[best]);
      if (best === from || nearer < Math.abs(before.offsetLeft - start.offsetLeft)) best = at;
    }
    return best;
  }
}
