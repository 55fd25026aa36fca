/** A vector made of contrasting prompts, and stored. */

import { Choice, SiteField } from "../fields.js";
import { h, replace } from "../dom.js";
import { requestId } from "../ids.js";
import { figures } from "../scales.js";
import { nameOf, toSite } from "../sites.js";
import { ErrorLine } from "../view.js";

/** @import { SteeringVector } from "../../contract.d.ts" */
/** @import { Explorer } from "../explorer.js" */

/** @type {[string, string][]} */
const METHODS = [
  ["VECTOR_METHOD_MEAN_DIFFERENCE", "difference of the means"],
  ["VECTOR_METHOD_PCA", "first component of paired differences"],
  ["VECTOR_METHOD_LOGISTIC_REGRESSION", "logistic regression"],
];
/** @type {Record<string, object | undefined>} */
const POSITIONS = { last: undefined, rest: { span: { start: 1 } } };
/** Sites of a vector that are told, the best first. */
const TOLD = 5;

export class VectorMaker {
  /** @param {Explorer} explorer @param {(vector: SteeringVector, site: string) => void} onMade told the best site too */
  constructor(explorer, onMade) {
    this.explorer = explorer;
    this.onMade = onMade;
    const lines = { rows: 5, spellcheck: "false" };
    this.positive = h("textarea", {
      ...lines,
      value:
        "I loved this film, it was wonderful.\nWhat a joy to watch.\nBrilliant acting, I was thrilled.\nThe best movie I have seen.",
    });
    this.negative = h("textarea", {
      ...lines,
      value:
        "I hated this film, it was terrible.\nWhat a pain to watch.\nAwful acting, I was disgusted.\nThe worst movie I have seen.",
    });
    this.name = h("input", {
      type: "text",
      maxlength: 63,
      pattern: "[a-z][a-z0-9\\-]*",
      placeholder: "joy",
      spellcheck: "false",
    });
    this.site = new SiteField(explorer.served, { changeable: true });
    this.every = h("input", { type: "checkbox" });
    this.method = new Choice("Method", METHODS);
    this.where = new Choice("Of each prompt", [
      ["rest", "all tokens but the first"],
      ["last", "the last token"],
    ]);
    this.error = new ErrorLine();
    this.button = h(
      "button",
      { type: "button", class: "main", onclick: () => void this.#make() },
      "Make and store it",
    );
    this.report = h("div", { "aria-live": "polite" });
    this.element = h(
      "details",
      { class: "card" },
      h("summary", {}, "Make a vector of contrasting prompts"),
      h(
        "div",
        { class: "side" },
        h("label", {}, "Prompts that have it, one a line", this.positive),
        h("label", {}, "Prompts that lack it, one a line", this.negative),
      ),
      h(
        "div",
        { class: "fields" },
        h("label", {}, "Name", this.name),
        this.site.element,
        h("label", { class: "check" }, this.every, "every layer, and steer at the best"),
        this.method.element,
        this.where.element,
      ),
      h("p", { class: "buttons" }, this.button),
      this.error.element,
      this.report,
    );
  }

  async #make() {
    const { calls, model, served } = this.explorer;
    this.error.clear();
    replace(this.report);
    this.button.disabled = true;
    const hook = this.site.hook.value;
    const sites = this.every.checked
      ? Array.from({ length: served.layers }, (_, layer) => `${hook}.${layer}`)
      : [this.site.value];
    try {
      const { steeringVector, ranking } =
        /** @type {{ steeringVector: SteeringVector, ranking?: number[] }} */ (
          await calls.ask("SteeringVectorService/MakeSteeringVector", {
            model,
            steeringVectorId: this.name.value,
            sites: sites.map(toSite),
            prompts: {
              positive: prompts(this.positive.value),
              negative: prompts(this.negative.value),
              positions: POSITIONS[this.where.value],
            },
            method: this.method.value,
            requestId: requestId(),
          })
        );
      const rows = steeringVector.rows ?? [];
      const best = (ranking?.length ? ranking : rows.map((_, index) => index))
        .slice(0, TOLD)
        .map((index) => rows[index]);
      const head = [
        "site",
        "tells held-out prompts apart (AUROC)",
        "halves agree (cosine)",
        "norm",
        "usual row",
      ];
      replace(
        this.report,
        h(
          "table",
          { class: "list" },
          h("caption", {}, `${steeringVector.name} is stored.`),
          h("thead", {}, h("tr", {}, ...head.map((name) => h("th", { scope: "col" }, name)))),
          h(
            "tbody",
            {},
            ...best.map((row) =>
              h(
                "tr",
                {},
                ...[
                  nameOf(row?.site),
                  figures(row?.separation?.heldOutAuroc),
                  figures(row?.separation?.halfCosine),
                  figures(row?.norm),
                  figures(row?.medianRowNorm),
                ].map((text) => h("td", {}, text)),
              ),
            ),
          ),
        ),
      );
      this.onMade(steeringVector, nameOf(best[0]?.site));
    } catch (error) {
      this.error.show(error);
      this.explorer.refused(error);
    } finally {
      this.button.disabled = false;
    }
  }
}

/** @param {string} lines */
function prompts(lines) {
  return lines
    .split("\n")
    .filter((line) => line.trim())
    .map((text) => ({ text }));
}
