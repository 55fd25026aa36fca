/** The largest features of one token, of a dictionary that the server has. */

import { Choice } from "../fields.js";
import { h, replace } from "../dom.js";
import { topFeatures } from "../readings.js";
import { figures } from "../scales.js";
import { dictionaries, featureLabels, shortName } from "../served.js";
import { nameOf } from "../sites.js";
import { ErrorLine } from "../view.js";

/** @import { Dictionary, Prompt } from "../../contract.d.ts" */
/** @import { Explorer } from "../explorer.js" */

const SHOWN = 12;

export class TokenFeatures {
  /** @param {Explorer} explorer */
  constructor(explorer) {
    this.explorer = explorer;
    /** @type {Dictionary[] | null} */
    this.there = null;
    /** @type {Map<string, Map<number, string>>} */
    this.labels = new Map();
    /** @type {{ prompt: Prompt, index: number, signal: AbortSignal } | null} */
    this.asked = null;
    this.error = new ErrorLine();
    this.choice = new Choice("Dictionary", [], () => void this.#askAgain());
    this.table = h("table", { class: "facts" });
    this.first = h(
      "p",
      { class: "hint", hidden: true },
      "In most models the first position is an attention sink, whose features say little.",
    );
    this.element = h(
      "section",
      { class: "card", "aria-label": "Features", hidden: true },
      h("h3", {}, "Its largest features"),
      this.choice.element,
      this.error.element,
      this.table,
      this.first,
    );
  }

  /** Shows those of a token. @param {Prompt} prompt @param {number} index @param {AbortSignal} signal */
  async ask(prompt, index, signal) {
    this.asked = { prompt, index, signal };
    this.error.clear();
    try {
      await this.#shown();
    } catch (error) {
      if (!signal.aborted) this.error.show(error);
    }
  }

  async #askAgain() {
    if (this.asked) await this.ask(this.asked.prompt, this.asked.index, this.asked.signal);
  }

  async #shown() {
    const { calls, served } = this.explorer;
    if (!this.asked || !served.features.has("dictionaries")) return;
    const { prompt, index, signal } = this.asked;
    if (!this.there) {
      this.there = await dictionaries(calls, served.name, signal);
      this.choice.offer(
        this.there.map(({ name, site }) => [name, `${shortName(name)} (${nameOf(site)})`]),
      );
      this.choice.element.hidden = this.there.length < 2;
      this.element.hidden = this.there.length === 0;
    }
    const dictionary = this.there.find(({ name }) => name === this.choice.value) ?? this.there[0];
    if (!dictionary) return;
    const found = await topFeatures(this.explorer, prompt, dictionary, index, SHOWN, signal);
    const labels = await this.#labelsOf(dictionary, signal);
    this.first.hidden = index > 0;
    replace(
      this.table,
      h(
        "tbody",
        {},
        ...found.map(({ feature, value }) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, String(feature)),
            h("td", {}, figures(value)),
            h("td", {}, h("bdi", {}, labels.get(feature) ?? "")),
          ),
        ),
      ),
    );
  }

  /** @param {Dictionary} dictionary @param {AbortSignal} signal */
  async #labelsOf({ name, etag = "" }, signal) {
    const key = `${name} ${etag}`;
    const known = this.labels.get(key) ?? (await featureLabels(this.explorer.calls, name, signal));
    this.labels.set(key, known);
    return known;
  }
}
