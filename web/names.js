// Names of files in little room. No DOM and no ComfyUI here, so that `node --test` runs it.

/** Return how many characters two names have alike at their beginning. */
function alike(one, other) {
  let count = 0;
  while (count < one.length && one[count] === other[count]) count += 1;
  return count;
}

// what the server calls pictures that are not of one LoRA: their places in a row, and the words for them
const OF_NO_LORA = [
  [0, "base model", "base_model"],
  [-2, "stacked", "stacked"],
  [-1, "merged", "merged"],
];

/** Return the names of a row of pictures, in the page's language but for those of files. */
export const translated = (names, say) =>
  OF_NO_LORA.reduce(
    (found, [place, name, word]) => (found.at(place) === name ? found.toSpliced(place, 1, say(word)) : found),
    names,
  );

/**
 * Return names, each with at most so many characters, if it can: what it begins with alike is cut out of a name that is
 * too long, up to the word in which it differs from another one.
 *
 * @param {string[]} names
 * @param {number} most
 * @returns {string[]}
 */
export function toldApart(names, most) {
  return names.map((name) => {
    if (name.length <= most) return name;
    const same = Math.max(0, ...names.filter((other) => other !== name).map((other) => alike(name, other)));
    const word = name.slice(0, same).search(/[^-_. ]*$/);
    const room = most - 1 - (name.length - word);
    return word > Math.max(1, room) ? `${name.slice(0, Math.max(0, room))}…${name.slice(word)}` : name;
  });
}
