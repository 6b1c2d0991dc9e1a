// What a node of a workflow works out, to compare one workflow with another. No DOM and no ComfyUI here, so that
// `node --test` runs it.

/**
 * Return whether a node of two workflows works out the same, because it and all before it are of the same types and
 * have the same inputs.
 *
 * @param {object} first a workflow as the server gets it: id -> {class_type, inputs}
 * @param {object} second another one
 * @param {string} id the node's id in both
 */
export function isSame(first, second, id) {
  if (!first?.[id] || !second?.[id]) return false;
  const names = new Map();
  return nameOf(first, id, names) === nameOf(second, id, names);
}

/** Return a number that nodes have in common which work out the same. */
function nameOf(prompt, id, names, known = new Map()) {
  if (!known.has(id)) {
    known.set(id, -1); // a loop, which the server would refuse
    const { class_type: type, inputs = {} } = prompt[id];
    const isLink = (value) =>
      Array.isArray(value) && value.length === 2 && typeof value[0] === "string" && value[0] in prompt;
    const values = Object.keys(inputs)
      .sort()
      .map((name) => {
        const value = inputs[name];
        return [name, isLink(value) ? { link: [nameOf(prompt, value[0], names, known), value[1]] } : value];
      });
    const text = JSON.stringify([type, values]);
    if (!names.has(text)) names.set(text, names.size);
    known.set(id, names.get(text));
  }
  return known.get(id);
}
