/** Lines over positions, with thresholds: scores of monitors. */

import { h, replace, s } from "./dom.js";
import { figures } from "./scales.js";
import { brief } from "./text.js";

/**
 * @typedef {object} Line
 * @property {string} name
 * @property {[number, number][]} points positions, ascending, and values
 * @property {number[]} thresholds
 */

/** In pixels; it is as wide as the page has room for. */
const HEIGHT = 240;
const TOP = 8;
const BOTTOM = 24;
const LEFT = 52;
const RIGHT = 8;
/** Lines that are told apart by color; further ones begin anew. */
const COLORS = 4;
/** Points that are drawn of a line; of longer ones every second, third and so on. */
const MAX_POINTS = 2000;

export class LineChart {
  constructor() {
    this.svg = s("svg", { class: "chart", role: "img" });
    this.keys = h("ul", { class: "keys" });
    this.element = h("figure", { hidden: true }, this.svg, this.keys);
    /** @type {Line[]} */
    this.lines = [];
    this.promptTokens = 0;
    this.label = "";
    new ResizeObserver(() => this.#draw()).observe(this.element);
  }

  /**
   * @param {Line[]} lines
   * @param {{ label: string, promptTokens: number }} about where the prompt ends is marked
   */
  show(lines, { label, promptTokens }) {
    this.lines = lines.map((line) => ({
      ...line,
      points: line.points.filter(([, value]) => Number.isFinite(value)),
    }));
    this.label = label;
    this.promptTokens = promptTokens;
    this.element.hidden = false;
    this.#draw();
    const keys = lines.map(({ name, thresholds }, index) => {
      const told = thresholds.length ? ` (threshold ${thresholds.map(figures).join(" and ")})` : "";
      return h("li", {}, h("i", { class: `c${index % COLORS}` }), brief(name), told);
    });
    replace(this.keys, ...keys);
  }

  #draw() {
    const width = this.element.clientWidth;
    if (width === 0) return;
    const ends = this.lines.flatMap(({ points }) => [points[0], points.at(-1)]);
    const positions = ends.map((point) => point?.[0] ?? 0);
    const [first, last] = [Math.min(...positions), Math.max(...positions, 1)];
    const values = this.lines.flatMap(({ points, thresholds }) => [
      ...points.map(([, value]) => value),
      ...thresholds,
    ]);
    const low = values.reduce((a, b) => Math.min(a, b), 0);
    const high = values.reduce((a, b) => Math.max(a, b), 0);
    /** @param {number} position */
    const x = (position) =>
      LEFT + ((width - LEFT - RIGHT) * (position - first)) / (last - first || 1);
    /** @param {number} value */
    const y = (value) => TOP + ((HEIGHT - BOTTOM - TOP) * (high - value)) / (high - low || 1);
    /** @param {number} value @param {string} kind */
    const level = (value, kind) =>
      s("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), class: kind });
    /** @param {number} at */
    const upright = (at) =>
      s("line", { x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM, class: "axis" });
    /** @param {number} at @param {number} from @param {string} anchor @param {string} text */
    const words = (at, from, anchor, text) =>
      s("text", { x: at, y: from, "text-anchor": anchor }, text);

    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    replace(
      this.svg,
      s("title", {}, this.label),
      upright(LEFT),
      level(0, "zero"),
      ...[low, high].map((value) => words(LEFT - 6, y(value) + 4, "end", figures(value))),
      words(x(first), HEIGHT - 6, "start", String(first)),
      words(x(last), HEIGHT - 6, "end", String(last)),
      ...this.lines.flatMap(({ points, thresholds }, index) => {
        const color = `c${index % COLORS}`;
        const step = Math.ceil(points.length / MAX_POINTS) || 1;
        const drawn = points.filter((_, at) => at % step === 0 || at === points.length - 1);
        const path = drawn.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`);
        return [
          ...thresholds.map((value) => level(value, `threshold ${color}`)),
          s("polyline", { class: color, points: path.join(" ") }),
        ];
      }),
    );
    if (this.promptTokens <= first) return;
    const boundary = x(this.promptTokens - 0.5);
    this.svg.append(upright(boundary), words(boundary + 4, TOP + 10, "start", "generated"));
  }
}
