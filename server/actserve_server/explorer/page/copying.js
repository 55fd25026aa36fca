/** Copying to the clipboard, which browsers offer to pages of this machine or over TLS alone. */

import { h } from "./dom.js";

/**
 * Copies a text. Where the clipboard is not offered, the text is selected in a dialog for the user to copy.
 *
 * @param {string} text
 * @returns {Promise<boolean>} whether it is copied
 */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    show(text);
    return false;
  }
}

/** @param {string} text */
function show(text) {
  const area = h("textarea", { rows: 12, readonly: true, "aria-label": "To copy", value: text });
  const dialog = h(
    "dialog",
    { "aria-label": "Copy this", onclose: () => dialog.remove() },
    h("p", {}, "Copy this:"),
    area,
    h(
      "p",
      { class: "buttons" },
      h("button", { type: "button", onclick: () => dialog.close() }, "Close"),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
  area.select();
}
