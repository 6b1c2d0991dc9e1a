// Names of files in little room. No DOM and no ComfyUI here, so that `node --test` runs it.

// the end of a name, from a word on; versions and epochs are there
const END = /^(.{12,}?)([-_. ].{2,8}|.{8})$/su;
const BEGINNING = 4; // characters that names which look alike have in common at the beginning
const SAME = 16; // and there and at the end
const SHORT = 2; // characters that an ellipsis would not be shorter than

/** Return how many characters two names have alike at their beginning. */
function alike(one, other) {
  let count = 0;
  while (count < one.length && one[count] === other[count]) count += 1;
  return count;
}

/** Return from where to where a name has what tells it from one that looks like it; undefined: the other one does not. */
function differing(name, other) {
  const start = alike(name, other);
  if (start < BEGINNING || start === name.length || start === other.length) return undefined;
  let end = 0;
  while (end < name.length && name.at(-1 - end) === other.at(-1 - end)) end += 1;
  if (start + end < SAME) return undefined;
  const [rest] = name.slice(start).match(/^[-_. ]*(?:\d{1,8}|\p{sc=Latin}{1,8}|[^-_. ]{0,4})/u);
  return [name.slice(0, start).search(/(?:\d{0,8}|\p{sc=Latin}{0,8})$/u), start + rest.length];
}

/**
 * Return a name in pieces: every other one, from the first on, gives way where there is little room. What tells the name
 * from names that look like it stays, or else its end.
 *
 * @param {string} name
 * @param {string[]} [names] others, and maybe itself
 * @returns {string[]}
 */
export function pieces(name, names = []) {
  const end = name.length - (name.match(END)?.[2].length ?? 0);
  const told = names.map((other) => differing(name, other)).filter(Boolean);
  const kept = told.map(([from, to]) => (to > end ? [Math.min(from, end), name.length] : [from, to]));
  const found = ["", ""];
  let at = 0;
  for (const [from, to] of (kept.length ? kept : [[end, name.length]]).sort(([one], [other]) => one - other)) {
    if (from - at <= SHORT) found[found.length - 1] += name.slice(at, to);
    else found.push(name.slice(at, from), name.slice(from, to));
    at = Math.max(at, to);
  }
  return [...found, name.slice(at)];
}
