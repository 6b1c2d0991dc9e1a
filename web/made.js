// Which merge a result is of, in a few words. No DOM and no ComfyUI here, so that `node --test` runs it.

const MOST = { characters: 40, loras: 200 };

/**
 * Read what a run, or a workflow, says of a merge: its preset, the strengths of its LoRAs, and when it was made, in
 * seconds since 1970.
 *
 * @returns {object|undefined} undefined: nothing that can be told
 */
export function readMade(made) {
  const { preset, strengths, at } = made ?? {};
  if (typeof preset !== "string" || preset.length > MOST.characters || !Number.isFinite(at)) return undefined;
  if (!Array.isArray(strengths) || strengths.length > MOST.loras || !strengths.every(Number.isFinite)) return undefined;
  return { preset, strengths, at };
}

/** Return a time of the clock, with its day unless that is today. */
function clock(at) {
  const time = new Date(1000 * at);
  const isToday = time.toDateString() === new Date().toDateString();
  return time.toLocaleString([], { timeStyle: "short", ...(isToday ? {} : { dateStyle: "short" }) });
}

/** Return which merge something is of, such as " (Balanced, at 0.8/1, 14:32)"; "": nobody knows. */
export function ofMerge(made, say) {
  const known = readMade(made);
  if (!known) return "";
  const { preset, strengths, at } = known;
  const alike = [...new Set(strengths)];
  const strength = alike.some((each) => each !== 1) && (alike.length > 1 ? strengths : alike).join("/");
  const what = [preset, strength && say("at", { strength }), clock(at)].filter(Boolean).join(", ");
  return say("of_merge", { what });
}

/**
 * Return what another merge has drawn, by the same prompts and from the same seed, of a comparison that was shown before
 * another one; undefined: there is nothing.
 */
export function drawnBefore(shown, output) {
  const [made, now] = [shown, output].map((each) => each?.iteris_made?.[0]);
  if (!made || made.drawn !== now.drawn) return undefined;
  if (made.at === now.at) return shown.iteris_before;
  return { made, pictures: shown.iteris_tiles.map(({ pictures }) => pictures.at(-1)) };
}
