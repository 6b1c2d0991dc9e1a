// The lists of LoRA files in the page: every node that has one got it from the server when the page was opened. No DOM
// and no ComfyUI here, so that `node --test` runs it.

/** Yield every list of choices in a node's definition, as the server sent it and as the frontend reads it. */
function* choicesIn({ input, inputs } = {}) {
  for (const spec of Object.values({ ...input?.required, ...input?.optional }))
    yield* Array.isArray(spec) ? [spec[0], spec[1]?.options] : [];
  for (const spec of Object.values(inputs ?? {})) yield spec?.options;
}

/**
 * Put a name in its place in the sorted part of a list; other entries, such as "None", stay where they are.
 */
function insert(list, known, name) {
  const after = list.findIndex((item) => known.has(item) && item > name);
  const last = list.findLastIndex((item) => known.has(item));
  list.splice(after < 0 ? last + 1 : after, 0, name);
}

/**
 * Put a file that was saved into every list of LoRA files: what has all files that were known so far is one.
 *
 * Downloading the definitions of all nodes anew, as the key R does, takes seconds where there are many, and tells about
 * it.
 *
 * @param {string} name the file's name in these lists
 * @param {object[]} types definitions of the nodes that can be added
 * @param {object[]} nodes those that are there
 * @param {string[]} files all files that were known so far
 * @returns {boolean} whether it was put into any
 */
export function enlist(name, types, nodes, files) {
  const known = new Set(files);
  if (!known.size || known.has(name)) return false;
  const lists = [...types].flatMap((type) => [...choicesIn(type)]);
  for (const { widgets } of nodes) for (const { options } of widgets ?? []) lists.push(options?.values);
  const found = new Set(
    lists.filter((list) => Array.isArray(list) && !list.includes(name) && files.every((file) => list.includes(file))),
  );
  found.forEach((list) => insert(list, known, name));
  return found.size > 0;
}
