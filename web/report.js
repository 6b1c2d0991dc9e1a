// A merge report as what the panel draws. No DOM and no ComfyUI here, so that `node --test` runs it.

const DIGITS = 4;
// a range that says nothing, as in iteris_core/report/verdict.py
const SAYS_NOTHING = 0.8;
export const LEVELS = ["good", "weak", "lost"];
// what there are words for, each of them "to_..."
export const ADVICE = [
  "measure",
  "check",
  "method",
  "rank",
  "fewer",
  "priority",
  "polish",
  "alone",
  "together",
  "compare",
];
const SEEN = ["idle", "prompts"]; // kinds of notes that are not behind details
export const CHANCES = ["likely", "uncertain", "unlikely"];
const TOPS = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10];

// Kinds of blocks, as the model's modules are called -> as block weights call them: text encoders, UNet, and
// transformers, whose blocks have two streams, one, or are all alike.
const BLOCKS = [
  [/^clip_g\.(?:.+\.)?encoder\.layers\.(\d+)\.(.+)$/, "TG"],
  [/(?:^|\.)encoder\.layers\.(\d+)\.(.+)$/, "TE"],
  [/^diffusion_model\.input_blocks\.(\d+)\.(.+)$/, "IN"],
  [/^diffusion_model\.middle_block()\.(.+)$/, "MID"],
  [/^diffusion_model\.output_blocks\.(\d+)\.(.+)$/, "OUT"],
  [/^diffusion_model\.double_(?:blocks|layers)\.(\d+)\.(.+)$/, "D"],
  [/^diffusion_model\.single_(?:blocks|layers)\.(\d+)\.(.+)$/, "S"],
  [/^diffusion_model\.noise_refiner\.(\d+)\.(.+)$/, "NR"],
  [/^diffusion_model\.context_refiner\.(\d+)\.(.+)$/, "CR"],
  [/^diffusion_model\.low_noise\.blocks\.(\d+)\.(.+)$/, "L"],
  [/^diffusion_model\.(?:joint_blocks|transformer_blocks|blocks|layers)\.(\d+)\.(.+)$/, "B"],
];

/**
 * Say where a layer is, in the words of block weights: "TE03", "IN04", "MID", "OUT07", "D05", and what it is there.
 *
 * @param {string} path of the module, such as "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
 * @returns {{block: string, layer: string}}
 */
export function place(path) {
  for (const [pattern, kind] of BLOCKS) {
    const found = path.match(pattern);
    if (!found) continue;
    const [, number, inner] = found;
    const layer = inner.replace(/^1\.(?:transformer_blocks\.0\.)?(?=attn|ff|proj_)/, "");
    return { block: number ? kind + number.padStart(2, "0") : kind, layer };
  }
  return { block: "other", layer: path.replace(/^diffusion_model\./, "") };
}

const PATH = /'((?:diffusion_model|clip_[a-z]+|[a-z0-9_]+\.encoder)\.[\w.]+)'/g;

/**
 * Return a note as a sentence: it begins with a capital letter, unless with a LoRA's name, ends in a full stop, and says
 * where a layer is as the bars do.
 */
export function noteLine(text, tasks) {
  const short = text.replace(PATH, (_, path) => {
    const { block, layer } = place(path);
    return block === "other" ? layer : `${block} ${layer}`;
  });
  const ended = short.replace(/[^.!?…]$/u, "$&.");
  return tasks.some((task) => ended.startsWith(task))
    ? ended
    : ended.replace(/^\p{Ll}/u, (first) => first.toUpperCase());
}

/** Return the median of numbers; undefined of none. */
export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const last = sorted.length - 1;
  return last < 0 ? undefined : (sorted[Math.floor(last / 2)] + sorted[Math.ceil(last / 2)]) / 2;
}

// JSON has null for a figure that is not finite: it is worse than any other
const weighed = (value) => value ?? Infinity;
const rounded = (value) => (Number.isFinite(value) ? Number(value.toPrecision(DIGITS)) : null);

/**
 * Return the figures that the panel needs, small enough to be kept in a saved workflow.
 *
 * @param {object} report `MergeReport.to_dict()`
 * @returns {{version: 1, verdict: object|null, tasks: string[], unseen: object[], overall: object[], blocks: object[],
 *   warnings: string[], prompts: string[], notes: string[]}}
 *   `digest`: tells it from other reports; undefined while a merge runs.
 *   `made`: see `readMade`; undefined while a merge runs.
 *   `side`: of the pictures that were measured, in pixels; undefined while a merge runs, and where none was measured.
 *   `verdict`: see `MergeReport.verdict`; null while a merge runs.
 *   `unseen`: each task at the end of the network, on samples that the solve did not see; none if not measured.
 *   `overall`: median and worst residual of each task where it wears something, and its leak where it wears nothing.
 *   `notes`: those on the method come last.
 *   `prompts`: what does not count: LoRAs of strength 0; settings in a preview; of prompts a tag,
 *   or a learned token that is not there.
 *   `blocks`: in the network's order; each layer is [name, rank, residual per task, "1" or "0" per task: wears
 * something].
 */
export function figures(report) {
  const tasks = [...new Set(report.layers.flatMap((layer) => layer.tasks.map((entry) => entry.task)))];
  const blocks = new Map();
  for (const { path, rank, tasks: entries } of report.layers) {
    const { block, layer } = place(path);
    const found = tasks.map((task) => entries.find((entry) => entry.task === task));
    const residuals = found.map((entry) => (entry ? rounded(entry.residual) : null));
    const wears = found.map((entry) => (entry?.wears ? "1" : "0")).join("");
    if (!blocks.has(block)) blocks.set(block, { name: block, layers: [] });
    blocks.get(block).layers.push([layer, rank, residuals, wears]);
  }
  const notes = report.notes ?? [];
  const side = report.is_measured && report.settings?.calibration?.resolution;
  const texts = (isAsked) => notes.filter(isAsked).map(({ text }) => text);
  return {
    version: 1,
    ...(report.digest ? { digest: report.digest } : {}),
    ...(report.made ? { made: report.made } : {}),
    ...(side ? { side } : {}),
    verdict: verdict(report),
    tasks,
    unseen: unseen(report),
    overall: overall(report, tasks),
    blocks: [...blocks.values()],
    warnings: warnings(report),
    prompts: texts(({ kind }) => SEEN.includes(kind)),
    notes: [false, true].flatMap((isOfMethod) =>
      texts(
        ({ kind, text }) =>
          (kind === "method") === isOfMethod && !SEEN.includes(kind) && !report.warnings?.includes(text),
      ),
    ),
  };
}

function verdict({ verdict: found, settings }) {
  if (!found) return null;
  const strengths = new Map(settings?.loras?.map(({ name, strength_model: strength }) => [name, strength]));
  const against = Object.entries(found.against).map(([name, value]) => [name, rounded(value)]);
  const loras = found.loras.map(({ lora, kept, between, unread, is_told: isTold, ...words }) => {
    const { level, levels, advice } = words;
    return {
      name: lora,
      strength: rounded(strengths.get(lora) ?? 1),
      kept: rounded(kept),
      between: between?.map(rounded) ?? null,
      level,
      levels,
      advice,
      unread,
      isTold,
    };
  });
  return {
    loras,
    together: found.together,
    togetherAdvice: found.together_advice,
    unjudged: found.unjudged,
    against: Object.fromEntries(against),
    advice: found.advice,
    bounds: [found.lost_below, found.good_from],
  };
}

function unseen({ fidelity = [] }) {
  return fidelity.map(({ task, output_error: error, strength }) => ({
    name: task,
    error: rounded(error),
    strength: rounded(strength),
  }));
}

function overall(report, tasks) {
  const lines = [];
  for (const wears of [true, false]) {
    tasks.forEach((task, index) => {
      const found = report.layers.flatMap(({ path, tasks: entries }) =>
        entries
          .filter((entry) => entry.task === task && entry.wears === wears)
          .map(({ residual }) => ({ residual: weighed(residual), path })),
      );
      if (!found.length) return;
      const worst = found.reduce((a, b) => (b.residual > a.residual ? b : a));
      const { block, layer } = place(worst.path);
      lines.push({
        task: index,
        wears,
        median: rounded(median(found.map(({ residual }) => residual))),
        worst: rounded(worst.residual),
        at: `${block} ${layer}`,
      });
    });
  }
  return lines;
}

function warnings({ warnings: failed = [], unmatched = {}, unread = {} }) {
  // where much of a file was not read, the report has a warning of its own
  const found = Object.entries(unmatched).filter(([name, keys]) => keys.length && !(name in unread));
  return [
    ...failed,
    ...found.map(
      ([name, keys]) => `${name}: ${keys.length} keys belong to no module of this model, such as ${keys[0]}`,
    ),
  ];
}

/** Return whether what was kept of a LoRA may be nearly anything. */
export function isUncertain({ between }) {
  return between !== null && between[1] - between[0] >= SAYS_NOTHING;
}

/** Return whether the word for what was kept of a LoRA tells something. */
export const isJudged = (lora) => lora.isTold && !isUncertain(lora);

const MOST_NAMED = 2; // LoRAs, in a headline

/**
 * Return what a verdict comes to: the level that it looks like, a word of the page, and what that has in it.
 *
 * @param {object[]} loras of a verdict, one at least
 * @returns {{level: string, word: string, count?: number, all?: number, loras?: object[]}}
 */
export function headline(loras) {
  const told = loras.filter(isJudged);
  const bad = told.filter(({ level }) => level !== "good");
  const all = loras.length;
  if (bad.length) {
    const level = bad.some(({ level }) => level === "lost") ? "lost" : "weak";
    if (bad.length > MOST_NAMED) return { level, word: "head_several", count: bad.length, all };
    return { level, word: "head_look", loras: bad };
  }
  if (told.length < all) return { level: "open", word: "head_open" };
  const who = all > 1 ? "each" : "one";
  const isLikely = told.some(({ levels }) => levels.length > 1);
  return { level: "good", word: `head_${isLikely ? "likely" : "good"}_${who}` };
}

/** Return the tasks that wear something anywhere: the LoRAs, without the base model that is only to be left alone. */
export function loras({ overall }) {
  return overall.filter(({ wears }) => wears).map(({ task }) => task);
}

/**
 * Return the bars: per block one for each LoRA that wears something in it.
 *
 * @returns {{name: string, bars: {task: number, median: number, worst: number}[]}[]}
 */
export function bars(model) {
  return model.blocks.map(({ name, layers }) => ({
    name,
    bars: loras(model).flatMap((task) => {
      const residuals = layers.filter(([, , , wears]) => wears[task] === "1").map(([, , each]) => each[task]);
      const found = residuals.filter((value) => value !== null); // the others have no bar
      return found.length ? [{ task, median: median(found), worst: Math.max(...found) }] : [];
    }),
  }));
}

/** Return the top of the scale: the lowest round number above every bar and whisker. */
export function scaleTop(columns) {
  const highest = Math.max(0, ...columns.flatMap((column) => column.bars.map(({ worst }) => worst)));
  return TOPS.find((top) => top >= highest) ?? Math.ceil(highest);
}

/**
 * Return a block's layers, the one that suffers most first; `suffers` is the LoRA with the largest residual there.
 *
 * @returns {{name: string, rank: number, residuals: (number|null)[], suffers: number, worst: number}[]}
 */
export function layersOf(model, block) {
  const found = model.blocks.find(({ name }) => name === block)?.layers ?? [];
  const rows = found.flatMap(([name, rank, residuals, wears]) => {
    const wearing = loras(model).filter((task) => wears[task] === "1");
    if (!wearing.length) return [];
    const suffers = wearing.reduce((a, b) => (weighed(residuals[b]) > weighed(residuals[a]) ? b : a));
    return [
      {
        name,
        rank,
        residuals: residuals.map((value, task) => (wears[task] === "1" ? value : null)),
        suffers,
        worst: residuals[suffers],
      },
    ];
  });
  return rows.sort((a, b) => weighed(b.worst) - weighed(a.worst));
}
