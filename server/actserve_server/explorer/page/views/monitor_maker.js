/** A monitor made of a stored vector: a linear probe, with one or two thresholds. */

import { Choice } from "../fields.js";
import { h, replace } from "../dom.js";
import { requestId } from "../ids.js";
import { shortName, vectors } from "../served.js";
import { nameOf } from "../sites.js";
import { ErrorLine } from "../view.js";

/** @import { Monitor, SteeringVector } from "../../contract.d.ts" */
/** @import { Explorer } from "../explorer.js" */

/** @type {Record<string, object>} */
const AGGREGATORS = {
  "each token by itself": {},
  "mean of the last 8 tokens": { rollingMean: { tokens: 8 } },
  "moving average": { ema: { weight: 0.3 } },
  "highest so far": { reduction: "REDUCTION_MAX" },
};

export class MonitorMaker {
  /** @param {Explorer} explorer @param {(name: string) => void} onMade */
  constructor(explorer, onMade) {
    this.explorer = explorer;
    this.onMade = onMade;
    /** @type {SteeringVector[]} */
    this.stored = [];
    this.name = h("input", {
      type: "text",
      maxlength: 63,
      pattern: "[a-z][a-z0-9\\-]*",
      placeholder: "liking",
      spellcheck: "false",
    });
    this.vector = new Choice("Direction", []);
    this.score = new Choice(
      "Score",
      Object.keys(AGGREGATORS).map((name) => [name, name]),
    );
    this.lower = h("input", { type: "number", step: "any", placeholder: "none" });
    this.upper = h("input", { type: "number", step: "any", placeholder: "none" });
    this.stops = h("input", { type: "checkbox" });
    this.everything = h("input", { type: "checkbox" });
    this.error = new ErrorLine();
    this.button = h(
      "button",
      { type: "button", class: "main", onclick: () => void this.#make() },
      "Store it",
    );
    this.done = h("p", { class: "quiet", role: "status" });
    this.element = h(
      "details",
      { class: "card", ontoggle: () => void this.#offer() },
      h("summary", {}, "Make a monitor of a stored vector"),
      h(
        "p",
        { class: "hint" },
        "Its number for a token is the product of the vector and the token's row. To set thresholds by labelled examples, fit one instead: client.monitors.fit in Python.",
      ),
      h(
        "div",
        { class: "fields" },
        h("label", {}, "Name", this.name),
        this.vector.element,
        this.score.element,
        h("label", {}, "Lower threshold", this.lower),
        h("label", {}, "Upper threshold", this.upper),
        h("label", { class: "check" }, this.stops, "the upper one stops the answer"),
        h("label", { class: "check" }, this.everything, "watches all calls of the tenant"),
      ),
      h("p", { class: "buttons" }, this.button),
      this.error.element,
      this.done,
    );
  }

  async #offer() {
    const { calls, model, served } = this.explorer;
    if (!this.element.open || !served.features.has("steering_vectors")) return;
    try {
      this.stored = await vectors(calls, model);
      this.vector.offer(
        this.stored.flatMap(({ name, rows }) =>
          (rows ?? []).map(
            (row, index) =>
              /** @type {[string, string]} */ ([
                `${name} ${index}`,
                `${shortName(name)} at ${nameOf(row.site)}`,
              ]),
          ),
        ),
      );
    } catch (error) {
      this.error.show(error);
    }
  }

  async #make() {
    const { calls, model } = this.explorer;
    this.error.clear();
    replace(this.done);
    const [name = "", index = "0"] = this.vector.value.split(" ");
    const site = this.stored.find((vector) => vector.name === name)?.rows?.[Number(index)]?.site;
    const level = (/** @type {HTMLInputElement} */ input, /** @type {object} */ action) =>
      input.value === "" ? undefined : { threshold: Number(input.value), flag: true, ...action };
    try {
      const { monitor } = /** @type {{ monitor: Monitor }} */ (
        await calls.ask("MonitorService/CreateMonitor", {
          model,
          monitorId: this.name.value,
          monitor: {
            probes: [{ site, direction: { steeringVector: name } }],
            aggregator: AGGREGATORS[this.score.value],
            lower: level(this.lower, {}),
            upper: level(this.upper, this.stops.checked ? { stop: {} } : {}),
            watch: { namedOnly: !this.everything.checked },
          },
          requestId: requestId(),
        })
      );
      replace(this.done, `${monitor.name} is stored.`);
      this.onMade(monitor.name);
    } catch (error) {
      this.error.show(error);
      this.explorer.refused(error);
    }
  }
}
