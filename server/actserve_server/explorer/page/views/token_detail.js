/** One token of a prompt: what the model would say next at each layer, and its row in words. */

import { Choice } from "../fields.js";
import { h, replace } from "../dom.js";
import { HeatGrid } from "../grid.js";
import { written } from "../link.js";
import { explained, lens } from "../readings.js";
import { Scale, figures, percent } from "../scales.js";
import { shortName } from "../served.js";
import { nameOf } from "../sites.js";
import { quoted } from "../text.js";
import { ErrorLine } from "../view.js";
import { FLAGS } from "../words.js";
import { TokenFeatures } from "./token_features.js";

/** @import { Explanation, Prompt, TokenizedPrompt } from "../../contract.d.ts" */
/** @import { Explorer } from "../explorer.js" */
/** @import { Guess } from "../readings.js" */

/** After the last key, before the server is asked: one may pass many tokens on the way to another. */
const PAUSE_MS = 250;
/** Tokens shown beside the chosen one, before and after it. */
const BESIDE = 3;

export class TokenDetail {
  /** @param {Explorer} explorer */
  constructor(explorer) {
    this.explorer = explorer;
    const { served } = explorer;
    /** @type {Prompt} */
    this.prompt = {};
    /** @type {TokenizedPrompt} */
    this.tokens = {};
    /** @type {Map<number, Explanation>} */
    this.explanations = new Map();
    this.index = -1;
    this.timer = 0;
    /** @type {AbortController | null} */
    this.running = null;
    /** @type {number[]} */
    this.window = [];
    /** @type {Guess[][][]} */
    this.guesses = [];

    this.facts = h("div", {});
    this.lensError = new ErrorLine();
    this.grid = new HeatGrid((layer, column) => this.#guessed(layer, column));
    this.bars = h("div", { class: "bars", "aria-live": "polite" });
    this.wordsError = new ErrorLine();
    this.words = h("p", { class: "words" });
    this.worth = h("table", { class: "facts" });
    this.flags = h("div", { class: "flags" });
    this.nla = new Choice(
      "Explained by",
      served.verbalizers.map((nla) => [nla.name, `${shortName(nla.name)} (${nameOf(nla.site)})`]),
      () => void this.#ask(),
    );
    this.nla.element.hidden = served.verbalizers.length < 2;
    const lensCard = h(
      "section",
      { class: "card", "aria-label": "Logit lens" },
      h("h3", {}, "What it would say next, by layer"),
      h(
        "p",
        { class: "hint" },
        "The likeliest next token at each layer, in a stronger color where the model is surer of it. Choose a cell for the next ones.",
      ),
      this.lensError.element,
      this.grid.element,
      this.bars,
    );
    const wordsCard = h(
      "section",
      { class: "card", "aria-label": "In words" },
      h("h3", {}, "What the row holds, in words"),
      this.nla.element,
      this.wordsError.element,
      this.words,
      this.flags,
      this.worth,
      h(
        "p",
        { class: "hint" },
        "Written by a model that was trained to put rows into words. It may be wrong in every detail: trust what scores well and recurs.",
      ),
    );
    wordsCard.hidden = served.verbalizers.length === 0;
    this.features = new TokenFeatures(explorer);
    this.element = h(
      "div",
      { hidden: true },
      this.facts,
      h("div", { class: "side" }, lensCard, wordsCard),
      this.features.element,
    );
  }

  /** Says what the tokens are of. @param {Prompt} prompt @param {TokenizedPrompt} tokens */
  of(prompt, tokens) {
    this.prompt = prompt;
    this.tokens = tokens;
    this.explanations.clear();
  }

  /** Takes an explanation that is known already. @param {Explanation} explanation */
  remember(explanation) {
    if (explanation.position !== undefined)
      this.explanations.set(explanation.position, explanation);
  }

  hide() {
    this.running?.abort();
    window.clearTimeout(this.timer);
    this.element.hidden = true;
  }

  /** Looks into a token. @param {number} index @param {string} value what is known of it */
  look(index, value) {
    this.running?.abort();
    window.clearTimeout(this.timer);
    this.index = index;
    this.element.hidden = false;
    const text = this.tokens.texts?.[index] ?? "";
    const source = this.tokens.sources?.[index];
    const facts = [
      `position ${index}`,
      `id ${this.tokens.ids?.[index] ?? "unknown"}`,
      source?.role && `turn ${(source.turn ?? 0) + 1}, ${source.role}`,
      value,
    ];
    replace(
      this.facts,
      h(
        "div",
        { class: "card" },
        h("h2", {}, "Token ", h("bdi", { class: "token" }, text)),
        h("p", { class: "quiet" }, facts.filter(Boolean).join(" · ")),
        this.#heads(),
      ),
    );
    this.timer = window.setTimeout(() => void this.#ask(), PAUSE_MS);
  }

  /** Leads to the heads that look at the token; at the last one none does. */
  #heads() {
    const { prompt, served } = this.explorer;
    const last = this.index + 1 >= (this.tokens.ids?.length ?? 0);
    const link = written("attention", {
      ...prompt.values(),
      show: "received",
      looks: "to",
      at: this.index,
    });
    if (last || link === null || !served.features.has("attention")) return null;
    return h("p", {}, h("a", { href: link }, "Heads that look at it"));
  }

  async #ask() {
    this.running?.abort();
    const controller = new AbortController();
    this.running = controller;
    await Promise.all([
      this.#told(this.lensError, controller, () => this.#lens(controller.signal)),
      this.#told(this.wordsError, controller, () => this.#explain(controller.signal)),
      this.features.ask(this.prompt, this.index, controller.signal),
    ]);
  }

  /** @param {ErrorLine} line @param {AbortController} controller @param {() => Promise<void>} work */
  async #told(line, controller, work) {
    line.clear();
    try {
      await work();
    } catch (error) {
      if (!controller.signal.aborted) line.show(error);
    }
  }

  /** @param {AbortSignal} signal */
  async #lens(signal) {
    const { served } = this.explorer;
    if (!served.features.has("predictions")) return;
    const texts = this.tokens.texts ?? [];
    const first = Math.max(0, this.index - BESIDE);
    this.window = texts.slice(first, this.index + BESIDE + 1).map((_, at) => first + at);
    this.guesses = await lens(this.explorer, this.prompt, served.stream, this.window, signal);
    this.grid.shape({
      caption: "Layers by tokens.",
      corner: "layer",
      rows: this.guesses.map((_, layer) => String(layer)),
      columns: this.window.map((position) => texts[position] ?? ""),
      marked: this.window.indexOf(this.index),
    });
    const scale = new Scale(0, 1);
    this.guesses.forEach((row, layer) =>
      row.forEach(([best], column) => {
        const at = texts[this.window[column] ?? 0] ?? "";
        const { text = "", logprob = NaN } = best ?? {};
        const label = `layer ${layer}, after ${quoted(at)}: ${quoted(text)}, ${percent(logprob)}`;
        this.grid.set(layer, column, {
          text,
          className: scale.className(Math.exp(logprob)),
          label,
        });
      }),
    );
    this.#guessed(this.guesses.length - 1, this.window.indexOf(this.index));
    this.grid.choose(this.guesses.length - 1, this.window.indexOf(this.index));
  }

  /** @param {number} layer @param {number} column */
  #guessed(layer, column) {
    const rows = (this.guesses[layer]?.[column] ?? []).flatMap(({ text, logprob }) => [
      h("bdi", { class: "token" }, text),
      h("progress", {
        max: 1,
        value: Math.exp(logprob),
        "aria-label": `probability of ${quoted(text)}`,
      }),
      h("span", { class: "number" }, percent(logprob)),
    ]);
    const at = this.tokens.texts?.[this.window[column] ?? 0] ?? "";
    replace(
      this.bars,
      h("strong", {}, `layer ${layer}`),
      h("span", { class: "quiet" }, `after ${quoted(at)}`),
      h("span"),
      ...rows,
    );
  }

  /** @param {AbortSignal} signal */
  async #explain(signal) {
    const nla = this.explorer.served.verbalizers.find((each) => each.name === this.nla.value);
    if (!nla) return;
    const known = this.explanations.get(this.index);
    if (known) {
      this.#explained(known);
      return;
    }
    replace(this.words);
    replace(this.worth);
    replace(this.flags);
    this.words.classList.add("busy");
    try {
      const how = {
        nla: nla.name,
        positions: [this.index],
        score: nla.reconstructs ?? false,
        signal,
      };
      await explained(this.explorer, this.prompt, how, {
        partial: (text) => this.words.append(text),
        explained: (explanation) => this.#explained(explanation),
      });
    } finally {
      if (!signal.aborted) this.words.classList.remove("busy");
    }
  }

  /** @param {Explanation} explanation */
  #explained({ text = "", score, norm, flags = [] }) {
    this.words.classList.remove("busy");
    replace(this.words, text);
    replace(
      this.flags,
      ...flags.map((flag) =>
        h("span", { class: "flag", title: FLAGS[flag]?.[1] }, FLAGS[flag]?.[0] ?? flag),
      ),
    );
    /** @type {[string, string][]} */
    const facts = [
      ...(score?.varianceExplained === undefined
        ? []
        : [
            /** @type {[string, string]} */ ([
              "variance explained",
              figures(score.varianceExplained),
            ]),
          ]),
      ...(score
        ? [
            /** @type {[string, string]} */ ([
              "cosine to what the words give back",
              figures(score.cosine ?? 0),
            ]),
          ]
        : []),
      ["norm of the row", figures(norm ?? 0)],
    ];
    replace(
      this.worth,
      h(
        "tbody",
        {},
        ...facts.map(([name, value]) =>
          h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value)),
        ),
      ),
    );
  }
}
