// The report that a saved workflow keeps, which anybody may have written. No DOM and no ComfyUI here, so that `node
// --test` runs it.

import { readMade } from "./merge_names.js";
import { ADVICE, CHANCES, LEVELS } from "./report.js";

// More than any merge has: SDXL has 25 blocks and 800 layers, and a merge takes 100 LoRAs.
const MOST = {
  tasks: 1000,
  lines: 500,
  blocks: 400,
  bars: 10_000,
  layers: 5000,
  figures: 1_000_000,
  texts: 200,
  characters: 2000,
};

const isObject = (value) => typeof value === "object" && value !== null;
const isText = (value) => typeof value === "string" && value.length <= MOST.characters;
const isNumber = (value) => Number.isFinite(value);
const isNumberOrNone = (value) => value === null || isNumber(value);

const isUnseen = (line) => isObject(line) && isText(line.name) && [line.error, line.strength].every(isNumberOrNone);

const isAdvice = (advice) =>
  isObject(advice) &&
  ADVICE.includes(advice.kind) &&
  Array.isArray(advice.names) &&
  advice.names.length <= 1 &&
  advice.names.every(isText);
const isAdviceOrNone = (advice) => advice === null || isAdvice(advice);
const isRangeOrNone = (range) =>
  range === null || (Array.isArray(range) && range.length === 2 && range.every(isNumber));
const areLevels = (levels) =>
  Array.isArray(levels) &&
  levels.length > 0 &&
  levels.length <= LEVELS.length &&
  levels.every((level) => LEVELS.includes(level));
const isLevelled = ({ between, level, levels }) =>
  isRangeOrNone(between) && LEVELS.includes(level) && areLevels(levels);
const isKept = (lora) =>
  isObject(lora) &&
  isText(lora.name) &&
  isNumber(lora.kept) &&
  isLevelled(lora) &&
  [lora.unread, lora.strength].every(isNumber) &&
  typeof lora.isTold === "boolean" &&
  isAdviceOrNone(lora.advice);

const areNames = (names) => Array.isArray(names) && names.length <= MOST.lines && names.every(isText);
const isUnjudgedOrNone = (found) =>
  found === null || (isObject(found) && areNames(found.subjects) && areNames(found.styles));

/** Return the verdict that can be drawn; null: there is none, undefined: it has another shape. */
function verdictOf(verdict) {
  if (verdict === null) return null; // while a merge runs
  if (!isObject(verdict)) return undefined;
  const { loras, together, togetherAdvice, unjudged, against, advice, bounds } = verdict;
  if (!Array.isArray(loras) || !loras.every(isKept)) return undefined;
  if (![advice, togetherAdvice].every(isAdviceOrNone)) return undefined;
  if (together !== null && !CHANCES.includes(together)) return undefined;
  if (!isUnjudgedOrNone(unjudged)) return undefined;
  const { leak, leak_stacked, base } = isObject(against) ? against : {};
  if (![leak, leak_stacked, base].every(isNumberOrNone)) return undefined;
  if (!Array.isArray(bounds) || bounds.length !== 2 || !bounds.every(isNumber)) return undefined;
  return {
    loras: loras.slice(0, MOST.lines),
    together,
    togetherAdvice,
    unjudged,
    against: { leak, leak_stacked, base },
    advice,
    bounds,
  };
}

/**
 * Read what a run, or a workflow, says about the file of a merge.
 *
 * @returns {object|undefined} undefined: nothing that can be drawn
 */
export function readFile(file) {
  if (!isObject(file) || !isText(file.name) || !isNumber(file.mb)) return undefined;
  const { name, mb, ranks, words, prompt, listed_as: listed, hash, report } = file;
  if (!Array.isArray(ranks) || ranks.length !== 2 || !ranks.every(isNumber)) return undefined;
  if (!Array.isArray(words) || !words.every(isText)) return undefined;
  const place = isText(listed) && isText(hash) ? { listed_as: listed, hash } : {}; // of a file that is in a list
  const whose = isText(report) ? { report } : {}; // the digest of the merge's report
  const drawn = prompt && isText(prompt) ? { prompt } : {}; // what to draw with a merge of several subjects
  return { name, mb, ranks, words: words.slice(0, MOST.texts), ...drawn, ...place, ...whose };
}

function isLine(line, tasks) {
  const isTask = isObject(line) && Number.isInteger(line.task) && line.task >= 0 && line.task < tasks;
  return (
    isTask && typeof line.wears === "boolean" && [line.median, line.worst].every(isNumberOrNone) && isText(line.at)
  );
}

function isLayer(layer, tasks) {
  if (!Array.isArray(layer) || layer.length !== 4) return false;
  const [name, rank, residuals, wears] = layer;
  if (!isText(name) || !isNumber(rank) || !isText(wears) || !Array.isArray(residuals)) return false;
  return residuals.length === tasks && wears.length === tasks && residuals.every(isNumberOrNone);
}

/** Return the blocks that can be drawn, or undefined if one has another shape. */
function blocksOf(blocks, tasks) {
  const kept = [];
  let left = Math.min(MOST.layers, Math.ceil(MOST.figures / Math.max(1, tasks)));
  for (const block of blocks.slice(0, Math.min(MOST.blocks, Math.ceil(MOST.bars / Math.max(1, tasks))))) {
    if (!isObject(block) || !isText(block.name) || !Array.isArray(block.layers)) return undefined;
    const layers = block.layers.slice(0, left);
    if (!layers.every((layer) => isLayer(layer, tasks))) return undefined;
    left -= layers.length;
    kept.push({ name: block.name, layers });
    if (!left) break;
  }
  return kept;
}

const layersIn = (blocks) => blocks.reduce((count, { layers }) => count + (layers?.length ?? 0), 0);

/**
 * Read a report that a workflow has kept.
 *
 * @param {any} saved `figures()` of a report, or whatever is in its place
 * @returns {object|undefined} the same, with `cut` if it had more than is drawn; undefined: it has another shape
 */
export function readSaved(saved) {
  if (!isObject(saved)) return undefined;
  const { tasks, unseen, overall, blocks, warnings, prompts, notes } = saved;
  if (![tasks, unseen, overall, blocks, warnings, prompts, notes].every(Array.isArray)) return undefined;
  if (tasks.length > MOST.tasks || !tasks.every(isText)) return undefined;
  const count = tasks.length;
  const file = readFile(saved.file);
  const made = readMade(saved.made);
  const ofBlocks = blocksOf(blocks, count);
  if (!ofBlocks) return undefined;
  const kept = {
    version: 1,
    ...(isText(saved.digest) ? { digest: saved.digest } : {}),
    ...(made ? { made } : {}),
    ...(isNumber(saved.side) ? { side: saved.side } : {}),
    verdict: verdictOf(saved.verdict),
    tasks,
    unseen: unseen.slice(0, MOST.lines),
    overall: overall.slice(0, MOST.lines),
    blocks: ofBlocks,
    warnings: warnings.slice(0, MOST.texts),
    prompts: prompts.slice(0, MOST.texts),
    notes: notes.slice(0, MOST.texts),
  };
  if (kept.verdict === undefined || !kept.unseen.every(isUnseen) || !kept.overall.every((line) => isLine(line, count)))
    return undefined;
  const texts = [...kept.warnings, ...kept.prompts, ...kept.notes];
  if (!texts.every((text) => typeof text === "string")) return undefined;
  const short = (text) => (text.length > MOST.characters ? `${text.slice(0, MOST.characters)} …` : text);
  const lists = ["unseen", "overall", "warnings", "prompts", "notes"];
  const isCut =
    saved.cut === true ||
    kept.blocks.length < blocks.length ||
    layersIn(kept.blocks) < layersIn(blocks.slice(0, kept.blocks.length)) ||
    kept.verdict?.loras.length < saved.verdict?.loras.length ||
    lists.some((list) => kept[list].length < (saved[list]?.length ?? 0));
  return {
    ...kept,
    ...(file ? { file } : {}),
    warnings: kept.warnings.map(short),
    prompts: kept.prompts.map(short),
    notes: kept.notes.map(short),
    ...(isCut ? { cut: true } : {}),
  };
}
