// How far a run is, and how long it still takes, which counts down between two reports of the server. No DOM and no
// ComfyUI here, so that `node --test` runs it.

import { duration } from "./cost.js";

const FEW = 5; // seconds; less is not counted
const MORE = { share: 1.5, seconds: 10 }; // an estimate that is longer by so much is another one
const AFTER_SAMPLING = ["Diffusion model", "Polish"]; // stages, as the server calls them

/** Return what is told, as by the server, of a node whose run has not begun. */
export const waiting = (name) => ({
  stage: { name, number: 1, count: 1, told_by: 1, starts: 0, share: 0, is_alike: true },
  done: 0,
  total: 1,
  seconds_left: 0,
  isWaiting: true,
});

/** Return the steps of a stage, such as "Sampling 12/60"; work in one step has a name only. */
export function stepsOf({ stage: { name, told_by: by }, done, total }) {
  const many = Math.floor(total / by);
  return many > 1 ? `${name} ${Math.floor(done / by)}/${many}` : name;
}

/** Return whether a merge has its sampling runs by now, which the server keeps for the next one. */
export const hasSampled = ({ stage: { name }, done, total }) =>
  name === "Sampling" ? done === total : AFTER_SAMPLING.includes(name);

/** Return the share of all work that is done. */
export const shareOf = ({ stage: { starts, share }, done, total }) => starts + (share * done) / Math.max(1, total);

/**
 * Return when a run ends by what the server tells now, and the most that is told until the server tells more: what is
 * told waits for an estimate that is a little longer, and does not go up, unless it has run out.
 *
 * @param {object|undefined} before what this returned last
 * @param {object} told `seconds_left`: of the `stage` alone, unless that is like the others; 0: nobody knows
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
export function timeLeft(found, now, say) {
  if (!found || now > found.end + FEW) return "";
  const seconds = secondsLeft(found, now);
  if (seconds < FEW) return say("left_few");
  return say(found.of === undefined ? "left" : "left_of_stage", { time: duration(seconds, say) });
}
