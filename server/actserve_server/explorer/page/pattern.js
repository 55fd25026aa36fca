/** An attention pattern as a picture, a pixel for each query and key. Its numbers are told by the strip. */

import { h } from "./dom.js";
import { STEPS, Scale } from "./scales.js";

export class PatternPicture {
  constructor() {
    this.canvas = h("canvas", { class: "pattern", role: "img" });
    this.caption = h("figcaption", { class: "hint" });
    this.element = h("figure", { hidden: true }, this.canvas, this.caption);
  }

  /**
   * @param {Map<number, Float32Array>} pattern weights by query
   * @param {number} tokens
   * @param {number} chosen a query to set off
   * @param {string} label
   */
  show(pattern, tokens, chosen, label) {
    this.element.hidden = pattern.size < 2;
    this.canvas.setAttribute("aria-label", label);
    this.caption.textContent = label;
    if (this.element.hidden) return;
    this.canvas.width = this.canvas.height = tokens;
    const context = this.canvas.getContext("2d");
    if (!context) return;
    const colors = Array.from({ length: STEPS }, (_, step) => this.#channels(`s${step}`));
    const mark = this.#channels("chosen-color");
    const scale = new Scale(0, 1);
    const image = context.createImageData(tokens, tokens);
    for (const [query, weights] of pattern) {
      for (let key = 0; key <= query && key < tokens; key += 1) {
        // The square root, since most weights are small.
        const step = Math.min(
          Math.floor(Math.sqrt(scale.part(weights[key] ?? 0)) * STEPS),
          STEPS - 1,
        );
        image.data.set([...(colors[step] ?? [0, 0, 0]), 255], 4 * (query * tokens + key));
      }
      if (query === chosen && query + 1 < tokens)
        image.data.set([...mark, 255], 4 * (query * tokens + query + 1));
    }
    context.putImageData(image, 0, 0);
  }

  /** Red, green and blue of a class in the theme of now. @param {string} name */
  #channels(name) {
    const element = h("i", { class: name, hidden: true });
    this.element.append(element);
    const color = getComputedStyle(element).backgroundColor;
    element.remove();
    return (color.match(/\d+/g) ?? []).slice(0, 3).map(Number);
  }
}
