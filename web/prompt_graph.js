// What a node of a workflow works out, to compare one workflow with another. No DOM and no ComfyUI here, so that
// `node --test` runs it.

const MERGES = ["IterISMerge", "IterISMergeVideo"]; // the types of nodes that merge
export const PREVIEW = "Preview"; // the preset that measures nothing
export const OF_MERGE = ["preset", "together", "size", "size_value"]; // a merge's own settings
const NUMBERED = ["rank", "MB"];

/** Return whether a size has a number; one that comes through a link may have. */
export const isNumbered = (size) => Array.isArray(size) || NUMBERED.includes(size);

/** Return whether a node merges. */
export const isMerge = (node) => MERGES.includes(node?.comfyClass);

/** Return which of a merge's own settings do not count. */
export function idleOf(isOfRecipe, preset) {
  if (isOfRecipe) return OF_MERGE;
  return preset === PREVIEW ? OF_MERGE.slice(1) : [];
}

const SETTINGS = "IterISSettings";

/** Return what an input of Merge settings is at first; undefined: it has no such input, or nobody knows. */
const usualOf = (name) =>
  globalThis.LiteGraph?.registered_node_types[SETTINGS]?.nodeData.input.optional[name]?.[1].default;

/** Return whether a node is Merge settings that sets nothing. */
const setsNothing = ({ class_type: type, inputs = {} } = {}) =>
  type === SETTINGS && Object.entries(inputs).every(([name, value]) => value === usualOf(name));

/** Return which inputs of a node change nothing of what it tells. */
function uncountedIn({ class_type: type, inputs: { preset, size, settings } }, prompt) {
  if (type === "IterISSave") return ["cover"];
  if (!MERGES.includes(type)) return [];
  const given = prompt[settings?.[0]];
  const idle = idleOf(given?.class_type === "IterISRecipe", preset);
  const own = idle.length || isNumbered(size) ? idle : ["size_value"];
  return setsNothing(given) ? [...own, "settings"] : own;
}

/** Take out of a workflow that is sent the numbers of sizes that have none: the server's cache would count them. */
export function takeOutUncounted(prompt) {
  for (const { class_type: type, inputs } of Object.values(prompt ?? {}))
    if (MERGES.includes(type) && !isNumbered(inputs.size)) delete inputs.size_value;
}

const isLink = (prompt, value) =>
  Array.isArray(value) && value.length === 2 && typeof value[0] === "string" && value[0] in prompt;

/** Return what of a workflow is run for nodes alone; without their ids, all of it. */
export function neededFor(prompt, ids) {
  if (!prompt || !ids) return prompt;
  const found = new Set(ids.filter((id) => id in prompt));
  for (const id of found) // which come to be more meanwhile
    for (const value of Object.values(prompt[id].inputs ?? {})) if (isLink(prompt, value)) found.add(value[0]);
  return Object.fromEntries([...found].map((id) => [id, prompt[id]]));
}

/** Return what of a workflow is run where the server has refused nodes of it, and outputs for them. */
export function withoutRefused(prompt, errors) {
  const out = Object.entries(errors ?? {}).flatMap(([id, { dependent_outputs: outputs = [] }]) => [id, ...outputs]);
  return prompt && Object.fromEntries(Object.entries(prompt).filter(([id]) => !out.includes(id)));
}

/**
 * Return a name that nodes of any workflows have in common which work out the same, because they and all before them are
 * of the same types and have the same inputs, but for those that do not count.
 *
 * @param {object} prompt a workflow as the server gets it: id -> {class_type, inputs}
 * @param {string} id
 * @returns {string|undefined} undefined: the workflow has no such node
 */
export function workOf(prompt, id, known = new Map()) {
  if (!prompt?.[id]) return undefined;
  if (!known.has(id)) {
    known.set(id, ""); // a loop, which the server would refuse
    const { class_type: type, inputs = {} } = prompt[id];
    const uncounted = uncountedIn({ class_type: type, inputs }, prompt);
    const values = Object.keys(inputs)
      .filter((name) => !uncounted.includes(name))
      .sort()
      .map((name) => {
        const value = inputs[name];
        return [name, isLink(prompt, value) ? { link: [workOf(prompt, value[0], known), value[1]] } : value];
      });
    known.set(id, digest(JSON.stringify([type, values])));
  }
  return known.get(id);
}

/** Return whether a node of the same id works out the same in two workflows, see `workOf`. */
export function isSame(first, second, id) {
  const name = workOf(first, id);
  return name !== undefined && name === workOf(second, id);
}

/**
 * Return in which inputs a node, and those before it, are not what they were in a run, the nearest first.
 *
 * @param {[object, string]} ran a workflow as the server gets it, and the node's id there
 * @param {[object, string]} shown the same now
 * @returns {{type: string, name: string, was: any, is: any}[]|undefined} undefined: other nodes or links, or nobody knows
 */
export function changesBetween([ran, first], [shown, second]) {
  if (!ran?.[first] || !shown?.[second]) return undefined;
  const found = [];
  const pairs = new Map([[`${first} ${second}`, [ran[first], shown[second]]]]);
  for (const [one, other] of pairs.values()) {
    const type = one.class_type;
    if (type !== other.class_type) return undefined;
    const [before, now] = [one.inputs ?? {}, other.inputs ?? {}];
    const [idle, left] = [
      uncountedIn({ class_type: type, inputs: before }, ran),
      uncountedIn({ class_type: type, inputs: now }, shown),
    ];
    for (const name of new Set([...Object.keys(before), ...Object.keys(now)])) {
      const settings = MERGES.includes(type) && name === "settings";
      if (!settings && idle.includes(name) && left.includes(name)) continue;
      const links = [isLink(ran, before[name]), isLink(shown, now[name])];
      const usual = type === SETTINGS ? usualOf(name) : undefined;
      const [was, is] = [before[name] ?? usual, now[name] ?? usual];
      if (links[0] !== links[1] && !settings) return undefined;
      if (links[0] || links[1]) {
        if (!settings && was[1] !== is[1]) return undefined;
        const none = { class_type: SETTINGS, inputs: {} };
        pairs.set(`${was?.[0]} ${is?.[0]}`, [ran[was?.[0]] ?? none, shown[is?.[0]] ?? none]);
      } else if (JSON.stringify(was) !== JSON.stringify(is)) found.push({ type, name, was, is });
    }
  }
  return found;
}

/** Return 64 bits that tell texts apart, as digits; browsers have a better digest for pages with a certificate alone. */
function digest(text) {
  let [high, low] = [0x9e3779b9, 0x85ebca6b];
  for (let at = 0; at < text.length; at++) {
    const code = text.charCodeAt(at);
    high = Math.imul(high ^ code, 0x01000193) ^ (high >>> 15);
    low = Math.imul(low ^ code, 0x5bd1e995) ^ (low >>> 13);
  }
  return [high, low].map((part) => (part >>> 0).toString(16).padStart(8, "0")).join("");
}
