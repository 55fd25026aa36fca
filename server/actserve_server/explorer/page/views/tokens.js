/** The tokens of a prompt, colored by what is read of each, and one of them looked into. */

import { Choice, SiteField } from "../fields.js";
import { h } from "../dom.js";
import { Legend } from "../legend.js";
import { whole } from "../link.js";
import { literal, opening } from "../python.js";
import { components, explained, monitorScores, norms, surprises, worth } from "../readings.js";
import { Scale, figures } from "../scales.js";
import { monitors, shortName, vectors } from "../served.js";
import { isSite, nameOf } from "../sites.js";
import { TokenStrip } from "../strip.js";
import { View } from "../view.js";
import { TokenDetail } from "./token_detail.js";

/** @import { SteeringVector, TokenizedPrompt } from "../../contract.d.ts" */
/** @import { Explorer } from "../explorer.js" */
/** @import { Reading } from "../readings.js" */

/** @typedef {"surprise" | "norm" | "probe" | "monitor" | "explanation"} Color */

/** @type {Record<Color, { name: string, unit: string, diverging?: boolean, logarithmic?: boolean }>} */
const COLORS = {
  surprise: { name: "surprise", unit: "nats" },
  norm: { name: "norm of the row", unit: "", logarithmic: true },
  probe: { name: "component along a stored vector", unit: "", diverging: true },
  monitor: { name: "score of a monitor", unit: "", diverging: true },
  explanation: { name: "how well words explain the row", unit: "" },
};

export class TokensView extends View {
  /** @param {Explorer} explorer */
  constructor(explorer) {
    super(explorer, {
      id: "tokens",
      title: "Tokens",
      run: "Read",
      hint: "Every token of the prompt, colored by what the model computes at it. Choose one to see what it would say next at each layer, and what its row holds in words.",
    });
    const { served } = explorer;
    this.color = new Choice("Color by", this.#offered(), () => {
      this.#shape();
      this.#toItsSite();
    });
    this.site = new SiteField(served);
    this.vector = new Choice("Vector", [], () => this.#toItsSite());
    this.monitor = new Choice("Monitor", []);
    /** @type {SteeringVector[]} */
    this.stored = [];
    this.nla = new Choice(
      "Explained by",
      served.verbalizers
        .filter((nla) => nla.reconstructs)
        .map((nla) => [nla.name, shortName(nla.name)]),
    );
    this.legend = new Legend();
    this.nothing = h("p", { class: "hint", role: "status", hidden: true });
    this.strip = new TokenStrip("Tokens of the prompt", (index) => this.#look(index));
    this.detail = new TokenDetail(explorer);
    /** @type {TokenizedPrompt} */
    this.read = {};
    /** @type {(number | null)[]} */
    this.valuesRead = [];
    this.at = -1;
    this.compose(
      [
        h(
          "div",
          { class: "fields" },
          this.color.element,
          this.site.element,
          this.vector.element,
          this.monitor.element,
          this.nla.element,
        ),
      ],
      h(
        "div",
        { class: "card" },
        this.legend.element,
        this.nothing,
        this.strip.element,
        h("p", { class: "hint" }, "Arrow keys go from token to token."),
      ),
      this.detail.element,
    );
    this.strip.element.parentElement?.setAttribute("hidden", "");
    this.#shape();
  }

  /** @returns {Color} */
  get colored() {
    return /** @type {Color} */ (this.color.value);
  }

  /** @override */
  shown() {
    void this.#names();
  }

  /** @override @param {AbortSignal} signal */
  async work(signal) {
    const chosen = this.at;
    this.detail.hide();
    const { diverging = false, logarithmic = false, name, unit } = COLORS[this.colored];
    if (this.colored === "explanation") await this.#explain(signal);
    else this.#show(await this.#reading(signal));
    const scale = Scale.of(this.valuesRead, { diverging, logarithmic });
    this.#paint(scale);
    this.#tellScale(scale, unit ? `${name}, ${unit}` : name);
    if (chosen >= 0 && chosen < (this.read.ids?.length ?? 0)) {
      this.strip.choose(chosen);
      this.#look(chosen);
    }
  }

  /** @override */
  values() {
    const color = this.colored;
    return {
      ...this.explorer.prompt.values(),
      color,
      site: color === "norm" || color === "probe" ? this.site.value : undefined,
      vector: color === "probe" ? shortName(this.vector.value) : undefined,
      monitor: color === "monitor" ? shortName(this.monitor.value) : undefined,
      at: this.at >= 0 ? this.at : undefined,
    };
  }

  /** @override @param {URLSearchParams} values */
  open(values) {
    this.color.value = values.get("color") ?? this.color.value;
    const site = values.get("site") ?? "";
    if (isSite(site)) this.site.value = site;
    this.wanted = {
      vector: values.get("vector") ?? "",
      monitor: values.get("monitor") ?? "",
      site: isSite(site),
    };
    this.at = whole(values, "at", 0, 1e6) ?? -1;
    this.#shape();
  }

  /** @override */
  python() {
    const prompt = this.explorer.prompt.python();
    const site = literal(this.site.value);
    /** @type {Record<Color, () => string>} */
    const programs = {
      surprise: () =>
        `scored = client.score(prompt)\nfor token, logprob in zip(scored.tokens, scored.logprobs):\n    print(repr(token), -logprob)\n`,
      norm: () =>
        `acts = client.fetch(prompt, ${site})\nfor token, norm in zip(acts.tokens, np.linalg.norm(acts[${site}], axis=1)):\n    print(repr(token), norm)\n`,
      probe: () =>
        `rows = {str(row.site): row for row in client.vectors.get(${literal(shortName(this.vector.value))}, elements=True).vectors()}\n` +
        `vector = rows.get(${site}, next(iter(rows.values()))).normalized()\n` +
        `acts = client.fetch(prompt, ${site}, projection=actserve.Projection(vector))\n` +
        `for token, number in zip(acts.tokens, acts[${site}][:, 0]):\n    print(repr(token), number)\n`,
      monitor: () =>
        `client.monitors.replay(prompt, ${literal(shortName(this.monitor.value))}, each_token=True).to_pandas()\n`,
      explanation: () =>
        `for token, explanation in client.explain_text(prompt, score=True):\n    print(repr(token), explanation.score, explanation.text)\n`,
    };
    const look =
      this.at < 0
        ? ""
        : `\nclient.logit_lens(prompt, positions=[${this.at}]).show()\n${this.explorer.served.verbalizers.length ? `client.explain_text(prompt, positions=[${this.at}], score=True).show()\n` : ""}`;
    const modules = this.colored === "norm" ? ["numpy as np"] : [];
    return `${opening(this.explorer.server, ...modules)}prompt = ${prompt}\n${programs[this.colored]()}${look}`;
  }

  /** @param {AbortSignal} signal @returns {Promise<Reading>} */
  async #reading(signal) {
    const { explorer } = this;
    const prompt = explorer.prompt.value();
    switch (this.colored) {
      case "norm":
        return norms(explorer, prompt, this.site.value, signal);
      case "probe":
        await this.#names();
        return components(
          explorer,
          prompt,
          this.#chosen(this.vector, "steering vector"),
          this.site.value,
          signal,
        );
      case "monitor":
        await this.#names();
        return monitorScores(explorer, prompt, this.#chosen(this.monitor, "monitor"), signal);
      default:
        return surprises(explorer, prompt, signal);
    }
  }

  /** @param {Choice} choice @param {string} kind */
  #chosen(choice, kind) {
    if (!choice.value)
      throw new Error(
        `no ${kind} is stored yet: make one under ${kind === "monitor" ? "Monitors" : "Steer"}`,
      );
    return choice.value;
  }

  /** @param {AbortSignal} signal */
  async #explain(signal) {
    const how = { nla: this.nla.value, score: true, signal };
    await explained(this.explorer, this.explorer.prompt.value(), how, {
      started: (prompt) => this.#show({ prompt, values: [] }),
      explained: (explanation) => {
        this.valuesRead[explanation.position ?? -1] = worth(explanation);
        this.detail.remember(explanation);
        this.#paint(new Scale(0, 1));
      },
    });
  }

  /** @param {Reading} reading */
  #show({ prompt, values }) {
    this.read = prompt;
    this.valuesRead = values;
    this.strip.show(prompt.texts ?? []);
    this.strip.element.parentElement?.removeAttribute("hidden");
    this.detail.of(this.explorer.prompt.value(), prompt);
  }

  /** @param {Scale} scale */
  #paint(scale) {
    const { name, unit } = COLORS[this.colored];
    this.strip.paint(
      this.valuesRead,
      scale,
      (value) => `${name} ${figures(value)}${unit ? ` ${unit}` : ""}`,
    );
  }

  /** Says what the colors mean, or that there are none. @param {Scale} scale @param {string} title */
  #tellScale(scale, title) {
    const any = this.valuesRead.some((value) => Number.isFinite(value ?? NaN));
    this.nothing.hidden = any;
    if (any) {
      this.legend.show(scale, title);
      return;
    }
    this.legend.hide();
    this.nothing.textContent =
      this.colored === "monitor"
        ? `${shortName(this.monitor.value)} scores none of these tokens: it watches others, such as those that the model writes. See it at work under Monitors.`
        : `No token here has a ${COLORS[this.colored].name}.`;
  }

  /** @param {number} index */
  #look(index) {
    this.at = index;
    this.explorer.remember(this);
    const value = this.valuesRead[index] ?? null;
    this.detail.look(
      index,
      value === null ? "" : `${COLORS[this.colored].name}: ${figures(value)}`,
    );
  }

  /** @returns {[string, string][]} */
  #offered() {
    const { features, verbalizers } = this.explorer.served;
    /** @type {Record<Color, boolean>} */
    const can = {
      surprise: features.has("predictions"),
      norm: features.has("fetch"),
      probe: features.has("steering_vectors"),
      monitor: features.has("monitors"),
      explanation: verbalizers.some((nla) => nla.reconstructs),
    };
    return /** @type {[Color, boolean][]} */ (Object.entries(can))
      .filter(([, served]) => served)
      .map(([color]) => [color, COLORS[color].name]);
  }

  #shape() {
    this.site.element.hidden = this.colored !== "norm" && this.colored !== "probe";
    this.vector.element.hidden = this.colored !== "probe";
    this.monitor.element.hidden = this.colored !== "monitor";
    this.nla.element.hidden = this.colored !== "explanation";
  }

  /** Where a vector was made its component means something, so that is where it starts. */
  #toItsSite() {
    const own = this.stored.find(({ name }) => name === this.vector.value)?.rows ?? [];
    const names = own.map((row) => nameOf(row.site)).filter(isSite);
    const [first] = names;
    if (first && this.colored === "probe" && !names.includes(this.site.value))
      this.site.value = first;
  }

  /** Offers what is stored by now. */
  async #names() {
    const { calls, served } = this.explorer;
    try {
      if (served.features.has("steering_vectors")) {
        this.stored = await vectors(calls, served.name);
        const before = this.vector.value;
        this.vector.offer(
          this.stored.map((vector) => [
            vector.name,
            `${shortName(vector.name)} (${vector.rows?.map((row) => nameOf(row.site)).join(", ") ?? ""})`,
          ]),
        );
        if (!before && !this.wanted?.vector) this.#toItsSite();
      }
      if (served.features.has("monitors")) {
        const stored = await monitors(calls, served.name);
        this.monitor.offer(stored.map((monitor) => [monitor.name, shortName(monitor.name)]));
      }
    } catch (error) {
      this.fail(error);
    }
    if (this.wanted?.vector) {
      this.vector.value = `${served.name}/steeringVectors/${this.wanted.vector}`;
      if (!this.wanted.site) this.#toItsSite();
    }
    if (this.wanted?.monitor) this.monitor.value = `${served.name}/monitors/${this.wanted.monitor}`;
    this.wanted = undefined;
  }
}
