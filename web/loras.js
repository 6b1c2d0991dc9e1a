// What the server knows about files of LoRAs and models.

import { api } from "../../scripts/api.js";
import { modelFileOf } from "./graph.js";
import { nameOf } from "./rows_text.js";

const answers = new Map(); // route -> its answer, or that on its way
const last = new Map(); // name of a LoRA -> the last answer about it
const { compare } = new Intl.Collator(undefined, { numeric: true });
const inOrder = (one, other) => compare(nameOf(one), nameOf(other));
let names;

/** Return the answer of a route; null: there is none, and `missed` is called, so that it is asked for anew. */
async function ask(route, missed) {
  try {
    const response = await api.fetchApi(route);
    if (response.ok) return await response.json();
  } catch {
    // without a server there is nothing to know
  }
  missed();
  return null;
}

function askOnce(route) {
  if (!answers.has(route))
    answers.set(
      route,
      ask(route, () => answers.delete(route)),
    );
  return answers.get(route);
}

const called = (route, name) => `${route}?name=${encodeURIComponent(name)}`;

/** Return the answer of `/iteris/lora` about a file; null: there is none. */
export async function aboutLora(name) {
  const lora = await askOnce(called("/iteris/lora", name));
  last.set(name, lora);
  return lora;
}

/** Return the last answer about a file, also after all was forgotten; undefined: there was none yet. */
export const lastAboutLora = (name) => last.get(name);

/** Return the answer of `/iteris/model` about the model that a node gets, as far as links tell which one that is. */
export async function aboutModelOf(node) {
  const name = modelFileOf(node);
  return (name && (await askOnce(called("/iteris/model", name)))) || {};
}

/** Return why the server would not run a row for its blocks, layers or prompts; "": it would, as far as is known. */
export const refusalOf = async (row) => (await askOnce(`/iteris/row?text=${encodeURIComponent(row)}`))?.error ?? "";

/** Return the address of a LoRA's picture; undefined: it has none, by what is known of it. */
export const pictureOf = (name, lora) => (lora?.thumbnail ? api.apiURL(called("/iteris/thumbnail", name)) : undefined);

/** Return the names in ComfyUI's list of LoRAs, numbers by their size; null: there is no list. */
export function loraNames() {
  const missed = () => {
    names = undefined;
  };
  names ??= ask("/models/loras", missed).then((found) => found?.toSorted(inOrder) ?? null);
  return names;
}

/** Ask anew from now on: files come and go. The last answers are shown until then. */
export function forget() {
  answers.clear();
  names = undefined;
}
