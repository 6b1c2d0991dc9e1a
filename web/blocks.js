// Block weights as a number for each group of blocks. No DOM and no ComfyUI here, so that `node --test` runs it.

/**
 * Read block weights as a strength for each group.
 *
 * @param {string} text such as "IN:0.5, MID:0"
 * @param {string[]} groups that the model has, such as IN, MID and OUT
 * @returns {number[]|undefined} undefined: the text says more than a number for each group
 */
export function readGroups(text, groups) {
  const strengths = groups.map(() => 1);
  for (const part of text.split(/[,;\n]/)) {
    if (!part.trim()) continue;
    const [, name, number] = part.match(/^\s*([a-z]+)\s*[:=]\s*([+-]?[\d.]+)\s*$/i) ?? [];
    const place = groups.findIndex((group) => group.toLowerCase() === name?.toLowerCase());
    if (place < 0 || !Number.isFinite(Number(number))) return undefined;
    strengths[place] = Number(number);
  }
  return strengths;
}

/** Return block weights in which each group has a strength; a group that counts fully is not named. */
export function writtenGroups(strengths, groups) {
  return groups
    .map((group, place) => [group, strengths[place]])
    .filter(([, strength]) => strength !== 1)
    .map(([group, strength]) => `${group}:${strength}`)
    .join(", ");
}
