import eslint from "@eslint/js";
import { defineConfig, globalIgnores } from "eslint/config";
import tseslint from "typescript-eslint";

export default defineConfig(
  globalIgnores(["build/", "dist/", "docs/", "src/gen/"]),
  eslint.configs.recommended,
  tseslint.configs.strictTypeChecked,
  tseslint.configs.stylisticTypeChecked,
  {
    languageOptions: {
      parserOptions: { project: ["tsconfig.json", "tsconfig.programs.json"] },
    },
    rules: {
      "@typescript-eslint/no-floating-promises": [
        "error",
        { allowForKnownSafeCalls: [{ from: "package", package: "node:test", name: "test" }] },
      ],
      // Numbers are what messages are made of.
      "@typescript-eslint/restrict-template-expressions": ["error", { allowNumber: true }],
    },
  },
  {
    files: ["src/**"],
    ignores: ["src/node.ts", "src/connections.ts"],
    // The core runs in browsers too.
    rules: {
      "no-restricted-imports": ["error", { patterns: ["node:*", "@connectrpc/connect-node"] }],
    },
  },
  { files: ["*.js"], extends: [tseslint.configs.disableTypeChecked] },
);
