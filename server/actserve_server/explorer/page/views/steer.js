/** The same prompt plain and steered, side by side while both are written. */

import { Choice, SamplingFields } from "../fields.js";
import { append, h, replace } from "../dom.js";
import { generated } from "../generation.js";
import { literal, opening } from "../python.js";
import { figures } from "../scales.js";
import { shortName, vectors } from "../served.js";
import { toSite } from "../sites.js";
import { View } from "../view.js";
import { FINISHES, counted } from "../words.js";
import { SteeredVector } from "./steered_vector.js";
import { VectorMaker } from "./vector_maker.js";

/** @import { InterventionReport, SteeringVector } from "../../contract.d.ts" */
/** @import { Explorer } from "../explorer.js" */
/** @import { Generated } from "../generation.js" */

/** @type {[string, string][]} */
const POSITIONS = [
  ["all", "every token"],
  ["generated", "what is generated"],
  ["last", "the last token of the prompt"],
  ["prompt", "the prompt"],
];
const MAX_VECTORS = 8;

export class SteerView extends View {
  /** @param {Explorer} explorer */
  constructor(explorer) {
    super(explorer, {
      id: "steer",
      title: "Steer",
      run: "Write both",
      hint: "Add stored vectors to the model's rows while it writes. Both sides are sampled alike; after a first run, moving a slider writes them again.",
    });
    /** @type {SteeringVector[]} */
    this.stored = [];
    /** @type {SteeredVector[]} */
    this.steered = [];
    this.list = h("div", {});
    this.none = h(
      "p",
      { class: "hint" },
      "No vector is stored yet. Make one of contrasting prompts below.",
    );
    this.more = h("button", { type: "button", onclick: () => this.#add() }, "Add a vector");
    this.where = new Choice("At", POSITIONS);
    this.relative = h("input", { type: "checkbox", onchange: () => this.#again() });
    this.sampling = new SamplingFields(60);
    this.plain = new Written("Plain");
    this.changed = new Written("Steered");
    this.receipts = h("table", { class: "list" });
    this.receiptsCard = h(
      "section",
      { class: "card", hidden: true, "aria-label": "Receipts" },
      h("h3", {}, "Receipts: what was changed"),
      h(
        "div",
        { class: "scroll", tabindex: "0", role: "region", "aria-label": "Receipts" },
        this.receipts,
      ),
    );
    this.maker = new VectorMaker(explorer, (vector, site) => void this.#made(vector, site));
    this.compose(
      [
        this.none,
        this.list,
        h(
          "div",
          { class: "fields" },
          this.more,
          this.where.element,
          h("label", { class: "check" }, this.relative, "relative to each row's norm"),
          this.sampling.element,
        ),
      ],
      h("div", { class: "side" }, this.plain.element, this.changed.element),
      this.receiptsCard,
      this.maker.element,
    );
  }

  /** @override */
  get runsWhenOpened() {
    return false;
  }

  /** @override */
  shown() {
    void this.#refresh();
  }

  /** @override @param {AbortSignal} signal */
  async work(signal) {
    const interventions = this.steered.map((vector) => this.#intervention(vector));
    if (interventions.length === 0)
      throw new Error("nothing to steer by: add a vector, or make one below");
    this.receiptsCard.hidden = true;
    const request = { prompt: this.explorer.prompt.value(), sampling: this.sampling.value };
    this.plain.clear();
    this.changed.clear();
    try {
      const [plain, changed] = await Promise.all([
        generated(this.explorer, request, signal, { wrote: (text) => this.plain.write(text) }),
        generated(this.explorer, { ...request, interventions }, signal, {
          wrote: (text) => this.changed.write(text),
        }),
      ]);
      this.plain.ended(plain, plain.text);
      this.changed.ended(changed, plain.text);
      this.#receipts(changed.reports);
    } finally {
      // Unless another run writes to them by now.
      const latest = this.running === null || this.running.signal === signal;
      if (latest) for (const side of [this.plain, this.changed]) side.rest();
    }
  }

  /** @override */
  values() {
    return {
      ...this.explorer.prompt.values(),
      steer: JSON.stringify(
        this.steered.map(({ id, site, coefficient }) => [id, site, coefficient]),
      ),
      where: this.where.value,
      relative: this.relative.checked ? 1 : undefined,
      ...this.sampling.values(),
    };
  }

  /** @override @param {URLSearchParams} values */
  open(values) {
    this.where.value = values.get("where") ?? "all";
    this.relative.checked = values.get("relative") === "1";
    this.sampling.open(values);
    this.wanted = wantedVectors(values.get("steer"));
    void this.#refresh();
  }

  /** @override */
  python() {
    const positions =
      this.where.value === "all"
        ? ""
        : `, positions=${this.where.value === "last" ? "slice(-1, None)" : literal(this.where.value)}`;
    const relative = this.relative.checked ? ", relative=True" : "";
    const adds = this.steered.map(
      ({ id, sites, coefficient }) =>
        `    actserve.Add(${literal(sites.length === 1 ? sites[0] : sites)}, ${literal(id)}, ${coefficient}${relative}${positions}),\n`,
    );
    return `${opening(this.explorer.server)}prompt = ${this.explorer.prompt.python()}\ninterventions = [\n${adds.join("")}]\nclient.compare(prompt, interventions, ${this.sampling.python()}).show()\n`;
  }

  /** @param {SteeredVector} vector */
  #intervention({ name, sites, coefficient }) {
    const where = this.where.value;
    return {
      sites: sites.map(toSite),
      add: { vector: { steeringVector: name }, coefficient, relative: this.relative.checked },
      ...(where !== "all" && { positions: { [where]: {} } }),
    };
  }

  async #refresh() {
    const { calls, model, served } = this.explorer;
    if (!served.features.has("steering_vectors")) {
      this.fail(new Error("this server stores no steering vectors"));
      return;
    }
    try {
      this.stored = await vectors(calls, model);
    } catch (error) {
      this.fail(error);
      return;
    }
    for (const vector of this.steered) vector.offer(this.stored);
    this.none.hidden = this.stored.length > 0;
    this.more.disabled = this.stored.length === 0;
    if (this.wanted) {
      for (const vector of this.steered.splice(0)) vector.element.remove();
      for (const wanted of this.wanted) this.#add(wanted);
      this.wanted = undefined;
    } else if (this.steered.length === 0 && this.stored.length > 0) this.#add();
  }

  /** @param {{ id?: string, site?: string, coefficient?: number }} [given] */
  #add(given = {}) {
    if (this.steered.length >= MAX_VECTORS) {
      this.explorer.say(`${MAX_VECTORS} vectors at most`);
      return;
    }
    const vector = new SteeredVector(this.explorer.served, this.stored, given, {
      changed: () => this.#again(),
      removed: () => {
        this.steered.splice(this.steered.indexOf(vector), 1);
        vector.element.remove();
        this.more.focus();
      },
    });
    this.steered.push(vector);
    this.list.append(vector.element);
  }

  #again() {
    if (this.hasRun) void this.run();
  }

  /** @param {SteeringVector} vector @param {string} site */
  async #made(vector, site) {
    await this.#refresh();
    const id = shortName(vector.name);
    const [only] = this.steered;
    if (only && this.steered.length === 1 && !this.hasRun) {
      this.steered.pop();
      only.element.remove();
    }
    this.#add({ id, site, coefficient: 1 });
  }

  /** @param {InterventionReport[]} reports */
  #receipts(reports) {
    const head = ["vector", "rows", "changed", "reused from the cache", "mean change", "dose"];
    const rows = reports.map((report, index) => {
      const vector = this.steered[index];
      const change = report.meanRelativeChange;
      return [
        `${vector?.id ?? ""} at ${vector?.site ?? ""}`,
        report.rows ?? "0",
        report.changedRows ?? "0",
        report.reusedRows ?? "0",
        change === undefined ? "none computed" : `${figures(100 * change)}% of the row`,
        report.doseFactor === undefined ? "as asked" : `scaled by ${figures(report.doseFactor)}`,
      ];
    });
    replace(
      this.receipts,
      h("thead", {}, h("tr", {}, ...head.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, ...rows.map((row) => h("tr", {}, ...row.map((text) => h("td", {}, text))))),
    );
    this.receiptsCard.hidden = false;
  }
}

/** One of the two texts. */
class Written {
  /** @param {string} name */
  constructor(name) {
    this.text = h("div", { class: "text", tabindex: "0", role: "region", "aria-label": name });
    this.end = h("p", { class: "quiet" });
    this.element = h(
      "section",
      { class: "card", "aria-label": name },
      h("h3", {}, name),
      this.text,
      this.end,
    );
  }

  clear() {
    replace(this.text);
    replace(this.end);
    this.text.classList.add("busy");
  }

  /** Nothing more is written, whether or not it has ended well. */
  rest() {
    this.text.classList.remove("busy");
  }

  /** @param {string} text */
  write(text) {
    append(this.text, text);
  }

  /** @param {Generated} made @param {string} other what the plain text is: what both have in common stands back */
  ended({ text, texts, reason }, other) {
    let common = 0;
    while (common < text.length && text[common] === other[common]) common += 1;
    if (text === other) common = 0;
    const differs = common === text.length && text !== other ? "goes no further than this" : "";
    replace(
      this.text,
      common > 0 && h("span", { class: "same" }, text.slice(0, common)),
      text.slice(common),
    );
    replace(
      this.end,
      [counted(texts.length, "token"), FINISHES[reason], differs].filter(Boolean).join(", "),
    );
  }
}

/** The vectors of a link, as far as they are that. @param {string | null} json */
function wantedVectors(json) {
  try {
    const listed = /** @type {unknown} */ (JSON.parse(json ?? ""));
    if (!Array.isArray(listed)) return undefined;
    return /** @type {unknown[]} */ (listed).slice(0, MAX_VECTORS).map((each) => {
      const [id, site, coefficient] = /** @type {unknown[]} */ (each);
      return {
        id: String(id),
        site: String(site),
        coefficient: Number.isFinite(coefficient) ? Number(coefficient) : 0,
      };
    });
  } catch {
    return undefined;
  }
}
