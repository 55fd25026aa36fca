/** The page: the server's model, the views, which one is seen, and the access token. */

import { CallError, Calls } from "./connect.js";
import { h, replace } from "./dom.js";
import { parsed, written } from "./link.js";
import { PromptEditor } from "./prompt.js";
import { Served } from "./served.js";
import { figures } from "./scales.js";
import { AttentionView } from "./views/attention.js";
import { MonitorsView } from "./views/monitors.js";
import { PatchingView } from "./views/patching.js";
import { SteerView } from "./views/steer.js";
import { TokensView } from "./views/tokens.js";

/** @import { View } from "./view.js" */

/** Of this tab alone, and gone when it is closed. */
const TOKEN = "actserve-token";
const THEME = "actserve-theme";
const SAID_MS = 4000;
const GRPC_PORT = 50051;

/** What a browser may be told to keep nothing of: then a token lasts as long as the page. */
const KEPT = {
  /** @param {"sessionStorage" | "localStorage"} where @param {string} name */
  get(where, name) {
    try {
      return window[where].getItem(name) ?? "";
    } catch {
      return "";
    }
  },
  /** @param {"sessionStorage" | "localStorage"} where @param {string} name @param {string} value */
  set(where, name, value) {
    try {
      if (value) window[where].setItem(name, value);
      else window[where].removeItem(name);
    } catch {
      // Nothing is kept.
    }
  },
};

/** @template {HTMLElement} E @param {string} id @param {new () => E} type @returns {E} */
function byId(id, type) {
  const element = document.getElementById(id);
  if (!(element instanceof type)) throw new Error(`the page has no ${id}`);
  return element;
}

export class Explorer {
  constructor() {
    this.main = byId("main", HTMLElement);
    this.said = byId("said", HTMLParagraphElement);
    this.token = KEPT.get("sessionStorage", TOKEN);
    this.calls = new Calls(() => this.token);
    this.prompt = new PromptEditor(() => void this.view?.run());
    /** @type {Map<string, View>} */
    this.views = new Map();
    /** @type {View | null} */
    this.view = null;
    /** @type {Served | null} */
    this.found = null;
    this.saying = 0;
    this.dialog = byId("token-dialog", HTMLDialogElement);
    this.#tokenDialog();
    this.#theme();
    window.addEventListener("hashchange", () => this.#open());
  }

  /** The model. */
  get served() {
    if (!this.found) throw new Error("the server has not answered yet");
    return this.found;
  }

  /** The model's name, which requests carry. */
  get model() {
    return this.served.name;
  }

  /** For programs that call the server by gRPC. */
  get server() {
    const port = document.documentElement.dataset.grpcPort ?? GRPC_PORT;
    return {
      address: `${location.hostname}:${port}`,
      withTls: location.protocol === "https:",
      withToken: this.token !== "",
    };
  }

  /** Asks the server what it serves, and shows the view of the address. */
  async connect() {
    const model = byId("model", HTMLParagraphElement);
    try {
      this.found = await Served.find(this.calls);
    } catch (error) {
      replace(model, error instanceof Error ? error.message : String(error));
      this.refused(error);
      return;
    }
    const { id, layers, model: described } = this.found;
    replace(
      model,
      h("b", {}, id),
      ` ${described.architecture ?? ""}, ${layers} layers, width ${figures(described.width)}`,
    );
    this.#build();
    this.#open();
  }

  /** Tells something in passing. @param {string} text */
  say(text) {
    this.said.textContent = text;
    window.clearTimeout(this.saying);
    this.saying = window.setTimeout(() => {
      this.said.textContent = "";
    }, SAID_MS);
  }

  /** Asks for a token where an error says that it takes one. @param {unknown} error */
  refused(error) {
    if (!(error instanceof CallError) || error.code !== "unauthenticated") return;
    byId("token-why", HTMLParagraphElement).textContent = this.token
      ? "The server does not know the token that this tab has."
      : "The server wants a token with every call.";
    this.#ask();
  }

  /** Puts what a view shows into the address, if it fits. @param {View} view */
  remember(view) {
    if (view !== this.view) return;
    const hash = this.#hash(view) ?? `#${view.id}`;
    history.replaceState(null, "", hash);
  }

  /** The whole link, or null where that would be too long. @param {View} view */
  linkOf(view) {
    const hash = this.#hash(view);
    return hash === null ? null : `${location.origin}${location.pathname}${hash}`;
  }

  /** @param {View} view */
  #hash(view) {
    return written(view.id, view.values());
  }

  #build() {
    this.view?.left();
    this.view = null;
    this.views.clear();
    for (const Kind of [TokensView, SteerView, AttentionView, MonitorsView, PatchingView]) {
      const view = new Kind(this);
      this.views.set(view.id, view);
    }
    const links = [...this.views.values()].map((view) =>
      h("li", {}, h("a", { href: `#${view.id}`, "data-view": view.id }, view.title)),
    );
    replace(byId("views", HTMLUListElement), ...links);
    replace(
      this.main,
      this.prompt.element,
      ...[...this.views.values()].map((view) => view.element),
    );
  }

  /** Shows the view of the address. */
  #open() {
    if (!this.found) return;
    const { view: id, values, tooLong } = parsed(location.hash);
    if (tooLong) this.say("This link is too long to be read");
    const view = this.views.get(id) ?? this.views.get("tokens");
    if (!view) return;
    if (view !== this.view) {
      this.view?.left();
      this.view = view;
      for (const each of this.views.values()) each.element.hidden = each !== view;
      for (const link of document.querySelectorAll("[data-view]")) {
        if (link.getAttribute("data-view") === view.id) link.setAttribute("aria-current", "page");
        else link.removeAttribute("aria-current");
      }
      this.prompt.element.hidden = view.id === "patching";
      document.title = `${view.title} · actserve explorer`;
      view.shown();
    }
    if (values.size) {
      this.prompt.open(values);
      view.open(values);
      if (view.runsWhenOpened) void view.run();
    } else if (view.hasRun) this.remember(view);
  }

  #ask() {
    if (!this.dialog.open) this.dialog.showModal();
  }

  #tokenDialog() {
    const input = byId("token", HTMLInputElement);
    byId("token-button", HTMLButtonElement).addEventListener("click", () => this.#ask());
    this.dialog.addEventListener("close", () => {
      const { returnValue } = this.dialog;
      const given = input.value.trim();
      input.value = "";
      this.dialog.returnValue = "";
      if (returnValue === "forget") this.token = "";
      else if (returnValue === "use" && given) this.token = given;
      else return;
      KEPT.set("sessionStorage", TOKEN, this.token);
      void this.connect();
    });
  }

  #theme() {
    const select = byId("theme", HTMLSelectElement);
    const set = () => {
      if (select.value) document.documentElement.dataset.theme = select.value;
      else delete document.documentElement.dataset.theme;
    };
    select.value = KEPT.get("localStorage", THEME);
    set();
    select.addEventListener("change", () => {
      KEPT.set("localStorage", THEME, select.value);
      set();
    });
  }
}
