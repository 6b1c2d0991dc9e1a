// LoRAs as the rows of a text, one LoRA a line; `iteris_core/diffusion/lora_rows.py` reads and writes the same
// grammar, and has it in words. No DOM and no ComfyUI here, so that `node --test` runs it.

const TAG = /<lora:((?:[a-z]:(?=[\\/]))?[^:<>\n]*)(?::([^<>\n]*))?>\s*/iy;
const AS_BLOCKS = /^blocks=/i;
const IN_TAG = { unet: "model", te: "clip" }; // what other programs write into a tag
const WORD = /((?:"(?:\\.|[^"\\])*"|[^\s|"])+)\s*/y;
const QUOTED = /"((?:\\.|[^"\\])*)"/g;
const PROMPTS = /(?:\\\||\{[^{}]*\}|[^|])+/g;
const PLAIN = /^[^\s|"]+$/; // a value that needs no quotes
const NUMBER = /^\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?\s*$/i;
const KINDS = ["subject", "style"];
// what templates call the LoRAs of their rows
const CALLED = { subject: "a {trigger}", style: "in {trigger} style" };
const BEFORE_WORDS = /^(.*?)\s+((?:called|without)=.*)$/s;
const NAMED = ["priority", "called", "blocks", "without"];
export const MOST = 100; // of a strength, and of a priority
const LIKE = 0.5; // of the pairs of letters in two similar names, or more, are in both

const plain = { kind: "", priority: 1, called: "", blocks: "", without: [], prompts: [] };

/**
 * A place that the grammar has nothing for: `part` is the text, and `kind` a word of the page for what is wrong.
 */
class Unknown extends Error {
  constructor(part, kind = "unread") {
    super(part);
    this.fault = { kind, part: part.trim() };
  }
}

/**
 * Read a text, line by line.
 *
 * @param {string} text
 * @returns {{text: string, row?: object, isOff?: boolean, error?: {kind: string, part: string}}[]} what each line is: a
 *   row, which may be switched off; an `error`, with the part that is not understood ("unread") or is there a second
 *   time ("twice"); or nothing but its text. A line of several tags is several entries. A row has `name` (empty: its
 *   file is still to be chosen), `model` and `clip` (strengths), `kind` ("", "subject" or "style"), `priority`,
 *   `called`, `blocks`, `without` and `prompts`.
 */
export function readRows(text) {
  return text.split("\n").flatMap((line) => {
    const said = line.trim();
    if (!said) return [{ text: line }];
    const isOff = said.startsWith("#");
    try {
      return rowsOf(said.replace(/^[\s#]+/, "")).map((row, _, { length }) => ({
        text: length > 1 ? writtenRow(row, isOff) : line,
        row,
        isOff,
      }));
    } catch (error) {
      if (!(error instanceof Unknown)) throw error;
      return [isOff ? { text: line } : { text: line, error: error.fault }]; // what is switched off may be anything
    }
  });
}

/** Return the text of entries. */
export function writtenRows(entries) {
  return entries.map(({ text }) => text).join("\n");
}

/** Return the line of a row. */
export function writtenRow({ name, model, clip, kind, priority, called, blocks, without, prompts }, isOff = false) {
  const strengths = clip === model ? [model] : [model, clip];
  const further = furtherWords({ priority, called, blocks, without });
  return [
    ...(isOff ? ["#"] : []),
    `<lora:${[name, ...strengths].join(":")}>`,
    ...(kind ? [kind] : []),
    ...(further ? [further] : []),
    ...prompts.map((prompt) => `| ${oneLine(prompt).replaceAll("|", "\\|")}`),
  ].join(" ");
}

/** Return what a row says after its kind and before its prompts, such as `priority=2 blocks=MID:0`. */
export function furtherWords({ priority, called, blocks, without }) {
  const values = [["called", called], ["blocks", blocks], ...without.map((pattern) => ["without", pattern])];
  return [
    ...(priority === plain.priority ? [] : [`priority=${priority}`]),
    ...values.filter(([, value]) => value).map(([word, value]) => `${word}=${quoted(value)}`),
  ].join(" ");
}

/**
 * Read what `furtherWords` writes, as a user writes it. Any other text is block weights as it stands, such as
 * `IN01:0.5, MID:0 without=*attn2*`: the server reads it, or refuses the row for it, so that nothing is
 * dropped unsaid.
 *
 * @param {string} text
 * @returns {{called: string, blocks: string, without: string[], error?: {kind: string, part: string}}} `error`: why the
 *   text is not such words, should it not be block weights either; see `readRows`
 */
export function furtherIn(text) {
  const written = text.trim();
  const { error, ...found } = wordsIn(written.replace(AS_BLOCKS, "blocks="));
  if (!error) return found;
  const own = written.replace(AS_BLOCKS, "");
  if (error.kind === "twice") return { ...found, blocks: own, error };
  const [, blocks, words] = own.match(BEFORE_WORDS) ?? [];
  const after = words ? wordsIn(words) : { error };
  if (after.error) return { ...found, blocks: own, error: { kind: "unread", part: written } };
  return { ...after, blocks, error: { kind: "unread", part: blocks } };
}

/** Read words as `furtherWords` writes them; with an `error` and empty where there are others. */
function wordsIn(text) {
  const [{ row, error }, another] = readRows(`<lora:x> ${text}`);
  const isFurther = row && !another && !row.kind && row.priority === plain.priority && !row.prompts.length;
  const { called, blocks, without } = isFurther ? row : plain;
  return { called, blocks, without, ...(isFurther ? {} : { error: error ?? { kind: "unread", part: text } }) };
}

/** Return what a LoRA of another kind is called, where a template said so of the kind that it was. */
export function calledAs(kind, called) {
  return Object.values(CALLED).includes(called) ? CALLED[kind] : called;
}

/** Return the entry of a row of a file that has just been chosen. */
export function newRow(file) {
  const row = { ...plain, name: nameOf(file), model: 1, clip: 1 };
  return { text: writtenRow(row), row, isOff: false };
}

/**
 * Return an entry with another row, or switched on or off.
 *
 * @param {object} entry of a row
 * @param {object} change fields of its row
 * @param {boolean} isOff
 */
export function changed(entry, change, isOff = entry.isOff) {
  const row = { ...entry.row, ...change };
  return { ...entry, text: writtenRow(row, isOff), row, isOff };
}

/** Return entries of which all rows are switched on or off. */
export function switched(entries, isOff) {
  return entries.map((entry) => (entry.row && entry.isOff !== isOff ? changed(entry, {}, isOff) : entry));
}

/** Return a list with one of its items at another place. */
export function moved(list, from, to) {
  const rest = list.filter((_, place) => place !== from);
  return [...rest.slice(0, to), list[from], ...rest.slice(to)];
}

/** Return what a row calls a file of ComfyUI's list. */
export function nameOf(file) {
  return file.replace(/\.safetensors$/, "");
}

/** Return the files of a list of which another one in another folder has the name. */
export function namesakes(files) {
  const [once, again] = [new Set(), new Set()];
  for (const file of files) (once.has(ownName(file)) ? again : once).add(ownName(file));
  return new Set(files.filter((file) => again.has(ownName(file))));
}

/** Return the files of a list in one folder with a file whose names differ from its name in numbers alone, and itself. */
export function versions(file, files) {
  const plain = (name) => name.replace(/\d+/g, "0");
  return files.filter((other) => plain(other) === plain(file));
}

/** Return the files of a list whose own names are like one, in pairs of letters, the likest first. */
export function similar(name, files) {
  const pairsOf = (file) => {
    const own = ownName(nameOf(file)).toLowerCase();
    return new Set([...own].slice(1).map((letter, place) => own[place] + letter));
  };
  const wanted = pairsOf(name);
  const likeness = (file) => {
    const pairs = pairsOf(file);
    return (2 * [...pairs].filter((pair) => wanted.has(pair)).length) / (pairs.size + wanted.size);
  };
  const alike = new Map(files.map((file) => [file, likeness(file)]));
  return files.filter((file) => alike.get(file) >= LIKE).sort((one, other) => alike.get(other) - alike.get(one));
}

/** Return whether a row can name a file of ComfyUI's list, so that it is read as it was written. */
export function canName(file) {
  const [{ row }, ...more] = readRows(newRow(file).text);
  // of which a text field makes a line break
  return !!row?.name && row.name === nameOf(file) && !more.length && !file.includes("\r");
}

/**
 * Return the file that a row means, as `find_name` in `nodes/loras/names.py` does.
 *
 * @param {string} name of the row
 * @param {string[]} files ComfyUI's list
 * @returns {string|undefined} undefined: no file, or several
 */
export function fileOf(name, files) {
  const path = (text) => nameOf(text.replaceAll("\\", "/"));
  const wanted = path(name);
  const exact = files.filter((file) => path(file) === wanted);
  const ends = files
    .filter((file) => wanted.endsWith(`/${path(file)}`))
    .sort((one, other) => one.length - other.length); // an absolute path
  const within = () => files.filter((file) => path(file).endsWith(`/${wanted}`));
  const found = exact.length ? exact : ends.length ? ends.slice(-1) : within();
  return found.length === 1 ? found[0] : undefined;
}

/** Return a file's name without its folders. */
export const ownName = (file) => file.split(/[\\/]/).at(-1);

/**
 * Return the names of files that have every word of a text: in their own names, then with their folders, then with what
 * else is known of them. Of each of these, first the names that begin with its first word, then those with a word that
 * begins with it, then merges with either; of those alike, the ones in fewer folders.
 *
 * @param {string[]} names
 * @param {string} text
 * @param {(name: string) => string} [knownOf] what a file is found by beside its name
 * @param {(name: string) => boolean} [isMerge] whether a file is a merge, which is called like its LoRAs
 */
export function matching(names, text, knownOf = () => "", isMerge = () => false) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const isIn = (said) => words.every((word) => said.toLowerCase().includes(word));
  const found = names.filter((name) => isIn(name) || isIn(`${name}\n${knownOf(name)}`));
  if (!words.length) return found;
  const rank = (name) => {
    const own = ownName(name.toLowerCase());
    const base = isIn(own) ? 0 : isIn(name) ? 3 : 6;
    if (own.replace(/\.safetensors$/, "") === words.join(" ")) return -1;
    const isBegun = own.split(/[^\p{L}\p{N}]+/u).some((word) => word.startsWith(words[0]));
    if (isMerge(name)) return base + (isBegun ? 1.5 : 2.5);
    return base + (own.startsWith(words[0]) ? 0 : isBegun ? 1 : 2);
  };
  const ranks = new Map(found.map((name) => [name, rank(name)]));
  const depth = (name) => name.split(/[\\/]/).length; // old versions lie in folders of folders
  return found.sort((one, other) => ranks.get(one) - ranks.get(other) || depth(one) - depth(other));
}

/**
 * Say of each LoRA whether it fits the others, and the model.
 *
 * @param {string[]} families of the LoRAs' files; "": nothing tells
 * @param {string[]} fits families whose LoRAs fit the model; none: nothing tells
 * @returns {string[]} "": it fits, as far as is known; "unfit": it is for another model; "odd": it is for another one
 *   than most
 */
export function strangers(families, fits) {
  if (fits.length) return families.map((family) => (family && !fits.includes(family) ? "unfit" : ""));
  const count = (wanted) => families.filter((family) => family === wanted).length;
  const known = families.filter(Boolean);
  const most = Math.max(0, ...known.map(count));
  const usual = new Set(known.filter((family) => count(family) === most));
  const isUsual = (family) => usual.size === 1 && usual.has(family);
  return families.map((family) => (family && !isUsual(family) ? "odd" : ""));
}

/**
 * Return which files can be offered for a model: those that fit it, up to the first of which nothing is known yet. So
 * nothing is offered that would be taken back, and what is offered stays in its order. Those that cannot be read come
 * last.
 *
 * @param {string[]} names of the files
 * @param {string[]} fits families whose LoRAs fit the model; none: nothing tells, and all are offered
 * @param {(name: string) => string|undefined} familyOf "": nothing tells; undefined: it is not known yet
 * @param {(name: string) => boolean} isWhole whether it can be read, as far as is known
 * @returns {{offered: string[], unread: string[]}} and those that may still come, from that first one on
 */
export function offer(names, fits, familyOf, isWhole) {
  const ordered = (some) => [...some.filter(isWhole), ...some.filter((name) => !isWhole(name))];
  if (!fits.length) return { offered: ordered(names), unread: [] };
  const first = names.findIndex((name) => familyOf(name) === undefined);
  const mayFit = (name) => [undefined, "", ...fits].includes(familyOf(name));
  const known = first < 0 ? names.length : first;
  return { offered: ordered(names.slice(0, known).filter(mayFit)), unread: names.slice(known).filter(mayFit) };
}

/** Return what tells a row's LoRA from those of other rows: a copy of its file, used alike, is the same. */
export function keyOf(file, lora, { blocks, without }) {
  return JSON.stringify([lora?.hash || file, lora?.rank, blocks, without]); // many files state no hash
}

/**
 * Say of each LoRA whether it is there a second time.
 *
 * @param {string[]} keys what tells LoRAs apart; "": one that does not count
 * @returns {boolean[]}
 */
export function repeated(keys) {
  return keys.map((key) => !!key && keys.indexOf(key) !== keys.lastIndexOf(key));
}

function rowsOf(line) {
  const rows = [];
  let place = 0;
  const next = (pattern) => {
    pattern.lastIndex = place;
    const found = pattern.exec(line);
    if (found) place = pattern.lastIndex;
    return found;
  };
  for (let tag = next(TAG); tag; tag = next(TAG)) rows.push(tagged(tag));
  if (!rows.length) throw new Unknown(line);
  if (rows.length > 1 && place < line.length) throw new Unknown(line.slice(place));
  const [row] = rows;
  const said = new Set();
  while (place < line.length && line[place] !== "|") {
    const word = next(WORD);
    if (!word) throw new Unknown(line.slice(place));
    readWord(row, word[1], said);
  }
  const prompts = line.slice(place).match(PROMPTS) ?? [];
  row.prompts = prompts.map((prompt) => prompt.replaceAll("\\|", "|").trim()).filter(Boolean);
  return rows;
}

function tagged([, name, rest]) {
  const { model, clip } = partsIn(rest ?? "");
  const strength = model ? number(model, -MOST) : 1;
  return { ...plain, name: name.trim(), model: strength, clip: clip ? number(clip, -MOST) : strength };
}

/** Return the strengths in a tag by their names. */
function partsIn(text) {
  const free = ["model", "clip"];
  const given = {};
  for (const part of text.split(":")) {
    const [, name, named] = part.match(/^([^=]*)(?:=(.*))?$/s);
    const value = (named ?? name).trim();
    const place = named === undefined ? free.shift() : IN_TAG[name.trim().toLowerCase()];
    if (!place) throw new Unknown(part);
    if (value && given[place] !== undefined) throw new Unknown(part, "twice");
    if (value) given[place] = value;
  }
  return given;
}

/** Read a word into a row; `said` has what the row says already. */
function readWord(row, word, said) {
  const isKind = KINDS.includes(word);
  const [, name, text] = word.match(/^([a-z]+)=(.*)$/s) ?? [];
  if (!isKind && !NAMED.includes(name)) throw new Unknown(word);
  const key = isKind ? word : `${name}=`;
  if (name !== "without" && (said.has(key) || (isKind && row.kind))) throw new Unknown(word, "twice");
  said.add(key);
  if (isKind) {
    row.kind = word;
    return;
  }
  const value = text.replace(QUOTED, (_, inner) => inner.replace(/\\(.)/g, "$1")).trim();
  if (!value) throw new Unknown(word);
  if (name === "without") row.without = [...row.without, value];
  else row[name] = name === "priority" ? number(value, 0) : value;
}

/** Return the number that a user has written, with a point or a comma; NaN: it is not one. */
export function numberIn(text) {
  const written = String(text).trim().replace(",", ".");
  return NUMBER.test(written) ? Number(written) : NaN;
}

function number(text, least) {
  const found = NUMBER.test(text) ? Number(text) : NaN;
  if (!(found >= least && found <= MOST)) throw new Unknown(text);
  return found;
}

const oneLine = (text) => text.trim().split(/\s+/).join(" ");

function quoted(text) {
  const value = oneLine(text);
  return PLAIN.test(value) ? value : `"${value.replace(/[\\"]/g, "\\$&")}"`;
}
