/** The version of this client; that of `package.json`. */
export const VERSION = "0.1.0";
