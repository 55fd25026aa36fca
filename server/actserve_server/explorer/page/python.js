/** What a view does, as a program of the Python client. */

/** Characters that an editor hides or turns around stand as escapes, so that what is copied is what is seen. */
const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\u00a0\u115f\u1160\u2800\u3164\uffa0]/gu;

/**
 * A value as a Python literal.
 *
 * @param {unknown} value a text, a number, true or false, nothing, a list, or an object
 * @returns {string}
 */
export function literal(value) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "number") return String(value);
  if (typeof value === "string") return JSON.stringify(value).replace(HIDDEN, escaped);
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  const items = Object.entries(/** @type {object} */ (value));
  return `{${items.map(([name, item]) => `${literal(name)}: ${literal(item)}`).join(", ")}}`;
}

/** @param {string} character */
function escaped(character) {
  const code = character.codePointAt(0) ?? 0;
  return code > 0xffff
    ? `\\U${code.toString(16).padStart(8, "0")}`
    : `\\u${code.toString(16).padStart(4, "0")}`;
}

/**
 * How a program begins: it imports and connects.
 *
 * @param {{ address: string, withTls: boolean, withToken: boolean }} server
 * @param {...string} modules imported besides
 */
export function opening({ address, withTls, withToken }, ...modules) {
  const imports = [...(withToken ? ["os"] : []), "", "actserve", ...modules];
  const lines = imports.map((module) => (module ? `import ${module}` : ""));
  const tls = withTls ? ", tls=True" : "";
  const token = withToken ? ', token=os.environ["ACTSERVE_TOKEN"]' : "";
  return `${lines.join("\n").trimStart()}\n\nclient = actserve.Client(${literal(address)}${tls}${token})\n`;
}
