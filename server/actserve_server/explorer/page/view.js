/** What all views have: a run that can be stopped, an error, a link, and a program in Python. */

import { CallError } from "./connect.js";
import { copy } from "./copying.js";
import { h, replace, uniqueId } from "./dom.js";

/** @import { Child } from "./dom.js" */
/** @import { Explorer } from "./explorer.js" */

/** Of an error's message; the rest is left out. */
const MAX_MESSAGE = 3000;

/** A place for an error. */
export class ErrorLine {
  constructor() {
    this.element = h("p", { class: "error", role: "alert", hidden: true });
  }

  clear() {
    this.element.hidden = true;
  }

  /** @param {unknown} error */
  show(error) {
    const message = error instanceof Error ? error.message : String(error);
    const reason = error instanceof CallError ? error.reason || error.code : "";
    replace(this.element, reason && h("b", {}, reason), message.slice(0, MAX_MESSAGE));
    this.element.hidden = false;
  }
}

export class View {
  /**
   * @param {Explorer} explorer
   * @param {{ id: string, title: string, run: string, hint: string }} about
   */
  constructor(explorer, { id, title, run, hint }) {
    this.explorer = explorer;
    this.id = id;
    this.title = title;
    /** Whether it has been run, so that what it shows has a link. */
    this.hasRun = false;
    /** @type {AbortController | null} */
    this.running = null;
    const heading = uniqueId("view");
    this.errorLine = new ErrorLine();
    this.runButton = h(
      "button",
      { type: "button", class: "main", onclick: () => void this.run() },
      run,
    );
    this.stopButton = h(
      "button",
      { type: "button", disabled: true, onclick: () => this.stop() },
      "Stop",
    );
    this.buttons = h(
      "div",
      { class: "buttons" },
      this.runButton,
      this.stopButton,
      h(
        "button",
        { type: "button", class: "plain", onclick: () => void this.#copyLink() },
        "Copy link",
      ),
      h(
        "button",
        { type: "button", class: "plain", onclick: () => void this.#copyPython() },
        "Copy as Python",
      ),
    );
    this.heading = h("h2", { id: heading }, title);
    this.hint = h("p", { class: "hint" }, hint);
    this.element = h("section", { "aria-labelledby": heading, hidden: true });
  }

  /** Puts the view together: fields, then what it shows. @param {Child[]} fields @param {...Child} shown */
  compose(fields, ...shown) {
    replace(
      this.element,
      h(
        "div",
        { class: "card" },
        this.heading,
        this.hint,
        ...fields,
        this.buttons,
        this.errorLine.element,
      ),
      ...shown,
    );
  }

  /** Does what the view is for. @param {AbortSignal} signal @returns {Promise<void>} */
  async work(signal) {
    throw new Error(`${this.id} does nothing, ${String(signal.aborted)}`);
  }

  /** What a link needs to show the same. @returns {Record<string, string | number | undefined>} */
  values() {
    return {};
  }

  /** Takes what a link has. @param {URLSearchParams} values */
  open(values) {
    void values;
  }

  /** The program that does the same. @returns {string} */
  python() {
    return "";
  }

  /** Whether opening a link runs it: where that writes nothing and generates nothing. */
  get runsWhenOpened() {
    return true;
  }

  /** Told when it comes to be seen, and when it goes. */
  shown() {}
  left() {}

  async run() {
    this.stop();
    const controller = new AbortController();
    this.running = controller;
    this.hasRun = true;
    this.errorLine.clear();
    this.#busy(true);
    this.explorer.remember(this);
    try {
      await this.work(controller.signal);
      if (!controller.signal.aborted) this.explorer.say(`${this.title}: done`);
    } catch (error) {
      if (!controller.signal.aborted) this.fail(error);
    } finally {
      // What is left of it, where a part has failed.
      controller.abort();
      if (this.running === controller) {
        this.running = null;
        this.#busy(false);
      }
    }
  }

  stop() {
    this.running?.abort();
    this.running = null;
    this.#busy(false);
  }

  /** @param {unknown} error */
  fail(error) {
    this.errorLine.show(error);
    this.explorer.refused(error);
  }

  /** @param {boolean} busy */
  #busy(busy) {
    this.stopButton.disabled = !busy;
    this.runButton.classList.toggle("busy", busy);
    this.element.setAttribute("aria-busy", String(busy));
  }

  async #copyLink() {
    const link = this.explorer.linkOf(this);
    if (link === null) {
      this.explorer.say("What is shown is too long for a link");
      return;
    }
    if (await copy(link)) this.explorer.say("Link copied");
  }

  async #copyPython() {
    if (await copy(this.python())) this.explorer.say("Program copied");
  }
}
