/**
 * What a view shows as the fragment of its address: `#tokens?text=...&color=norm`. The server is never
 * sent a fragment, and nothing secret is ever in one. What a link holds is checked by those who use it.
 */

/** Characters of a fragment. Longer ones are neither written nor read. */
export const MAX_LINK = 16_000;

/**
 * @param {string} hash
 * @returns {{ view: string, values: URLSearchParams, tooLong: boolean }}
 */
export function parsed(hash) {
  if (hash.length > MAX_LINK) return { view: "", values: new URLSearchParams(), tooLong: true };
  const fragment = hash.replace(/^#/, "");
  const split = fragment.indexOf("?");
  const view = split < 0 ? fragment : fragment.slice(0, split);
  return {
    view,
    values: new URLSearchParams(split < 0 ? "" : fragment.slice(split + 1)),
    tooLong: false,
  };
}

/**
 * The fragment of a view, or null if it would be too long.
 *
 * @param {string} view
 * @param {Record<string, string | number | undefined>} values what is empty is left out
 */
export function written(view, values) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    if (value !== undefined && value !== "") query.set(name, String(value));
  }
  const text = query.toString();
  const hash = `#${view}${text ? `?${text}` : ""}`;
  return hash.length > MAX_LINK ? null : hash;
}

/**
 * A whole number of a link.
 *
 * @param {URLSearchParams} values
 * @param {string} name
 * @param {number} least
 * @param {number} most
 * @returns {number | undefined}
 */
export function whole(values, name, least, most) {
  const number = real(values, name, least, most);
  return number !== undefined && Number.isInteger(number) ? number : undefined;
}

/**
 * A number of a link.
 *
 * @param {URLSearchParams} values
 * @param {string} name
 * @param {number} least
 * @param {number} most
 * @returns {number | undefined}
 */
export function real(values, name, least, most) {
  const text = values.get(name);
  if (!text) return undefined;
  const number = Number(text);
  return number >= least && number <= most ? number : undefined;
}
