/** Fields of forms: a site, a choice among names, a number with a slider. */

import { h, uniqueId } from "./dom.js";
import { brief } from "./text.js";

/** @import { Served } from "./served.js" */

/** A choice among options, each a value and what is shown. */
export class Choice {
  /**
   * @param {string} label
   * @param {[string, string][]} options
   * @param {() => void} [onChange]
   */
  constructor(label, options, onChange = () => undefined) {
    this.select = h("select", { onchange: onChange });
    this.element = h("label", {}, label, this.select);
    this.offer(options);
  }

  /** Offers other options; what is chosen stays so if it is among them. @param {[string, string][]} options */
  offer(options) {
    const before = this.select.value;
    this.select.replaceChildren(
      ...options.map(([value, text]) => h("option", { value }, brief(text, 60))),
    );
    this.value = before;
    this.select.disabled = options.length === 0;
  }

  get value() {
    return this.select.value;
  }

  /** One that is not offered changes nothing, so a link may hold anything. */
  set value(value) {
    const offered = Array.from(this.select.options, (option) => option.value);
    if (offered.includes(value)) this.select.value = value;
    else if (this.select.selectedIndex < 0) this.select.selectedIndex = 0;
  }
}

/** A hook point and a layer. */
export class SiteField {
  /**
   * @param {Served} served
   * @param {{ label?: string, changeable?: boolean, hook?: string, layer?: number, hooks?: string[] }} [options]
   */
  constructor(
    served,
    { label = "Hook point", changeable = false, hook = "resid_post", layer, hooks } = {},
  ) {
    const offered = hooks ?? served.hooks({ changeable });
    this.last = Math.max(served.layers - 1, 0);
    this.hook = new Choice(
      label,
      offered.map((name) => [name, name]),
    );
    this.hook.value = hook;
    const id = uniqueId("layer");
    this.output = h("output", { for: id });
    this.range = h("input", {
      id,
      type: "range",
      min: 0,
      max: this.last,
      step: 1,
      oninput: () => this.#say(),
    });
    this.element = h(
      "div",
      { class: "fields" },
      this.hook.element,
      h("label", {}, "Layer", h("span", { class: "layer" }, this.range, this.output)),
    );
    this.layer = layer ?? Math.floor(served.layers / 2);
  }

  get layer() {
    return Number(this.range.value);
  }

  set layer(layer) {
    this.range.value = String(layer);
    this.#say();
  }

  /** Such as resid_post.10. */
  get value() {
    return `${this.hook.value}.${this.range.value}`;
  }

  set value(name) {
    const [hook = "", layer = ""] = name.split(".");
    this.hook.value = hook;
    if (/^\d+$/.test(layer)) this.layer = Math.min(Number(layer), this.last);
  }

  #say() {
    this.output.value = this.range.value;
  }
}

/** A number, by a slider or typed. */
export class Slider {
  /**
   * @param {string} label
   * @param {{ min: number, max: number, step: number, value: number }} range of the slider; more can be typed
   * @param {() => void} [onChange]
   */
  constructor(label, { min, max, step, value }, onChange = () => undefined) {
    this.number = h("input", {
      type: "number",
      step: "any",
      value: String(value),
      "aria-label": `${label}, exactly`,
    });
    this.range = h("input", {
      type: "range",
      min,
      max,
      step,
      value: String(value),
      "aria-label": label,
    });
    this.range.addEventListener("input", () => {
      this.number.value = this.range.value;
    });
    this.number.addEventListener("input", () => {
      this.range.value = this.number.value;
    });
    for (const input of [this.range, this.number]) input.addEventListener("change", onChange);
    this.element = h(
      "div",
      {},
      h("span", { class: "quiet" }, label),
      h("div", { class: "slider" }, this.range, this.number),
    );
  }

  get value() {
    const value = Number(this.number.value);
    return Number.isFinite(value) ? value : 0;
  }

  set value(value) {
    this.number.value = this.range.value = String(value);
  }
}

/** How to sample. */
export class SamplingFields {
  /** @param {number} tokens by default */
  constructor(tokens) {
    this.tokens = h("input", { type: "number", min: 1, max: 4096, step: 1, value: String(tokens) });
    this.temperature = h("input", { type: "number", min: 0, max: 2, step: 0.05, value: "0" });
    this.seed = h("input", { type: "number", min: 0, step: 1, value: "0" });
    this.element = h(
      "div",
      { class: "fields" },
      h("label", {}, "Tokens at most", this.tokens),
      h("label", {}, "Temperature", this.temperature),
      h("label", {}, "Seed", this.seed),
    );
  }

  get value() {
    return {
      maxTokens: Math.max(1, Math.floor(Number(this.tokens.value)) || 1),
      temperature: Number(this.temperature.value) || 0,
      seed: String(Math.max(0, Math.floor(Number(this.seed.value)) || 0)),
    };
  }

  /** As arguments of Python. */
  python() {
    const { maxTokens, temperature, seed } = this.value;
    return `max_tokens=${maxTokens}, temperature=${temperature}${temperature ? `, seed=${seed}` : ""}`;
  }

  /** @returns {Record<string, string>} */
  values() {
    const { maxTokens, temperature, seed } = this.value;
    return { tokens: String(maxTokens), temperature: String(temperature), seed };
  }

  /** @param {URLSearchParams} values */
  open(values) {
    for (const [name, input] of /** @type {const} */ ([
      ["tokens", this.tokens],
      ["temperature", this.temperature],
      ["seed", this.seed],
    ])) {
      const value = values.get(name);
      if (value && /^\d{1,9}(\.\d{1,6})?$/.test(value)) input.value = value;
    }
  }
}
