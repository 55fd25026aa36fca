/** The newest alerts of all calls, as they are raised. */

import { h, replace } from "../dom.js";
import { figures } from "../scales.js";
import { shortName } from "../served.js";
import { ErrorLine } from "../view.js";
import { plain } from "../words.js";

/** @import { Alert, AlertEvent } from "../../contract.d.ts" */
/** @import { Explorer } from "../explorer.js" */

const KEPT = 50;
/** After a lost connection, before it is tried again; then twice as long, and so on. */
const RETRY_MS = 1000;
const LONGEST_RETRY_MS = 60_000;

export class AlertList {
  /** @param {Explorer} explorer @param {(alert: Alert) => void} onAlert told of each, and again once it is decided */
  constructor(explorer, onAlert) {
    this.explorer = explorer;
    this.onAlert = onAlert;
    /** @type {Map<string, Alert>} by name, the oldest first */
    this.alerts = new Map();
    /** @type {AbortController | null} */
    this.following = null;
    this.wanted = false;
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.#pause();
      else if (this.wanted) this.follow();
    });
    this.error = new ErrorLine();
    this.state = h("p", { class: "quiet" }, "not followed");
    this.rows = h("tbody", {});
    const head = ["when", "monitor", "level", "score", "position", "what was done"];
    this.table = h(
      "table",
      { class: "list", hidden: true },
      h("thead", {}, h("tr", {}, ...head.map((name) => h("th", { scope: "col" }, name)))),
      this.rows,
    );
    this.element = h(
      "section",
      { class: "card", "aria-label": "Newest alerts" },
      h("h3", {}, "Newest alerts"),
      this.state,
      this.error.element,
      h(
        "div",
        { class: "scroll", tabindex: "0", role: "region", "aria-label": "Alerts" },
        this.table,
      ),
    );
  }

  /** Follows alerts until left, but while nobody sees the tab: a browser has few connections. */
  follow() {
    this.leave();
    this.wanted = true;
    if (document.hidden) return;
    const controller = new AbortController();
    this.following = controller;
    void this.#follow(controller.signal);
  }

  leave() {
    this.wanted = false;
    this.#pause();
  }

  #pause() {
    this.following?.abort();
    this.following = null;
    this.state.textContent = "not followed";
  }

  /** @param {AbortSignal} signal */
  async #follow(signal) {
    let pause = RETRY_MS;
    while (!signal.aborted) {
      try {
        await this.#watch(signal, () => {
          pause = RETRY_MS;
        });
      } catch (error) {
        if (signal.aborted) return;
        this.error.show(error);
      }
      this.state.textContent = "the connection was lost, and is tried again";
      await new Promise((resolve) => window.setTimeout(resolve, pause));
      pause = Math.min(2 * pause, LONGEST_RETRY_MS);
    }
  }

  /** @param {AbortSignal} signal @param {() => void} onStart */
  async #watch(signal, onStart) {
    const { calls, model } = this.explorer;
    /** @type {AsyncGenerator<AlertEvent>} */
    const events = calls.stream("MonitorService/WatchAlerts", { model }, signal);
    for await (const { started, alert } of events) {
      if (started) {
        // From here on none is missed, so what is listed now and what comes is all there is.
        onStart();
        this.error.clear();
        const { alerts } = /** @type {{ alerts?: Alert[] }} */ (
          await calls.ask("MonitorService/ListAlerts", { model, pageSize: KEPT }, signal)
        );
        for (const each of (alerts ?? []).reverse()) this.#take(each);
        this.state.textContent = this.alerts.size
          ? "followed as they are raised"
          : "none so far; followed as they are raised";
      }
      if (alert) {
        this.#take(alert);
        this.state.textContent = "followed as they are raised";
      }
      this.#show();
    }
  }

  /** Asks what has become of an alert. @param {string} name @param {AbortSignal} signal */
  async ask(name, signal) {
    const { alert } = /** @type {{ alert?: Alert }} */ (
      await this.explorer.calls.ask("MonitorService/GetAlert", { name }, signal)
    );
    if (alert) this.#take(alert);
    this.#show();
  }

  /** @param {Alert} alert */
  #take(alert) {
    if (!alert.name) return;
    this.alerts.set(alert.name, alert);
    const [oldest] = this.alerts.keys();
    if (this.alerts.size > KEPT && oldest) this.alerts.delete(oldest);
    this.onAlert(alert);
  }

  #show() {
    replace(this.rows, ...[...this.alerts.values()].reverse().map((alert) => this.#row(alert)));
    this.table.hidden = this.alerts.size === 0;
  }

  /** @param {Alert} alert */
  #row(alert) {
    const {
      raiseTime = "",
      monitor = "",
      level,
      score = 0,
      position = 0,
      endUser,
      action,
      text,
      explanation,
    } = alert;
    const time = new Date(raiseTime);
    const shown = Number.isNaN(time.getTime()) ? raiseTime : time.toLocaleTimeString();
    const more = [endUser && `for ${endUser}`, text, explanation].filter(Boolean);
    return h(
      "tr",
      {},
      h("td", {}, h("time", { datetime: raiseTime }, shown)),
      h(
        "td",
        {},
        shortName(monitor),
        ...more.map((line) => h("div", { class: "quiet" }, h("bdi", {}, line))),
      ),
      h("td", {}, plain(level, "ALERT_LEVEL_")),
      h("td", { class: "number" }, figures(score)),
      h("td", { class: "number" }, position),
      h("td", {}, ...this.#done(alert, plain(action, "ALERT_ACTION_"))),
    );
  }

  /** @param {Alert} alert @param {string} action */
  #done(alert, action) {
    if (alert.action !== "ALERT_ACTION_PAUSE") return [action || "nothing"];
    if (alert.decision) return [`${action}, then ${plain(alert.decision, "ALERT_DECISION_")}`];
    if (new Date(alert.decideByTime ?? 0) < new Date()) return [`${action}, not decided in time`];
    return [
      h(
        "div",
        { class: "buttons" },
        ...[
          ["ALERT_DECISION_PROCEED", "Go on"],
          ["ALERT_DECISION_STOP", "End it"],
        ].map(([decision, label]) =>
          h(
            "button",
            { type: "button", onclick: () => void this.#decide(alert, decision ?? "") },
            label ?? "",
          ),
        ),
      ),
    ];
  }

  /** @param {Alert} alert @param {string} decision */
  async #decide(alert, decision) {
    try {
      const { alert: decided } = /** @type {{ alert?: Alert }} */ (
        await this.explorer.calls.ask("MonitorService/DecideAlert", { name: alert.name, decision })
      );
      if (decided) this.#take(decided);
      this.#show();
    } catch (error) {
      this.error.show(error);
    }
  }
}
