// How long a merge takes by each preset, and a comparison, told from one that was timed. No DOM and no ComfyUI here, so
// that `node --test` runs it.

export const DRAWN = "iteris_drawn"; // in a Compare's properties, so that a saved workflow keeps it
const MOST = { presets: 10, characters: 40 };

const isAmount = (value) => Number.isFinite(value) && value > 0;
const isWork = (work) => Array.isArray(work) && work.length === 3 && isAmount(work[0]) && work.every(Number.isFinite);

/**
 * Read what a run, or a workflow, says about the cost of a merge.
 *
 * @param {any} cost `rows` that went through the model in so many `seconds`, and what each of the `presets` takes: its
 *   rows, sampling runs of a LoRA and steps of a polish
 * @param {number} [resolution] see `resolutionOf`
 * @returns {object|undefined} undefined: nothing that can be told
 */
export function readCost(cost, resolution = cost?.resolution) {
  const { rows, seconds, presets } = cost ?? {};
  if (!isAmount(rows) || !isAmount(seconds) || typeof presets !== "object" || presets === null) return undefined;
  const found = Object.entries(presets).filter(([name, work]) => name.length <= MOST.characters && isWork(work));
  const kept = { rows, seconds, ...sideOf(resolution), presets: Object.fromEntries(found.slice(0, MOST.presets)) };
  return found.length ? kept : undefined;
}

const sideOf = (resolution) => (Number.isFinite(resolution) ? { resolution } : {});

/** Return the resolution that Merge settings said of the merge that an output is of; 0: none. */
export const resolutionOf = (output) => Number(output?.iteris_made?.[0]?.settings?.resolution ?? 0);

/** Return the seconds that a merge takes by each preset; those of one time, as Merge settings makes them, together. */
export function expected({ rows, seconds, presets }) {
  return [...new Set(Object.values(presets).map(([needed]) => needed))].map((needed) => {
    const names = Object.keys(presets).filter((name) => presets[name][0] === needed);
    const [, runs, steps] = presets[names[0]];
    return { names, seconds: (seconds / rows) * needed, runs, steps };
  });
}

const mayBe = (one, other) => one === other || one === undefined || other === undefined;

/**
 * Return whether the times of presets are of so many sampling `runs` of a LoRA, and of the resolution, as Merge settings
 * says now; 0: as many as each preset has, and what suits the model. Where nobody knows, they are.
 */
export function areOf({ presets, resolution: side }, runs, resolution) {
  if (!mayBe(side, resolution)) return false;
  const told = Object.values(presets).map(([, each]) => each);
  if (runs === undefined) return true;
  return runs ? told.every((each) => each === runs) : new Set(told).size > 1;
}

/**
 * Read what a run, or a workflow, says about the pictures of a comparison.
 *
 * @param {any} drawn so many `pictures` of so many `steps` were drawn in so many `seconds`, of the `size` [width,
 *   height] that was asked for; LoRAs have `own` pictures without a prompt, and a `line` of the prompt has so many
 * @param {number} [resolution] see `resolutionOf`
 * @returns {object|undefined} undefined: nothing that can be told
 */
export function readDrawn(drawn, resolution = drawn?.resolution) {
  const { pictures, seconds, steps, size, own, line } = drawn ?? {};
  if (![pictures, seconds, steps, own, line].every(isAmount) || !Array.isArray(size)) return undefined;
  return { pictures, seconds, steps, size: size.slice(0, 2).map(Number), own, line, ...sideOf(resolution) };
}

/**
 * Return how many pictures a comparison draws, and in how many `seconds`, if it draws them as large as the one that was
 * timed; where it has no size of its own, Merge settings says the `resolution`.
 */
export function toDraw(drawn, prompt, steps, width, height, resolution = undefined) {
  const lines = String(prompt ?? "")
    .split("\n")
    .filter((text) => text.trim()).length;
  const count = lines ? lines * drawn.line : drawn.own;
  const isSized = (width && height) || mayBe(drawn.resolution, resolution);
  const isSame = isSized && drawn.size[0] === width && drawn.size[1] === height;
  return { count, seconds: isSame ? (drawn.seconds / drawn.pictures / drawn.steps) * count * steps : undefined };
}

/**
 * Return a duration in words, as precise as an estimate is.
 *
 * @param {number} seconds
 * @param {(word: string, values?: object) => string} say
 */
export function duration(seconds, say) {
  if (seconds < 10) return say("seconds", { count: Math.max(1, Math.round(seconds)) });
  if (seconds < 90) return say("seconds", { count: 5 * Math.round(seconds / 5) });
  if (seconds < 90 * 60)
    return say("minutes", { count: seconds < 600 ? Math.round(seconds / 30) / 2 : Math.round(seconds / 60) });
  return say("hours", { count: Math.round(seconds / 360) / 10 });
}
