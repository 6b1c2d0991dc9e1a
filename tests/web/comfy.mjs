// Stands for what modules with a page import from ComfyUI: `globalThis.comfy` has its `api` and its `app`.

import { register } from "node:module";

const loader = `export const resolve = (name, context, next) => {
  const [, found] = name.match(/^\\.\\.\\/\\.\\.\\/scripts\\/(api|app)\\.js$/) ?? [];
  if (!found) return next(name, context);
  const source = "export const " + found + " = globalThis.comfy." + found + ";";
  return { url: "data:text/javascript," + encodeURIComponent(source), shortCircuit: true };
}`;

globalThis.comfy = { api: {}, app: {} };
register(`data:text/javascript,${encodeURIComponent(loader)}`);
