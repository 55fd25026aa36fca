/** Activation patching: which rows of one prompt bring its answer back in another. */

import { Choice } from "../fields.js";
import { h } from "../dom.js";
import { HeatGrid } from "../grid.js";
import { Legend } from "../legend.js";
import { whole } from "../link.js";
import { literal, opening } from "../python.js";
import { check, tokenized } from "../readings.js";
import { Scale, figures, fixed } from "../scales.js";
import { toSite } from "../sites.js";
import { decoded } from "../tensors.js";
import { quoted } from "../text.js";
import { View } from "../view.js";
import { counted } from "../words.js";

/** @import { FetchEvent } from "../../contract.d.ts" */
/** @import { Explorer } from "../explorer.js" */

const CLEAN = 0;
const CORRUPT = 1;
const PATCHED = 2;
/** Readouts of the call. */
const KEEP = 0;
const PREDICT = 1;
const PREFERRED_ROWS = 16;

export class PatchingView extends View {
  /** @param {Explorer} explorer */
  constructor(explorer) {
    super(explorer, {
      id: "patching",
      title: "Patching",
      run: "Patch",
      hint: "The second prompt is run once for each layer and token, with that row of the first prompt in the place of its own. 1 is where the first prompt's answer is back, 0 where nothing changed. Both have equally many tokens.",
    });
    const { served } = explorer;
    const lines = { rows: 2, spellcheck: "false" };
    this.clean = h("textarea", { ...lines, value: "The capital of France is" });
    this.corrupt = h("textarea", { ...lines, value: "The capital of Italy is" });
    this.right = h("input", { type: "text", value: " Paris", spellcheck: "false", maxlength: 200 });
    this.wrong = h("input", { type: "text", value: " Rome", spellcheck: "false", maxlength: 200 });
    const hooks = served
      .hooks({ changeable: true })
      .filter((hook) =>
        ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"].includes(hook),
      );
    this.hook = new Choice(
      "Rows of",
      hooks.map((hook) => [hook, hook]),
    );
    this.hook.value = "resid_post";
    this.step = h("input", {
      type: "number",
      min: 1,
      max: Math.max(served.layers, 1),
      step: 1,
      value: String(Math.max(1, Math.ceil(served.layers / PREFERRED_ROWS))),
    });
    this.legend = new Legend();
    this.grid = new HeatGrid((row, column) => this.#chosen(row, column));
    this.plain = h("p", { class: "quiet" });
    this.one = h("p", { class: "quiet", "aria-live": "polite" });
    this.card = h(
      "section",
      { class: "card", hidden: true, "aria-label": "Grid" },
      this.plain,
      this.legend.element,
      this.grid.element,
      this.one,
    );
    /** @type {string[]} */
    this.sites = [];
    /** @type {string[]} */
    this.tokens = [];
    /** @type {Map<number, number>} what each run says of the answers */
    this.told = new Map();
    this.compose(
      [
        h(
          "div",
          { class: "side" },
          h("label", {}, "Clean prompt, whose answer is right", this.clean),
          h("label", {}, "Corrupt prompt", this.corrupt),
        ),
        h(
          "div",
          { class: "fields" },
          h("label", {}, "Right answer, one token", this.right),
          h("label", {}, "Wrong answer, one token, if any", this.wrong),
          this.hook.element,
          h("label", {}, "Every n-th layer", this.step),
        ),
      ],
      this.card,
    );
  }

  /** @override @param {AbortSignal} signal */
  async work(signal) {
    const { explorer } = this;
    const answers = await Promise.all(
      [this.right.value, this.wrong.value]
        .filter((text) => text !== "")
        .map((text) => this.#token(text, signal)),
    );
    if (answers.length === 0)
      throw new Error("name the right answer: one token, mostly with the space before it");
    const [clean, corrupt] = await Promise.all(
      [this.clean, this.corrupt].map(({ value }) => tokenized(explorer, { text: value }, signal)),
    );
    const count = corrupt?.ids?.length ?? 0;
    if (clean?.ids?.length !== count) {
      throw new Error(
        `the clean prompt has ${counted(clean?.ids?.length ?? 0, "token")} and the corrupt one ${count}; a row goes to the position that it comes from, so give prompts of equal length`,
      );
    }
    this.sites = this.#layers().map((layer) => `${this.hook.value}.${layer}`);
    const most = (explorer.served.model.limits?.maxItems ?? 1024) - PATCHED;
    const least = Math.ceil((explorer.served.layers * count) / most);
    if (this.sites.length * count > most)
      throw new Error(
        `${counted(this.sites.length, "layer")} of ${counted(count, "token")} are more than ${most} runs, the most of one call; take every ${least}th layer, or shorter prompts`,
      );
    this.tokens = corrupt?.texts ?? [];
    this.told.clear();
    this.card.hidden = false;
    this.plain.textContent = "";
    this.one.textContent = "";
    this.grid.shape({
      caption: "Layers by tokens of the corrupt prompt.",
      corner: this.hook.value,
      rows: this.#layers().map(String),
      columns: this.tokens,
    });
    /** @type {AsyncGenerator<FetchEvent>} */
    const events = explorer.calls.stream(
      "GenerationService/FetchActivations",
      this.#request(answers, count),
      signal,
    );
    /** @type {string[]} */
    const kept = [];
    try {
      for await (const { predictions, itemFinished } of events) {
        check(itemFinished?.status);
        kept.push(...(itemFinished?.kept ?? []).map(({ name }) => name));
        if (!predictions) continue;
        const [right = NaN, wrong = 0] = decoded(predictions.tokenLogprobs);
        this.told.set(predictions.sequenceIndex ?? 0, right - wrong);
        this.#draw(predictions.sequenceIndex ?? 0);
      }
    } finally {
      await Promise.all(
        kept.map((name) =>
          explorer.calls
            .ask("KeptActivationsService/DeleteKeptActivations", { name })
            .catch(() => undefined),
        ),
      );
    }
  }

  /** @override */
  values() {
    return {
      clean: this.clean.value,
      corrupt: this.corrupt.value,
      right: this.right.value,
      wrong: this.wrong.value,
      rows: this.hook.value,
      step: this.step.value,
    };
  }

  /** @override @param {URLSearchParams} values */
  open(values) {
    for (const [name, field] of /** @type {const} */ ([
      ["clean", this.clean],
      ["corrupt", this.corrupt],
      ["right", this.right],
      ["wrong", this.wrong],
    ]))
      field.value = values.get(name) ?? "";
    this.hook.value = values.get("rows") ?? "";
    this.step.value = String(whole(values, "step", 1, 1000) ?? this.step.value);
  }

  /** @override */
  python() {
    const answers = [this.right.value, this.wrong.value]
      .filter((text) => text !== "")
      .map(literal)
      .join(", ");
    const { layers } = this.explorer.served;
    return (
      `${opening(this.explorer.server)}grid = client.patch(\n    ${literal(this.clean.value)},\n    ${literal(this.corrupt.value)},\n` +
      `    ${literal(`${this.hook.value}.0:${layers}:${this.#step()}`)},\n    answers=(${answers}${this.wrong.value ? "" : ","}),\n)\ngrid.show()\ngrid.restored  # [sites, positions]\n`
    );
  }

  /** @param {number[]} answers @param {number} count */
  #request(answers, count) {
    const sites = this.sites.map(toSite);
    const positions = Array.from({ length: count }, (_, position) => position);
    const cells = sites.flatMap((site) => positions.map((position) => ({ site, position })));
    return {
      model: this.explorer.model,
      prompt: { text: this.corrupt.value },
      readouts: [
        { keep: { sites } },
        { predictions: { positions: { last: {} }, tokenIds: answers } },
      ],
      items: [
        { prompt: { text: this.clean.value }, readoutIndices: [KEEP, PREDICT] },
        { readoutIndices: [PREDICT] },
        ...cells.map(({ site, position }) => ({
          readoutIndices: [PREDICT],
          interventions: [
            {
              sites: [site],
              positions: { list: { positions: [position] } },
              replace: {
                rows: {
                  kept: {
                    item: { itemIndex: CLEAN, readoutIndex: KEEP },
                    site,
                    positions: [position],
                  },
                },
              },
            },
          ],
        })),
      ],
      failFast: true,
    };
  }

  /** Draws what a run says, or all of them once both prompts have been run. @param {number} run */
  #draw(run) {
    const [clean, corrupt] = [this.told.get(CLEAN), this.told.get(CORRUPT)];
    if (clean === undefined || corrupt === undefined) return;
    const what = this.wrong.value
      ? `log odds of ${quoted(this.right.value)} over ${quoted(this.wrong.value)}`
      : `log probability of ${quoted(this.right.value)}`;
    this.plain.textContent = `${what}: ${figures(clean)} after the clean prompt, ${figures(corrupt)} after the corrupt one.`;
    const scale = new Scale(-1, 1, { diverging: true });
    this.legend.show(scale, "restored");
    for (const index of run < PATCHED ? this.told.keys() : [run]) {
      if (index < PATCHED) continue;
      const [row, column] = [
        Math.floor((index - PATCHED) / this.tokens.length),
        (index - PATCHED) % this.tokens.length,
      ];
      const restored = ((this.told.get(index) ?? NaN) - corrupt) / (clean - corrupt);
      this.grid.set(row, column, {
        text: fixed(restored),
        className: scale.className(restored),
        label: `${this.sites[row] ?? ""} at ${quoted(this.tokens[column] ?? "")}: ${figures(restored)} restored`,
      });
    }
  }

  /** @param {number} row @param {number} column */
  #chosen(row, column) {
    const value = this.told.get(PATCHED + row * this.tokens.length + column);
    this.one.textContent =
      value === undefined
        ? ""
        : `${this.sites[row] ?? ""} at token ${column}, ${quoted(this.tokens[column] ?? "")}: ${figures(value)} instead of ${figures(this.told.get(CORRUPT))}`;
  }

  #step() {
    return Math.max(1, Math.floor(Number(this.step.value)) || 1);
  }

  #layers() {
    const layers = [];
    for (let layer = 0; layer < this.explorer.served.layers; layer += this.#step())
      layers.push(layer);
    return layers;
  }

  /** The id of a token by its text. @param {string} text @param {AbortSignal} signal */
  async #token(text, signal) {
    const { ids, texts, sources } = await tokenized(this.explorer, { text }, signal);
    // Special tokens, which come from no text, are not part of it.
    const own = (ids ?? [])
      .map((id, at) => ({ id, text: texts?.[at] ?? "", own: sources?.[at]?.end !== undefined }))
      .filter((token) => token.own);
    const [only] = own;
    if (!only || own.length > 1)
      throw new Error(
        `${quoted(text)} is ${counted(own.length, "token")}, ${own.map((token) => quoted(token.text)).join(" ")}; an answer is one, mostly with the space before it`,
      );
    return only.id;
  }
}
