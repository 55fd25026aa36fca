/** Where the page begins. */

import { Explorer } from "./explorer.js";

void new Explorer().connect();
