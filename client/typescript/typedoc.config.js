import { OptionDefaults } from "typedoc";

/** @type {Partial<import("typedoc").TypeDocOptions>} */
export default {
  name: "@actserve/client",
  entryPoints: ["src/index.ts", "src/node.ts", "src/web.ts", "src/v1.ts"],
  out: "docs",
  // Stubs name the part of the contract that each is generated from.
  blockTags: [...OptionDefaults.blockTags, "@generated"],
  excludeTags: ["@generated"],
  excludeInternal: true,
  intentionallyNotExported: ["CODES"],
  excludePrivate: true,
  disableSources: true,
  treatWarningsAsErrors: true,
};
