/** What the colors of a strip or a grid mean. */

import { h, replace } from "./dom.js";
import { figures } from "./scales.js";

/** @import { Scale } from "./scales.js" */

export class Legend {
  constructor() {
    this.element = h("p", { class: "legend", hidden: true });
  }

  /** @param {Scale} scale @param {string} title */
  show(scale, title) {
    this.element.hidden = false;
    replace(
      this.element,
      h("span", {}, title),
      h("span", { class: "ends" }, `≤ ${figures(scale.low)}`),
      h(
        "span",
        { class: "steps", "aria-hidden": "true" },
        ...scale.classes().map((name) => h("i", { class: name })),
      ),
      h("span", { class: "ends" }, `≥ ${figures(scale.high)}`),
    );
  }

  hide() {
    this.element.hidden = true;
  }
}
