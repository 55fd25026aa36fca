/** How heads attend: all of them in one grid, and one of them token by token. */

import { Choice } from "../fields.js";
import { h } from "../dom.js";
import { HeatGrid } from "../grid.js";
import { Legend } from "../legend.js";
import { whole } from "../link.js";
import { PatternPicture } from "../pattern.js";
import { opening } from "../python.js";
import { attentionPattern, attentionSummary } from "../readings.js";
import { Scale, figures, fixed } from "../scales.js";
import { TokenStrip } from "../strip.js";
import { decoded } from "../tensors.js";
import { quoted } from "../text.js";
import { View } from "../view.js";

/** @import { AttentionSummaryChunk, Prompt, TokenizedPrompt } from "../../contract.d.ts" */
/** @import { Explorer } from "../explorer.js" */

/** @typedef {"received" | "induction" | "previousToken" | "currentToken" | "firstToken" | "entropy" | "distance"} Measure */

/** @type {Record<Measure, string>} */
const MEASURES = {
  received: "attention to the chosen token, from those after it",
  induction: "attention to what followed the same token before (induction)",
  previousToken: "attention to the previous token",
  currentToken: "attention to the own token",
  firstToken: "attention to the first token",
  entropy: "entropy, in nats: how widely it looks",
  distance: "mean distance, in tokens",
};
/** Keys of one head that a summary tells at most; of longer prompts the others receive next to nothing. */
const MAX_KEYS = 64;
/** Tokens up to which a whole pattern is asked for: its numbers grow with their square. */
const WHOLE = 512;

export class AttentionView extends View {
  /** @param {Explorer} explorer */
  constructor(explorer) {
    super(explorer, {
      id: "attention",
      title: "Attention",
      run: "Read all heads",
      hint: "Every head of every layer by what it does in this prompt. Choose a head to see its pattern, and a token to see where it looks.",
    });
    this.measure = new Choice(
      "Show",
      /** @type {[string, string][]} */ (Object.entries(MEASURES)),
      () => void this.#remeasure(),
    );
    this.measure.value = "induction";
    this.legend = new Legend();
    this.grid = new HeatGrid((layer, head) => void this.#head(layer, head));
    this.direction = new Choice(
      "Color tokens by",
      [
        ["from", "where the chosen token looks"],
        ["to", "which tokens look at the chosen one"],
      ],
      () => this.#paint(),
    );
    this.stripLegend = new Legend();
    this.strip = new TokenStrip("Tokens by attention", (index) => void this.#token(index));
    this.picture = new PatternPicture();
    this.headTitle = h("h3", {}, "No head is chosen");
    this.headCard = h(
      "section",
      { class: "card", hidden: true, "aria-label": "One head" },
      this.headTitle,
      h("div", { class: "fields" }, this.direction.element),
      this.stripLegend.element,
      this.strip.element,
      this.picture.element,
    );
    this.gridCard = h(
      "section",
      { class: "card", hidden: true, "aria-label": "All heads" },
      this.legend.element,
      this.grid.element,
    );
    /** @type {Prompt} */
    this.prompt = {};
    /** @type {TokenizedPrompt} */
    this.tokens = {};
    /** @type {AttentionSummaryChunk[]} */
    this.summary = [];
    /** @type {number[][]} by layer and head */
    this.received = [];
    /** @type {Map<number, Float32Array>} */
    this.pattern = new Map();
    this.layer = -1;
    this.head = -1;
    this.at = -1;
    this.compose(
      [h("div", { class: "fields" }, this.measure.element)],
      h("div", { class: "side" }, this.gridCard, this.headCard),
    );
  }

  /** @override @param {AbortSignal} signal */
  async work(signal) {
    const reason = this.explorer.served.model.attentionUnservedReason;
    if (reason) throw new Error(`this server serves no attention: ${reason}`);
    this.prompt = this.explorer.prompt.value();
    this.pattern.clear();
    this.received = [];
    const { prompt, layers } = await attentionSummary(this.explorer, this.prompt, {}, signal);
    this.tokens = prompt;
    this.summary = layers;
    const count = prompt.ids?.length ?? 0;
    const received = this.measure.value === "received";
    if (this.at < 0 || this.at >= count) this.at = received ? Math.max(0, count - 2) : count - 1;
    this.strip.show(prompt.texts ?? []);
    this.strip.choose(this.at);
    if (received) await this.#receive(signal);
    this.gridCard.hidden = this.headCard.hidden = false;
    this.#show();
    if (this.layer < 0 || this.layer >= layers.length) [this.layer, this.head] = this.#strongest();
    this.grid.choose(this.layer, this.head);
    await this.#read(signal);
  }

  /** @override */
  values() {
    return {
      ...this.explorer.prompt.values(),
      show: this.measure.value,
      layer: this.layer >= 0 ? this.layer : undefined,
      head: this.head >= 0 ? this.head : undefined,
      at: this.at >= 0 ? this.at : undefined,
      looks: this.direction.value,
    };
  }

  /** @override @param {URLSearchParams} values */
  open(values) {
    const { layers, heads } = this.explorer.served;
    this.measure.value = values.get("show") ?? this.measure.value;
    this.direction.value = values.get("looks") ?? this.direction.value;
    this.layer = whole(values, "layer", 0, layers - 1) ?? -1;
    this.head = whole(values, "head", 0, heads - 1) ?? -1;
    if (this.layer < 0 || this.head < 0) this.layer = this.head = -1;
    this.at = whole(values, "at", 0, 1e6) ?? -1;
  }

  /** @override */
  python() {
    const one =
      this.layer < 0
        ? ""
        : `client.attention(prompt, layers=[${this.layer}], heads=[${this.head}]).show()\n`;
    return (
      `${opening(this.explorer.server)}prompt = ${this.explorer.prompt.python()}\n` +
      `acts = client.fetch(prompt, readouts={"heads": actserve.AttentionSummary()})\n` +
      `acts.readouts["heads"].induction  # [layers, heads]\n${one}`
    );
  }

  /** @param {number} layer @param {number} head */
  async #head(layer, head) {
    this.layer = layer;
    this.head = head;
    await this.#again((signal) => this.#read(signal));
  }

  /** @param {number} index */
  async #token(index) {
    this.at = index;
    await this.#again(async (signal) => {
      if (this.measure.value === "received") {
        await this.#receive(signal);
        this.#show();
      }
      if (this.pattern.has(index)) this.#paint();
      else await this.#read(signal);
    });
  }

  async #remeasure() {
    if (!this.hasRun) return;
    await this.#again(async (signal) => {
      if (this.measure.value === "received") await this.#receive(signal);
      this.#show();
    });
  }

  /** Does a part of the work anew. @param {(signal: AbortSignal) => Promise<void>} part */
  async #again(part) {
    this.stop();
    const controller = new AbortController();
    this.running = controller;
    this.errorLine.clear();
    this.explorer.remember(this);
    try {
      await part(controller.signal);
    } catch (error) {
      if (!controller.signal.aborted) this.fail(error);
    }
  }

  /** What the chosen token receives from those after it. @param {AbortSignal} signal */
  async #receive(signal) {
    const count = this.tokens.ids?.length ?? 0;
    if (this.at + 1 >= count)
      throw new Error("no token comes after the chosen one: choose an earlier one");
    const positions = { span: { start: this.at + 1, end: count } };
    const { layers } = await attentionSummary(
      this.explorer,
      this.prompt,
      { positions, topKeys: MAX_KEYS },
      signal,
    );
    this.received = layers.map((chunk) => {
      const means = decoded(chunk.topKeyMeans);
      const keys = means.length / this.explorer.served.heads;
      return Array.from({ length: this.explorer.served.heads }, (_, head) => {
        const at = (chunk.topKeys ?? []).slice(head * keys, (head + 1) * keys).indexOf(this.at);
        return at < 0 ? 0 : (means[head * keys + at] ?? 0);
      });
    });
  }

  /** @returns {ArrayLike<number>[]} by layer and head */
  #numbers() {
    const measure = /** @type {Measure} */ (this.measure.value);
    return measure === "received"
      ? this.received
      : this.summary.map((chunk) => decoded(chunk[measure]));
  }

  #show() {
    const numbers = this.#numbers();
    const { heads } = this.explorer.served;
    const name = MEASURES[/** @type {Measure} */ (this.measure.value)];
    const shares = !["entropy", "distance"].includes(this.measure.value);
    const scale = shares ? new Scale(0, 1) : Scale.of(numbers.flatMap((row) => Array.from(row)));
    this.grid.shape({
      caption: "Layers by heads.",
      corner: "layer",
      rows: numbers.map((_, layer) => String(layer)),
      columns: Array.from({ length: heads }, (_, head) => `h${head}`),
    });
    numbers.forEach((row, layer) => {
      for (let head = 0; head < heads; head += 1) {
        const value = row[head] ?? NaN;
        const text = Number.isNaN(value)
          ? ""
          : shares
            ? fixed(value).replace(/^0/, "")
            : figures(value);
        this.grid.set(layer, head, {
          text,
          className: scale.className(value),
          label: `layer ${layer}, head ${head}: ${figures(value)}`,
        });
      }
    });
    this.grid.choose(this.layer, this.head);
    this.legend.show(scale, name);
  }

  /** @returns {[number, number]} */
  #strongest() {
    /** @type {[number, number]} */
    let best = [0, 0];
    let most = -Infinity;
    this.#numbers().forEach((row, layer) =>
      Array.from(row).forEach((value, head) => {
        if (value > most) [best, most] = [[layer, head], value];
      }),
    );
    return best;
  }

  /** @param {AbortSignal} signal */
  async #read(signal) {
    const count = this.tokens.ids?.length ?? 0;
    const queries = count > WHOLE ? [this.at] : undefined;
    this.pattern = await attentionPattern(
      this.explorer,
      this.prompt,
      { layer: this.layer, head: this.head, ...(queries && { queries }) },
      signal,
    );
    this.headTitle.textContent = `Layer ${this.layer}, head ${this.head}`;
    this.#paint();
  }

  #paint() {
    const texts = this.tokens.texts ?? [];
    const from = this.direction.value === "from";
    const row = this.pattern.get(this.at);
    const weights = texts.map((_, index) => {
      const weight = from ? row?.[index] : this.pattern.get(index)?.[this.at];
      const seen = from ? index <= this.at : index >= this.at;
      return seen && weight !== undefined ? weight : null;
    });
    const scale = new Scale(0, Math.max(0.05, ...weights.map((weight) => weight ?? 0)));
    const token = quoted(texts[this.at] ?? "");
    this.strip.paint(weights, scale, (weight) => `weight ${figures(weight)}`);
    this.stripLegend.show(scale, from ? `where ${token} looks` : `which look at ${token}`);
    this.picture.show(
      this.pattern,
      texts.length,
      this.at,
      `Layer ${this.layer}, head ${this.head}: queries from top to bottom, keys from left to right`,
    );
  }
}
