// Which merge a result is of, in a few words. No DOM and no ComfyUI here, so that `node --test` runs it.

import { meaningOf } from "./meanings.js";
import { PREVIEW } from "./prompt_graph.js";

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

/** Return what stands for a setting that a merge does not have, as it is then. */
function usual(name, say) {
  const meaning = meaningOf(name);
  const value = USUAL[name] ?? (meaning && say(meaning));
  return value ? `${name} ${value}` : say("usual", { name });
}

const short = (value) => (value.length > MOST.value ? `${value.slice(0, MOST.value)}…` : value);
const cutTo = (told) => (told.length > MOST.told ? [...told.slice(0, MOST.told), "…"] : told);
const inWords = (strengths) => (new Set(strengths).size > 1 ? strengths : strengths.slice(0, 1)).join("/");
const toldOf = ({ settings }, names, say) =>
  names.map((name) => (name in settings ? `${name} ${short(settings[name])}` : usual(name, say)));

/** Return which merge something is of, such as " (Balanced, at 0.8/1, size rank 16, 14:32)"; "": nobody knows. */
export function ofMerge(made, say) {
  const known = readMade(made);
  if (!known) return "";
  const { preset, strengths, settings, at } = known;
  const isTold = strengths.some((each) => each !== 1);
  const strength = isTold && say("at", { strength: inWords(strengths) });
  const what = [preset, strength, ...cutTo(toldOf(known, Object.keys(settings), say)), clock(at)];
  return say("of_merge", { what: what.filter(Boolean).join(", ") });
}

/**
 * Return a name for each of some merges: in the same order what is not the same in all of them, such as "Fast, together
 * on" and "Balanced, together off"; the time where that does not tell them apart. Of a preview and of a recipe's merge
 * only the settings that are told count.
 */
export function namesOfMerges(merges, say) {
  const known = merges.map(readMade);
  if (!known.every(Boolean)) return merges.map(() => say("merged"));
  const differs = (of) => new Set(known.map(of)).size > 1;
  const isCounted = ({ preset, settings }, name) => !["", PREVIEW].includes(preset) || name in settings;
  const every = [...new Set(known.flatMap(({ settings }) => Object.keys(settings)))];
  const names = every.filter((name) => differs(({ settings }) => settings[name]));
  const ofPreset = differs(({ preset }) => preset);
  const ofStrengths = differs(({ strengths }) => strengths.join());
  const told = known.map((each) => {
    const settings = toldOf(
      each,
      names.filter((name) => isCounted(each, name)),
      say,
    );
    const strength = ofStrengths && say("strengths", { strengths: inWords(each.strengths) });
    return [ofPreset && each.preset, ...cutTo(settings), strength].filter(Boolean).join(", ");
  });
  const isEnough = told.every(Boolean) && new Set(told).size === told.length;
  return isEnough ? told : told.map((each, i) => [each, clock(known[i].at)].filter(Boolean).join(", "));
}

/**
 * Return what other merges have drawn from the same seed, each merge once, in the order of the outputs: its picture in the
 * place of each row, undefined where it has drawn none by that prompt.
 */
export function drawnBefore(outputs, { iteris_made: [now] = [], iteris_tiles: rows = [] }) {
  const found = new Map();
  for (const { iteris_made: [made] = [], iteris_tiles: tiles = [] } of now?.drawn ? outputs : []) {
    if (made?.drawn !== now.drawn || made.at === now.at) continue;
    const drawn = ({ prompt }) => tiles.find((each) => each.prompt === prompt)?.pictures.at(-1);
    const newer = found.get(made.at)?.pictures ?? []; // by other prompts, too
    const pictures = rows.map((row, at) => newer[at] ?? drawn(row));
    if (pictures.some(Boolean)) found.set(made.at, { made, pictures });
  }
  return [...found.values()];
}
