/** One vector that is added: which, where, and how much of it. */

import { Choice, Slider } from "../fields.js";
import { h } from "../dom.js";
import { figures } from "../scales.js";
import { shortName } from "../served.js";
import { hasLayer, nameOf, shortHook } from "../sites.js";

/** @import { SteeringVector } from "../../contract.d.ts" */
/** @import { Served } from "../served.js" */

/** All sites that a vector has rows for. */
const ALL = "all its sites";

export class SteeredVector {
  /**
   * @param {Served} served
   * @param {SteeringVector[]} stored
   * @param {{ id?: string, site?: string, coefficient?: number }} given
   * @param {{ changed: () => void, removed: () => void }} told
   */
  constructor(served, stored, { id, site, coefficient = 1 }, { changed, removed }) {
    this.served = served;
    this.stored = stored;
    this.vector = new Choice("Vector", [], () => {
      this.#offerSites();
      changed();
    });
    this.where = new Choice("Site", [], () => {
      this.#say();
      changed();
    });
    this.slider = new Slider(
      "Coefficient",
      { min: -5, max: 5, step: 0.1, value: coefficient },
      () => {
        this.#say();
        changed();
      },
    );
    this.usual = h("p", { class: "quiet" });
    this.element = h(
      "div",
      { class: "vector", role: "group", "aria-label": "Vector to add" },
      this.vector.element,
      this.where.element,
      h("div", {}, this.slider.element, this.usual),
      h("button", { type: "button", class: "plain", onclick: removed }, "Remove"),
    );
    this.offer(stored);
    if (id) this.vector.value = `${served.name}/steeringVectors/${id}`;
    this.#offerSites();
    if (site) this.where.value = site;
    this.#say();
  }

  /** @param {SteeringVector[]} stored */
  offer(stored) {
    this.stored = stored;
    this.vector.offer(stored.map(({ name }) => [name, shortName(name)]));
  }

  get name() {
    return this.vector.value;
  }

  get id() {
    return shortName(this.name);
  }

  get coefficient() {
    return this.slider.value;
  }

  /** As the link has it. */
  get site() {
    return this.where.value;
  }

  get sites() {
    return this.site === ALL ? this.#own().map((row) => nameOf(row.site)) : [this.site];
  }

  #own() {
    return this.stored.find(({ name }) => name === this.name)?.rows ?? [];
  }

  #offerSites() {
    const own = this.#own();
    const names = own.map((row) => nameOf(row.site));
    const [first] = own;
    const hook = shortHook(first?.site?.hookPoint ?? "");
    // One row goes to any site of its width; of several each site takes its own.
    const others =
      own.length === 1 && hasLayer(hook)
        ? Array.from({ length: this.served.layers }, (_, layer) => `${hook}.${layer}`).filter(
            (name) => !names.includes(name),
          )
        : [];
    const options = [...names, ...(names.length > 1 ? [ALL] : []), ...others];
    this.where.offer(options.map((name) => [name, name]));
    if (!options.includes(this.where.value)) this.where.value = options[0] ?? "";
  }

  #say() {
    const row = this.#own().find((each) => nameOf(each.site) === this.site);
    const part = row?.medianRowNorm
      ? (Math.abs(this.coefficient) * (row.norm ?? 0)) / row.medianRowNorm
      : undefined;
    this.usual.textContent =
      part === undefined ? "" : `${figures(part)} times the norm of a usual row`;
  }
}
