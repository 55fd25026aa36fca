/** Monitors at work: what they score while the model writes, and the newest alerts. */

import { Choice, SamplingFields } from "../fields.js";
import { LineChart } from "../chart.js";
import { append, h, replace } from "../dom.js";
import { generated } from "../generation.js";
import { Legend } from "../legend.js";
import { literal, opening } from "../python.js";
import { tokenScores } from "../readings.js";
import { Scale, figures } from "../scales.js";
import { monitors, shortName } from "../served.js";
import { nameOf } from "../sites.js";
import { TokenStrip } from "../strip.js";
import { View } from "../view.js";
import { FINISHES, counted, plain } from "../words.js";
import { AlertList } from "./alert_list.js";
import { MonitorMaker } from "./monitor_maker.js";

/** @import { Alert, Monitor, MonitorScore } from "../../contract.d.ts" */
/** @import { Explorer } from "../explorer.js" */
/** @import { Generated } from "../generation.js" */

/** Monitors that one call may name. */
const MAX_NAMED = 64;

export class MonitorsView extends View {
  /** @param {Explorer} explorer */
  constructor(explorer) {
    super(explorer, {
      id: "monitors",
      title: "Monitors",
      run: "Write and watch",
      hint: "Have the model answer while monitors score every token, and see what they raise alerts about. Those that watch all calls watch this one too.",
    });
    /** @type {Monitor[]} */
    this.stored = [];
    /** @type {Set<string>} */
    this.named = new Set();
    this.list = h("table", { class: "list" });
    this.none = h(
      "p",
      { class: "hint" },
      "No monitor is stored yet. Make one of a stored vector below.",
    );
    this.sampling = new SamplingFields(80);
    this.user = h("input", {
      type: "text",
      maxlength: 256,
      spellcheck: "false",
      placeholder: "nobody",
    });
    this.text = h("div", {
      class: "text",
      tabindex: "0",
      role: "region",
      "aria-label": "What is written",
    });
    this.held = h("p", { role: "status", hidden: true });
    this.end = h("p", { class: "quiet" });
    this.chart = new LineChart();
    this.colored = new Choice("Color tokens by", [], () => this.#paint());
    this.legend = new Legend();
    this.strip = new TokenStrip("Tokens by score");
    this.scoreCard = h(
      "section",
      { class: "card", hidden: true, "aria-label": "Scores" },
      h("h3", {}, "Scores, token by token"),
      this.chart.element,
      this.colored.element,
      this.legend.element,
      this.strip.element,
    );
    this.alerts = new AlertList(explorer, (alert) => this.#alerted(alert));
    /** The id of the call whose answer is shown. */
    this.callId = "";
    /** @type {Map<string, Alert>} by name, those that have held this answer */
    this.holds = new Map();
    this.maker = new MonitorMaker(explorer, (name) => {
      this.named.add(name);
      void this.#refresh();
    });
    /** @type {Generated | null} */
    this.made = null;
    this.compose(
      [
        this.none,
        h("div", { class: "scroll" }, this.list),
        h(
          "div",
          { class: "fields" },
          this.sampling.element,
          h("label", {}, "For the end user", this.user),
        ),
      ],
      h(
        "div",
        { class: "side" },
        h(
          "section",
          { class: "card", "aria-label": "Answer" },
          h("h3", {}, "Answer"),
          this.text,
          this.held,
          this.end,
        ),
        this.alerts.element,
      ),
      this.scoreCard,
      this.maker.element,
    );
  }

  /** @override */
  get runsWhenOpened() {
    return false;
  }

  /** @override */
  shown() {
    if (!this.explorer.served.features.has("monitors")) {
      this.fail(new Error("this server serves no monitors"));
      return;
    }
    void this.#refresh();
    this.alerts.follow();
  }

  /** @override */
  left() {
    this.alerts.leave();
  }

  /** @override @param {AbortSignal} signal */
  async work(signal) {
    this.scoreCard.hidden = true;
    replace(this.text);
    replace(this.end);
    this.callId = "";
    this.holds.clear();
    this.held.hidden = true;
    const named = this.stored.filter(({ name }) => this.named.has(name)).map(({ name }) => name);
    const request = {
      prompt: this.explorer.prompt.value(),
      sampling: this.sampling.value,
      monitors: named.slice(0, MAX_NAMED),
      scoreDetail: "SCORE_DETAIL_TOKEN",
      endUser: this.user.value,
    };
    /** @type {string[]} */
    const raised = [];
    this.made = await generated(this.explorer, request, signal, {
      started: (_, callId) => {
        this.callId = callId;
      },
      wrote: (text) => append(this.text, text),
      alerted: (alert) =>
        raised.push(
          `${shortName(alert.monitor ?? "")} (${plain(alert.level, "ALERT_LEVEL_")}, ${figures(alert.score ?? 0)})`,
        ),
    });
    const { reason, texts, scores } = this.made;
    replace(
      this.end,
      [
        counted(texts.length, "token"),
        FINISHES[reason],
        raised.length ? `told of ${raised.join(", ")}` : "",
      ]
        .filter(Boolean)
        .join(", "),
    );
    this.#show(scores);
    // Others may have decided.
    for (const [name, { decision }] of this.holds)
      if (!decision) await this.alerts.ask(name, signal);
  }

  /** @param {Alert} alert */
  #alerted(alert) {
    if (alert.action !== "ALERT_ACTION_PAUSE" || !alert.name) return;
    if (!this.callId || alert.watchedCallId !== this.callId) return;
    this.holds.set(alert.name, alert);
    const said = [...this.holds.values()].map(({ monitor, decision, decideByTime }) => {
      const by = `held by ${shortName(monitor ?? "")}`;
      if (decision) return `${by}, decided: ${plain(decision, "ALERT_DECISION_")}`;
      const until = new Date(decideByTime ?? 0).toLocaleTimeString();
      return `${by} until ${until}, or until somebody decides under Newest alerts`;
    });
    this.held.hidden = false;
    replace(this.held, said.join("; "));
  }

  /** @override */
  values() {
    return {
      ...this.explorer.prompt.values(),
      watch: [...this.named].map(shortName).join(",") || undefined,
      user: this.user.value,
      ...this.sampling.values(),
    };
  }

  /** @override @param {URLSearchParams} values */
  open(values) {
    const { name } = this.explorer.served;
    const ids = (values.get("watch") ?? "")
      .split(",")
      .filter((id) => /^[a-z][a-z0-9-]{0,62}$/.test(id));
    this.named = new Set(ids.slice(0, MAX_NAMED).map((id) => `${name}/monitors/${id}`));
    this.user.value = (values.get("user") ?? "").slice(0, 256);
    this.sampling.open(values);
    void this.#refresh();
  }

  /** @override */
  python() {
    const named = [...this.named].map(shortName);
    const user = this.user.value ? `, end_user=${literal(this.user.value)}` : "";
    return (
      `${opening(this.explorer.server)}prompt = ${this.explorer.prompt.python()}\n` +
      `out = client.generate(prompt, monitors=${literal(named)}, scores="token", ${this.sampling.python()}${user})\n` +
      `out.text, out.alerts\nfor name, score in out.monitor_scores.items():\n    print(name, score.highest, score.level)\n`
    );
  }

  async #refresh() {
    try {
      this.stored = await monitors(this.explorer.calls, this.explorer.model);
    } catch (error) {
      this.fail(error);
      return;
    }
    this.none.hidden = this.stored.length > 0;
    if (this.stored.length === 0) {
      replace(this.list);
      return;
    }
    const head = ["watch", "monitor", "watches", "reads", "lower level", "upper level", "state"];
    replace(
      this.list,
      h("thead", {}, h("tr", {}, ...head.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, ...this.stored.map((monitor) => this.#row(monitor))),
    );
  }

  /** @param {Monitor} monitor */
  #row({ name, probes, lower, upper, paused, watch }) {
    const box = h("input", {
      type: "checkbox",
      checked: this.named.has(name) && !paused,
      disabled: paused,
      "aria-label": `watch by ${shortName(name)}`,
      onchange: () => {
        if (box.checked) this.named.add(name);
        else this.named.delete(name);
      },
    });
    const level = (/** @type {Monitor["lower"]} */ of) =>
      of
        ? `${figures(of.threshold ?? 0)}${of.stop ? ", stops" : of.pause ? ", pauses" : of.intervene ? ", steers" : ""}`
        : "none";
    const reads = (probes ?? []).map((probe) => nameOf(probe.site)).join(", ") || "a network";
    return h(
      "tr",
      {},
      h("td", {}, box),
      ...[
        shortName(name),
        watched(watch),
        reads,
        level(lower),
        level(upper),
        paused ? "paused" : "ready",
      ].map((text) => h("td", {}, text)),
    );
  }

  /** @param {MonitorScore[]} scores */
  #show(scores) {
    if (!this.made || scores.length === 0) return;
    const lines = scores.map((score) => {
      const monitor = this.stored.find(({ name }) => name === score.monitor);
      const thresholds = [monitor?.lower?.threshold, monitor?.upper?.threshold].filter(
        (value) => value !== undefined,
      );
      return {
        name: `${shortName(score.monitor)}, highest ${figures(score.highestScore ?? 0)}`,
        points: tokenScores(score),
        thresholds,
      };
    });
    const { prompt, texts } = this.made;
    this.chart.show(lines, {
      label: scores
        .map(
          (score) =>
            `${shortName(score.monitor)}: highest ${figures(score.highestScore ?? 0)} at token ${score.highestPosition ?? 0}`,
        )
        .join("; "),
      promptTokens: prompt.ids?.length ?? 0,
    });
    this.strip.show([...(prompt.texts ?? []), ...texts]);
    this.colored.offer(scores.map(({ monitor }) => [monitor, shortName(monitor)]));
    this.scoreCard.hidden = false;
    this.#paint();
  }

  #paint() {
    const score = this.made?.scores.find(({ monitor }) => monitor === this.colored.value);
    /** @type {(number | null)[]} */
    const values = this.strip.texts.map(() => null);
    for (const [position, value] of tokenScores(score)) values[position] = value;
    const scale = Scale.of(values, { diverging: true });
    this.strip.paint(values, scale, (value) => `score ${figures(value)}`);
    this.legend.show(scale, `score of ${shortName(score?.monitor ?? "")}`);
  }
}

/** Which calls a monitor watches. @param {Monitor["watch"]} watch */
function watched({ namedOnly, endUsers, share } = {}) {
  if (namedOnly) return "calls that name it";
  const which =
    share === undefined || share >= 1 ? "every call" : `${figures(100 * share)}% of calls`;
  return endUsers?.length ? `${which} for ${counted(endUsers.length, "end user")}` : which;
}
