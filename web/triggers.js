// Prompts and trigger words as text. No DOM and no ComfyUI here, so that `node --test` runs it.

import { ownName } from "./rows_text.js";

/** Return the non-empty lines of a text field. */
export function lines(text) {
  return text
    .split("\n")
    .map((line) => line.trim())
    .filter(Boolean);
}

/**
 * Return whether the prompts hold this text: a prompt as a line of its own, a word anywhere but inside another word.
 */
export function holds(prompts, { kind, text }) {
  if (kind === "prompt") return lines(prompts).includes(text);
  const escaped = text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  return new RegExp(`(?<![\\p{L}\\p{N}_])${escaped}(?![\\p{L}\\p{N}_])`, "iu").test(prompts);
}

const PARTS = /(?=,)|(?= and (?:an?|the) )/iu; // of a line, each with what is before it
const bare = (part) => part.replace(/^(?:,| and )/iu, "").trim();
const isThing = (text) => /^(?:an?|the) /iu.test(text);

/**
 * Add a suggestion to the prompts: a prompt as a new line, a word to the line that is being written.
 *
 * @param {string} prompts the field's text
 * @param {{kind: "prompt"|"word", text: string}} suggestion
 * @param {boolean} [ofSeveral] whether the prompts are for several LoRAs: two things are "a sks robot and a zwx owl", as
 *   merges measure them
 * @returns {string} the same text if it is in there already
 */
export function add(prompts, suggestion, ofSeveral = false) {
  if (holds(prompts, suggestion)) return prompts;
  const { kind, text } = suggestion;
  const written = prompts.replace(/[ \t]+$/, "");
  if (!written.trim()) return text;
  if (written.endsWith("\n")) return written + text;
  if (kind === "prompt") return `${written}\n${text}`;
  const last = bare(written.split("\n").at(-1).split(PARTS).at(-1));
  if (ofSeveral && isThing(last) && isThing(text)) return `${written} and ${text}`;
  return `${written}${written.endsWith(",") ? "" : ","} ${text}`;
}

/**
 * Take a suggestion out of the prompts again, where it is a line of its own, or `add` has put it beside others.
 *
 * @returns {string} the same text if it is not there so, but part of what the user has written
 */
export function takenOut(prompts, { kind, text }) {
  const isIt = (part) => bare(part).toLowerCase() === text.toLowerCase();
  const left = prompts.split("\n").flatMap((line) => {
    const parts = kind === "prompt" ? [line] : line.split(PARTS);
    const rest = parts.filter((part) => !isIt(part));
    if (rest.length === parts.length) return [line];
    return rest.length ? [bare(rest.join(""))] : [];
  });
  return left.join("\n");
}

/**
 * Return what the chips offer for a LoRA: its prompts first, then its trigger words. A prompt of one word is that word.
 *
 * @param {{prompts?: object, trigger_words?: string[]}} lora answer of `/iteris/lora`
 * @param {string} kind "subject" or "style"
 */
export function suggestions({ prompts = {}, trigger_words: words = [] }, kind) {
  const clean = (texts) => [...new Set(texts.map((text) => text.trim()))].filter(Boolean);
  const as = (kind) => (text) => ({ kind, text });
  const triggers = clean(words);
  return [
    ...clean(prompts[kind] ?? [])
      .filter((text) => !triggers.includes(text))
      .map(as("prompt")),
    ...triggers.map(as("word")),
  ];
}

/** Return one line about the file: its error, or its model and rank; where no family is known, what the file calls it. */
export function about({ error, family, base, rank }) {
  if (error) return error;
  return [family || base, rank ? `rank ${rank}` : ""].filter(Boolean).join(", ");
}

/**
 * Say what LoRAs a file is a merge of, each from the second on after a line break, or how many; empty: it does not say
 * so.
 */
export function madeOf({ merged_from: names, is_preview: isPreview }, say, isCounted = false) {
  if (!names?.length) return "";
  if (isCounted) return say(isPreview ? "count_of_preview" : "count_of", { count: names.length });
  return say(isPreview ? "preview_of" : "made_of", { names: names.map(ownName).join("\n+ ") });
}

/** Return what a file is found by beside its name: its trigger words, and the LoRAs that it is a merge of. */
export const foundBy = ({ trigger_words: words = [], merged_from: names = [] }) => [...words, ...names].join("\n");

/** Return a file's trigger words, each once: a merge has those of its LoRAs together, too. */
export function wordsOf({ trigger_words: words = [] }) {
  return [...new Set(words.flatMap((word) => word.split(",")).map((word) => word.trim()))].filter(Boolean);
}

/**
 * Return one line about prompts that the user has left empty: what the last run made of the trigger words, or what will
 * be.
 *
 * @param {string} prompts the field's text
 * @param {object|null} lora answer of `/iteris/lora`
 * @param {string[]} [made] by the last run
 * @param {(word: string, values?: object) => string} say
 */
export function filled(prompts, lora, made, say) {
  if (lines(prompts).length || !lora || lora.error) return "";
  if (made?.length) return say("made", { prompts: made.join(" · ") });
  return say(lora.trigger_words?.length ? "making" : "no_words");
}

export const TRIGGER = "{trigger}"; // what a file's trigger words take the place of

const isWordless = (lora) => !!lora && !lora.error && !lora.trigger_words?.length;

/** Return whether what a row is called waits for trigger words that its file does not name; see `needed`. */
export function isUnnamed({ called }, lora, isPreview = false) {
  return !isPreview && isWordless(lora) && called.includes(TRIGGER);
}

/**
 * Return what a row needs that only the user can write, since its file names no trigger words to make it of.
 *
 * @param {{prompts: string[], called: string}} row
 * @param {object|null} lora answer of `/iteris/lora`
 * @param {boolean} [isPreview] whether a run measures nothing, and needs neither prompts nor a name among others
 * @returns {{word: "needs"|"needs_words", part: "prompts"|"more"}|undefined} a word of the page for it, and the field
 *   that it is written into; undefined: nothing
 */
export function needed(row, lora, isPreview = false) {
  if (!isWordless(lora)) return undefined;
  if (row.prompts.some((text) => text.includes(TRIGGER))) return { word: "needs_words", part: "prompts" };
  if (!(row.prompts.length || isPreview)) return { word: "needs", part: "prompts" };
  return isUnnamed(row, lora, isPreview) ? { word: "needs_words", part: "more" } : undefined;
}

/** Return the parts of each of a file's trigger words that may tell it, as of "a sks robot". */
const phrasesOf = (lora) => wordsOf(lora).map((word) => word.split(/\s+/).filter((part) => !ANY.test(part)));

const partsOf = (lora) => phrasesOf(lora).flat();

/**
 * Return which LoRAs a prompt names: by the first part of a trigger word that no other one has, as "sks" of "a sks robot".
 * "a robot" is what the base model knows.
 */
export function namedIn(prompt, loras) {
  const parts = loras.map((lora) => partsOf(lora).map((part) => part.toLowerCase()));
  const isOwn = (part, place) => parts.every((others, other) => other === place || !others.includes(part));
  return loras.filter((lora, place) =>
    phrasesOf(lora).some((phrase) => {
      const text = phrase.find((part) => isOwn(part.toLowerCase(), place));
      return text && holds(prompt, { kind: "word", text });
    }),
  );
}

/**
 * Return which LoRAs a prompt does not name, though their files have trigger words; where others have the same words, any
 * part of them names them all.
 */
export function unnamedIn(prompt, loras) {
  const named = namedIn(prompt, loras);
  const isAlone = (lora) => namedIn(partsOf(lora).join(" "), loras).includes(lora);
  const isNamed = (lora) => (isAlone(lora) ? named.includes(lora) : !lacksWords({ prompts: [prompt] }, lora));
  return loras.filter((lora) => !isNamed(lora));
}

const MOST = 3; // words of a LoRA that are told

/**
 * Return for each file the words of its LoRAs that a prompt does not name, a text for each LoRA: of a merge of those that
 * it is made of.
 */
export function absentFrom(prompt, files) {
  const within = ({ merged_words: each }) => each?.map((words) => ({ trigger_words: words }));
  const loras = files.map((file) => (file.merged_words?.length ? within(file) : [file]));
  const unnamed = unnamedIn(prompt, loras.flat());
  return loras.map((each) =>
    each.filter((lora) => unnamed.includes(lora)).map((lora) => wordsOf(lora).slice(0, MOST).join(", ")),
  );
}

const ANY = /^(?:.{1,2}|and|for|from|photo|picture|style|the|with)$/iu; // a word that is of no file in particular

/**
 * Return whether a row has prompts that hold no part of any trigger word of its file, as after another file was chosen.
 *
 * @param {{prompts: string[]}} row
 * @param {object|null} lora answer of `/iteris/lora`
 */
export function lacksWords({ prompts }, lora) {
  const words = (lora?.trigger_words ?? []).map((word) => word.trim()).filter(Boolean);
  if (!prompts.length || !words.length) return false;
  const parts = partsOf(lora);
  const text = prompts.join("\n");
  return ![TRIGGER, ...words, ...parts].some((part) => holds(text, { kind: "word", text: part }));
}
