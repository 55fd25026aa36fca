/**
 * Text of models and callers, shown as it is: what cannot be seen is marked, and what would turn the
 * order of characters around does so within its own element alone (`unicode-bidi: isolate` in the style).
 */

/** Control and format characters, separators, lone surrogates, spaces but the plain one, and letters that are blank. */
const UNSEEN =
  /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\u00a0\u115f\u1160\u1680\u2000-\u200a\u202f\u205f\u2800\u3000\u3164\uffa0]/gu;

/** @type {Record<string, string>} */
const SIGNS = {
  "\n": "⏎",
  "\t": "⇥",
  "\r": "␍",
  "\x00": "␀",
  "\x1b": "␛",
  "\x7f": "␡",
  "\u00a0": "⍽",
};

/** Of one text as it is shown; the rest is counted. */
export const MAX_SHOWN = 100_000;

/**
 * Appends text, each unseen character as a small mark of its own, which no text can look like. Line
 * breaks are breaks.
 *
 * @param {Element | DocumentFragment} parent
 * @param {string} text
 * @param {{ lineMarks?: boolean }} [options] whether line breaks are marks in place of that
 */
export function appendText(parent, text, { lineMarks = false } = {}) {
  const shown = text.length > MAX_SHOWN ? text.slice(0, MAX_SHOWN) : text;
  let end = 0;
  for (const found of shown.matchAll(UNSEEN)) {
    const [character] = found;
    if (found.index > end) parent.append(shown.slice(end, found.index));
    end = found.index + character.length;
    const isBreak = character === "\n" && !lineMarks;
    parent.append(isBreak ? character : mark(signOf(character)));
  }
  parent.append(shown.slice(end));
  if (shown.length < text.length) {
    parent.append(mark(`and ${(text.length - shown.length).toLocaleString("en")} more characters`));
  }
}

/** What a token is called where it cannot be drawn, such as in a label. @param {string} text */
export function quoted(text) {
  const cut = text.length > 80 ? `${text.slice(0, 80)}...` : text;
  return `“${cut.replace(UNSEEN, (character) => signOf(character))}”`;
}

/** A token in a small place: one of nothing but spaces is told by a sign. @param {string} text */
export function token(text) {
  if (text === "") return "∅";
  return text.trim() === "" ? text.replaceAll(" ", "␣") : text;
}

/** A line of a chart or a table: no line break, and short. @param {string} text @param {number} [most] */
export function brief(text, most = 40) {
  const line = text.replace(UNSEEN, (character) => signOf(character));
  return line.length > most ? `${line.slice(0, most - 1)}…` : line;
}

/** @param {string} character */
function signOf(character) {
  const code = character.codePointAt(0) ?? 0;
  return SIGNS[character] ?? `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
}

/** @param {string} sign */
function mark(sign) {
  const element = document.createElement("span");
  element.className = "mark";
  element.textContent = sign;
  return element;
}
