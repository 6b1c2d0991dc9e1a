// How far a run is, and how long it still takes. No DOM and no ComfyUI here, so that `node --test` runs it.

import { say } from "./words.js";

const FEW = 5; // seconds; less is not counted
const MORE = { share: 1.5, seconds: 10 }; // an estimate that is longer by so much is another one

/** Return the steps of a stage, such as "Sampling 12/60"; work in one step has a name only. */
export function stepsOf({ stage: { name, told_by: by }, done, total }) {
  const many = Math.floor(total / by);
  return many > 1 ? `${name} ${Math.floor(done / by)}/${many}` : name;
}

/** Return the share of all work that is done. */
export const shareOf = ({ stage: { starts, share }, done, total }) => starts + (share * done) / Math.max(1, total);

/**
 * Return when a run ends by what the server says now, and the most that is shown until it says more: what is shown waits
 * for an estimate that is a little longer, and does not go up, unless it has run out.
 *
 * @param {object|undefined} before what this returned last
 * @param {object} step `seconds_left`: of the `stage` alone, unless that is like the others; 0: nobody knows
 * @param {number} now in seconds
 * @returns {{end: number, most: number, of: number|undefined}|undefined} `of`: the number of the stage that it is of
 */
export function followed(before, { stage, seconds_left: seconds }, now) {
  if (!seconds) return undefined;
  const of = stage.is_alike ? undefined : stage.number;
  const shown = before?.of === of ? secondsLeft(before, now) : undefined;
  const waits = shown >= FEW && seconds > shown && seconds <= MORE.share * shown + MORE.seconds;
  return { end: now + seconds, most: waits ? shown : seconds, of };
}

function secondsLeft(found, now) {
  return found && Math.max(0, Math.min(found.most, found.end - now));
}

/** Return how long a run still takes in words, such as "about 40 s left"; "": nobody knows, or it takes longer. */
export function timeLeft(found, now) {
  if (!found || now > found.end + FEW) return "";
  const seconds = secondsLeft(found, now);
  if (seconds < FEW) return say("left_few");
  return say(found.of === undefined ? "left" : "left_of_stage", { time: duration(seconds) });
}

/** Return a duration in words, as precise as an estimate is. */
export function duration(seconds) {
  if (seconds < 10) return say("seconds", { count: Math.max(1, Math.round(seconds)) });
  if (seconds < 90) return say("seconds", { count: 5 * Math.round(seconds / 5) });
  if (seconds < 90 * 60)
    return say("minutes", { count: seconds < 600 ? Math.round(seconds / 30) / 2 : Math.round(seconds / 60) });
  return say("hours", { count: Math.round(seconds / 360) / 10 });
}

/** Return the seconds that a merge takes with each preset; those of one time together. */
export function expected({ rows, seconds, presets }) {
  const amounts = [...new Set(Object.values(presets).map((work) => work.rows))];
  return amounts.map((amount) => {
    const names = Object.keys(presets).filter((name) => presets[name].rows === amount);
    return { names, seconds: (seconds / rows) * amount };
  });
}
