/** What to run: a text, or a conversation of several turns. All views but patching share it. */

import { h } from "./dom.js";
import { literal } from "./python.js";

/** @import { Prompt, Turn } from "../contract.d.ts" */

const ROLES = ["system", "user", "assistant", "tool"];
const MAX_TURNS = 64;
const EXAMPLE = "The capital of France is";

export class PromptEditor {
  /** @param {() => void} onRun what Ctrl and Enter do */
  constructor(onRun) {
    this.text = h("textarea", {
      rows: 3,
      spellcheck: "false",
      id: "prompt",
      "aria-label": "Prompt",
      value: EXAMPLE,
    });
    this.turns = h("div", {});
    this.asText = h("input", {
      type: "radio",
      name: "prompt-kind",
      checked: true,
      onchange: () => this.#shape(),
    });
    this.asTurns = h("input", {
      type: "radio",
      name: "prompt-kind",
      onchange: () => this.#shape(),
    });
    this.more = h(
      "button",
      { type: "button", onclick: () => this.#add("user", "").focus() },
      "Add a turn",
    );
    this.conversation = h("div", { hidden: true }, this.turns, this.more);
    this.element = h(
      "section",
      {
        class: "card",
        "aria-label": "Prompt",
        onkeydown: (/** @type {KeyboardEvent} */ event) => {
          if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
          event.preventDefault();
          onRun();
        },
      },
      h(
        "fieldset",
        {},
        h("legend", {}, "Prompt"),
        h(
          "div",
          { class: "choices" },
          h("label", { class: "check" }, this.asText, "text"),
          h("label", { class: "check" }, this.asTurns, "conversation"),
        ),
      ),
      this.text,
      this.conversation,
    );
  }

  /** @returns {Prompt} */
  value() {
    return this.asText.checked
      ? { text: this.text.value }
      : { conversation: { turns: this.#listed() } };
  }

  /** As a literal of Python. */
  python() {
    return literal(this.asText.checked ? this.text.value : this.#listed());
  }

  /** For a link. @returns {Record<string, string>} */
  values() {
    if (this.asText.checked) return { text: this.text.value };
    return { chat: JSON.stringify(this.#listed().map(({ role, content }) => [role, content])) };
  }

  /** Takes what a link has, if it has any. @param {URLSearchParams} values */
  open(values) {
    const text = values.get("text");
    const turns = turnsOf(values.get("chat"));
    if (text !== null) this.text.value = text;
    if (text === null && !turns) return;
    this.asText.checked = text !== null;
    this.asTurns.checked = text === null;
    this.#shape(turns ?? undefined);
  }

  /** @param {Turn[]} [turns] */
  #shape(turns) {
    const chat = this.asTurns.checked;
    this.text.hidden = chat;
    this.conversation.hidden = !chat;
    if (turns) this.turns.replaceChildren();
    for (const { role, content } of turns ?? []) this.#add(role, content);
    if (chat && this.turns.childElementCount === 0) this.#add("user", this.text.value);
  }

  /** @param {string} role @param {string} content */
  #add(role, content) {
    const text = h("textarea", {
      rows: 2,
      spellcheck: "false",
      "aria-label": "What the turn says",
      value: content,
    });
    const turn = h(
      "div",
      { class: "turn" },
      h(
        "select",
        { "aria-label": "Who speaks" },
        ...ROLES.map((name) => h("option", { value: name, selected: name === role }, name)),
      ),
      text,
      h("button", { type: "button", class: "plain", onclick: () => this.#remove(turn) }, "Remove"),
    );
    this.turns.append(turn);
    this.more.disabled = this.turns.childElementCount >= MAX_TURNS;
    return text;
  }

  /** @param {Element} turn */
  #remove(turn) {
    turn.remove();
    this.more.disabled = false;
    this.more.focus();
  }

  /** @returns {Turn[]} */
  #listed() {
    return Array.from(this.turns.children, (turn) => ({
      role: turn.querySelector("select")?.value ?? "user",
      content: turn.querySelector("textarea")?.value ?? "",
    }));
  }
}

/** The turns of a link, if they are that. @param {string | null} json @returns {Turn[] | null} */
function turnsOf(json) {
  if (!json) return null;
  try {
    const turns = /** @type {unknown} */ (JSON.parse(json));
    if (!Array.isArray(turns) || turns.length === 0 || turns.length > MAX_TURNS) return null;
    return /** @type {unknown[]} */ (turns).map((turn) => {
      const [role, content] = /** @type {unknown[]} */ (turn);
      if (typeof role !== "string" || !ROLES.includes(role) || typeof content !== "string")
        throw new TypeError();
      return { role, content };
    });
  } catch {
    return null;
  }
}
