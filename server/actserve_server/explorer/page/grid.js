/**
 * A table of colored cells with a name for each row and column, in which one goes about with arrows, as
 * the pattern "grid" of the ARIA practices has it.
 */

import { append, h, replace } from "./dom.js";
import { brief, token } from "./text.js";

/**
 * @typedef {object} Cell
 * @property {string} text what stands in it
 * @property {string} className its color
 * @property {string} label what it says in full
 */

/**
 * @typedef {object} Shape
 * @property {string} caption
 * @property {string} corner what rows are, by columns
 * @property {string[]} rows
 * @property {string[]} columns
 * @property {number} [marked] a column that is set off
 */

export class HeatGrid {
  /** @param {(row: number, column: number) => void} [onChoose] */
  constructor(onChoose = () => undefined) {
    this.onChoose = onChoose;
    this.table = h("table", {
      role: "grid",
      class: "heat",
      onclick: (/** @type {MouseEvent} */ event) => this.#click(event),
      onkeydown: (/** @type {KeyboardEvent} */ event) => this.#key(event),
    });
    this.element = h("div", { class: "scroll", hidden: true }, this.table);
    /** @type {HTMLTableCellElement[][]} */
    this.cells = [];
    this.at = { row: -1, column: -1 };
  }

  /** Shows an empty grid in place of what it has. @param {Shape} shape */
  shape({ caption, corner, rows, columns, marked }) {
    this.cells = rows.map(() =>
      columns.map(() => h("td", { role: "gridcell", tabindex: "-1", class: "none" })),
    );
    this.at = { row: -1, column: -1 };
    const head = h(
      "tr",
      { role: "row" },
      h("th", { scope: "col", role: "columnheader" }, corner),
      ...columns.map((name, column) =>
        h(
          "th",
          { scope: "col", role: "columnheader", class: column === marked ? "marked" : null },
          brief(token(name), 14),
        ),
      ),
    );
    const body = rows.map((name, row) =>
      h(
        "tr",
        { role: "row" },
        h("th", { scope: "row", role: "rowheader" }, name),
        ...(this.cells[row] ?? []),
      ),
    );
    replace(this.table, h("caption", {}, caption), h("thead", {}, head), h("tbody", {}, ...body));
    const first = this.cells[0]?.[0];
    if (first) first.tabIndex = 0;
    this.element.hidden = false;
  }

  /** @param {number} row @param {number} column @param {Cell} cell */
  set(row, column, { text, className, label }) {
    const element = this.cells[row]?.[column];
    if (!element) return;
    element.replaceChildren();
    append(element, brief(token(text), 12));
    element.className =
      row === this.at.row && column === this.at.column ? `${className} chosen` : className;
    element.title = label;
    element.setAttribute("aria-label", label);
  }

  /** Marks a cell as chosen, without telling. @param {number} row @param {number} column */
  choose(row, column) {
    const cell = this.cells[row]?.[column];
    if (!cell) return;
    const before = this.cells[this.at.row]?.[this.at.column] ?? this.cells[0]?.[0];
    before?.classList.remove("chosen");
    before?.removeAttribute("aria-selected");
    if (before) before.tabIndex = -1;
    this.at = { row, column };
    cell.classList.add("chosen");
    cell.setAttribute("aria-selected", "true");
    cell.tabIndex = 0;
    this.#reveal(cell);
  }

  /** Scrolls within the grid, and leaves the page where it is. @param {HTMLElement} cell */
  #reveal(cell) {
    const [box, seen] = [cell.getBoundingClientRect(), this.element.getBoundingClientRect()];
    if (box.bottom > seen.bottom) this.element.scrollTop += box.bottom - seen.bottom + 4;
    else if (box.top < seen.top) this.element.scrollTop -= seen.top - box.top + 4 + box.height;
  }

  hide() {
    this.element.hidden = true;
  }

  /** @param {Element | null} target @returns {[number, number] | null} */
  #find(target) {
    const cell = target?.closest("td");
    for (const [row, cells] of this.cells.entries()) {
      const column = cells.indexOf(/** @type {HTMLTableCellElement} */ (cell));
      if (column >= 0) return [row, column];
    }
    return null;
  }

  /** @param {MouseEvent} event */
  #click(event) {
    const found = this.#find(/** @type {Element} */ (event.target));
    if (!found) return;
    this.choose(...found);
    this.onChoose(...found);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    const found = this.#find(/** @type {Element} */ (event.target));
    if (!found || event.altKey || event.metaKey) return;
    const [row, column] = found;
    const [lastRow, lastColumn] = [this.cells.length - 1, (this.cells[0]?.length ?? 0) - 1];
    /** @type {Record<string, [number, number]>} */
    const moves = {
      ArrowRight: [row, column + 1],
      ArrowLeft: [row, column - 1],
      ArrowDown: [row + 1, column],
      ArrowUp: [row - 1, column],
      Home: [event.ctrlKey ? 0 : row, 0],
      End: [event.ctrlKey ? lastRow : row, lastColumn],
      Enter: [row, column],
      " ": [row, column],
    };
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    const [toRow, toColumn] = [
      Math.min(Math.max(move[0], 0), lastRow),
      Math.min(Math.max(move[1], 0), lastColumn),
    ];
    this.choose(toRow, toColumn);
    this.cells[toRow]?.[toColumn]?.focus();
    this.onChoose(toRow, toColumn);
  }
}
