// Which merge a result is of, in a few words. No DOM and no ComfyUI here, so that `node --test` runs it.

import { meaningOf } from "./meanings.js";
import { PREVIEW } from "./work.js";

const USUAL = { together: "off", size: "as is" }; // a merge's own settings
const MOST = { characters: 40, loras: 200, settings: 40, told: 3, value: 24 };

const isTexts = (values) => Object.values(values).every((value) => typeof value === "string");

/**
 * Read what a run, or a workflow, says of a merge: its preset, the strengths of its LoRAs, the settings that are not as
 * usual, name -> value, and when it was made, in seconds since 1970.
 *
 * @returns {object|undefined} undefined: nothing that can be told
 */
export function readMade(made) {
  const { preset, strengths, settings = {}, at } = made ?? {};
  if (typeof preset !== "string" || preset.length > MOST.characters || !Number.isFinite(at)) return undefined;
  if (!Array.isArray(strengths) || strengths.length > MOST.loras || !strengths.every(Number.isFinite)) return undefined;
  if (!settings || !isTexts(settings) || Object.keys(settings).length > MOST.settings) return undefined;
  return { preset, strengths, settings, at };
}

/** Return a time of the clock, with its day unless that is today. */
function clock(at) {
  const time = new Date(1000 * at);
  const isToday = time.toDateString() === new Date().toDateString();
  return time.toLocaleString([], { timeStyle: "short", ...(isToday ? {} : { dateStyle: "short" }) });
}

/**
 * Return the first settings of a merge that are not as usual, or not as in another one, in words. Of a preview and of a
 * recipe's merge only those that are told count.
 */
function settingsOf({ preset, settings }, others, say) {
  const counted = ["", PREVIEW].includes(preset) ? settings : { ...settings, ...others };
  const names = Object.keys(counted).filter((name) => settings[name] !== others[name]);
  const short = (value) => (value.length > MOST.value ? `${value.slice(0, MOST.value)}…` : value);
  const usual = (name) => {
    const meaning = meaningOf(name);
    const value = USUAL[name] ?? (meaning && say(meaning));
    return value ? `${name} ${value}` : say("usual", { name });
  };
  const told = names.map((name) => (name in settings ? `${name} ${short(settings[name])}` : usual(name)));
  return told.length > MOST.told ? [...told.slice(0, MOST.told), "…"] : told;
}

/**
 * Return which merge something is of, such as " (Balanced, at 0.8/1, size rank 16, 14:32)"; beside another merge, only
 * what differs. "": nobody knows.
 *
 * @param {string} [file] that it was saved in
 */
export function ofMerge(made, say, beside = undefined, file = "") {
  const known = readMade(made);
  if (!known) return "";
  const { preset, strengths, at } = known;
  const other = readMade(beside);
  const alike = [...new Set(strengths)];
  const isTold = other ? strengths.join() !== other.strengths.join() : alike.some((each) => each !== 1);
  const strength = isTold && (alike.length > 1 ? strengths : alike).join("/");
  const what = [
    preset !== other?.preset && preset,
    strength && say("at", { strength }),
    ...settingsOf(known, other?.settings ?? {}, say),
    clock(at),
    file,
  ];
  return say("of_merge", { what: what.filter(Boolean).join(", ") });
}

/**
 * Return what other merges have drawn by the same prompts and from the same seed, each merge once, in the order of the
 * outputs.
 */
export function drawnBefore(outputs, { iteris_made: [now] = [] }) {
  const found = new Map();
  for (const { iteris_made: [made] = [], iteris_tiles: tiles = [] } of now?.drawn ? outputs : [])
    if (made?.drawn === now.drawn && made.at !== now.at && !found.has(made.at))
      found.set(made.at, { made, pictures: tiles.map(({ pictures }) => pictures.at(-1)) });
  return [...found.values()];
}
