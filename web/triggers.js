// Prompts and trigger words as text. No DOM and no ComfyUI here, so that `node --test` runs it.

import { ownName } from "./rows_text.js";
import { say } from "./words.js";

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

/**
 * Add a suggestion to the prompts: a prompt as a new line, a word to the line that is being written.
 *
 * @param {string} prompts the field's text
 * @param {{kind: "prompt"|"word", text: string}} suggestion
 * @returns {string} the same text if it is in there already
 */
export function add(prompts, suggestion) {
  if (holds(prompts, suggestion)) return prompts;
  const { kind, text } = suggestion;
  const written = prompts.replace(/[ \t]+$/, "");
  if (!written.trim()) return text;
  if (written.endsWith("\n")) return written + text;
  if (kind === "prompt") return `${written}\n${text}`;
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
export function madeOf({ merged_from: names, is_preview: isPreview }, isCounted = false) {
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

/** Return one line about prompts that the user has left empty; "": there are some, or nothing is known of the file. */
export function filled(prompts, lora) {
  if (lines(prompts).length || !lora || lora.error) return "";
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
  const parts = words.flatMap((word) => word.split(/\s+/).filter((part) => !ANY.test(part)));
  const text = prompts.join("\n");
  return ![TRIGGER, ...words, ...parts].some((part) => holds(text, { kind: "word", text: part }));
}
