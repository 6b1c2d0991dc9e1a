// What the buttons of Merge LoRAs and Load LoRAs do: a loader becomes a merge, a merge is saved, seen in pictures, and
// becomes a loader of its file.

import { app } from "../../scripts/app.js";
import { addCompare, addSave, addSettings, comparedBy, freeName, isVaried, turnBack, turnInto } from "./chain.js";
import { asOneChange, nodesOf, saidBy, set } from "./graph.js";
import { originOf, takers } from "./links.js";
import { aboutLora, aboutModelOf, forget, isGone, isSubject, loraNames, wantsWords } from "./loras.js";
import { button, tell } from "./parts.js";
import { bringIntoSight, showCompare } from "./places.js";
import { reached, textAfter } from "./prompt_field.js";
import { fileOf, nameOf, newRow, ownName, readRows } from "./rows_text.js";
import { isAwaited } from "./results.js";
import { runAlone } from "./current_prompt.js";
import { absentFrom, lines } from "./triggers.js";
import { asOneStep } from "./undo.js";

const MEASURED = ["resolution", "cfg"];
const KEPT = ["ITERIS_MERGED", "LORA_MODEL"];

const create = (type) => LiteGraph.createNode(type);

/** Return the rows of a text that are switched on. */
const rowsIn = (text) => readRows(text).filter(({ row, isOff }) => row && !isOff);

/** Return how many LoRAs a loader has to merge, in rows that are switched on; through a link may come any number. */
const lorasOf = (node) =>
  node.inputs.some(({ name, link }) => ["loras", "more_loras", "lora_stack"].includes(name) && link != null)
    ? Infinity
    : rowsIn(saidBy(node, "loras") ?? "").length;

/** Return what is known of a node's model, and of the files in the rows that are switched on; see `turnInto`. */
export async function knownOf(node, text = saidBy(node, "loras") ?? "") {
  const [model, names] = await Promise.all([aboutModelOf(node), loraNames()]);
  const rows = new Map(rowsIn(text).map(({ row }) => [fileOf(row.name, names ?? []), row]));
  rows.delete(undefined);
  const found = await Promise.all([...rows].map(async ([file, row]) => ({ row, lora: await aboutLora(file) })));
  const rowsOf = (holds) => found.filter(({ row, lora }) => lora && holds(row, lora));
  const worded = rowsOf((row, lora) => wantsWords(row, lora, true));
  return { model, worded, loras: worded.map(({ lora }) => lora), subjects: rowsOf(isSubject).map(({ lora }) => lora) };
}

/** Return whether there are too few LoRAs to merge, which is said. */
export function areTooFew(count, say) {
  if (count < 2) tell(say(count ? "one_to_merge" : "nothing_to_merge"), say("nothing_to_merge_rest"));
  return count < 2;
}

/**
 * Put a Merge LoRAs with the same rows and links in the place of a loader, say what is not as it may be expected, and
 * return it.
 */
export function mergeNow(node, known, say) {
  const hadVaried = isVaried(node);
  const made = turnInto(node, create, app.canvas, say("see_and_save"), known);
  if (made[0].graph !== app.canvas.graph) tell(say("merged_inside"), say("merged_inside_rest"));
  else if (!made.some(isCompare)) tell(say("no_compare"), say("no_compare_rest"));
  else if (hadVaried) tell(say("prompt_varied"), say("prompt_varied_rest"));
  sayMeasured(made[0], say);
  sayAbsent(made[0], known, say);
  return made[0];
}

/** Say what Merge settings has from the sampler, where it came with a merge. */
function sayMeasured(merge, say) {
  const settings = originOf(merge, "settings")?.outputNode;
  const taken = MEASURED.filter((name) => saidBy(settings, name)).map((name) => `${name} ${saidBy(settings, name)}`);
  if (taken.length) tell(say("measured_as"), say("measured_as_rest", { values: taken.join(", ") }));
}

/** Say of which LoRAs the prompt has no trigger words that a node's MODEL is drawn with. */
function sayAbsent(node, { worded, loras }, say) {
  const prompt = textAfter(node);
  const absent = absentFrom(prompt ?? "", loras);
  const told = worded.flatMap(({ row }, at) => absent[at].map((words) => `${words} (${ownName(row.name)})`));
  if (prompt?.trim() && told.length) tell(say("prompt_lacks"), say("prompt_lacks_rest", { words: told.join("; ") }));
}

/** Return the button that puts a Merge LoRAs with the same rows and links in the place of a loader. */
export function mergeButton(node, say) {
  return button("iteris-merge-these", say("merge_these"), say("merge_these_title"), async (event) => {
    event.stopPropagation(); // the frontend selects whose button it was, and cuts out what lies under it
    if (areTooFew(lorasOf(node), say)) return;
    const known = await knownOf(node);
    if (!node.graph) return; // or it was pressed twice
    const merge = mergeNow(node, known, say);
    if (!event.detail) merge.focusIterisRow(); // the button, which had the focus, is gone; a click needs none
  });
}

/** Return the button that goes to what sets a merge, and adds Merge settings where nothing does. */
export function settingsButton(node, say) {
  return button("iteris-settings", say("settings"), say("settings_title"), (event) => {
    event.stopPropagation();
    let settings = originOf(node, "settings")?.outputNode;
    if (!settings) asOneChange(app.canvas, () => (settings = addSettings(node, create)));
    if (settings.graph !== app.canvas.graph) app.canvas.setGraph(settings.graph);
    bringIntoSight([settings], app.canvas);
  });
}

/** Return what takes the merged LoRA; undefined: something outside of a subgraph. */
const mergedTakers = ({ graph, outputs }) =>
  takers(
    graph,
    outputs.filter(({ type }) => KEPT.includes(type)),
  );

const isCompare = (node) => node?.comfyClass === "IterISCompare";

/** Return the Compares that the merged LoRA leads to, into and out of subgraphs. */
export const comparesOf = (node) =>
  KEPT.flatMap((type) => [...reached(node, type)].map(({ inputNode }) => inputNode)).filter(isCompare);

export const compareOf = (node) => comparesOf(node)[0];

/** Let what saves a merge call its file by a new name, where it called it by the last one: the user may want another. */
export function renameSaves(node, last, name) {
  const isLast = (save) => saidBy(save, "file_name")?.replace(/_\d\d$/, "") === last;
  for (const save of mergedTakers(node))
    if (save?.comfyClass === "IterISSave" && isLast(save)) set(save, "file_name", freeName(name, save));
}

/** Return whether something takes the merged LoRA that may save it. */
export const isKept = (node) => mergedTakers(node).some((taker) => !isCompare(taker));

/**
 * Return by which prompts its Compares draw: "own", each LoRA's, and all of them in one picture in the first row; what is
 * written there alone: "named", where one of them names all LoRAs, or "given"; undefined: nobody knows, or they do not run.
 */
export function promptsOf(node) {
  const running = comparesOf(node).filter(({ mode }) => mode === LiteGraph.ALWAYS);
  const prompts = running.map((compare) => saidBy(compare, "prompt")?.trim());
  if (prompts.includes("")) return "own";
  const given = prompts.filter(Boolean).flatMap(lines);
  const isNamed = lorasOf(node) < Infinity && given.some((line) => node.isIterisNamedIn?.(line));
  return isNamed ? "named" : given.length ? "given" : undefined;
}

/** Return whether a merge can have a Compare. */
export const canCompare = (node) => !!node.graph && mergedTakers(node).every(Boolean) && !!comparedBy(node);

/** Add what saves a merge, and run it: the server has the merge already. */
export const saveNow = (node) => asOneStep(() => runAlone(addSave(node, create, app.canvas))); // which changes seeds in older frontends

/** Let a merge measure its subjects together. */
export const switchOn = (node) => asOneChange(app.canvas, () => set(node, "together", true));

/**
 * Show a merge's Compare, and run it where it has no pictures of the merge's result; or add one, and run it and what saves
 * its picture.
 *
 * @param {object} [result] the merge's report; undefined: a run would make another one
 */
export async function seeNow(node, say, result) {
  const known = compareOf(node) ? undefined : await knownOf(node);
  if (!node.graph) return;
  const compare = compareOf(node); // or it was pressed twice
  if (compare) {
    compare.showIterisNamed?.();
    showCompare(compare, app.canvas);
    if (await isAwaited(compare)) return void tell(say("drawing"), say("drawing_rest"));
    const isDrawn = compare.iterisPicturesAt?.() === result?.made?.at;
    if (result && !isDrawn && compare.mode === LiteGraph.ALWAYS) asOneStep(() => runAlone(compare));
  } else if (canCompare(node))
    asOneStep(() => {
      const added = addCompare(node, create, app.canvas, known);
      return runAlone(added, ...takers(node.graph, added.outputs));
    });
}

/** Put what loads a merge's file in its place, or beside it, unless the file is another one now. */
export async function loadNow(node, file, say) {
  forget(); // another tab, window or program may have saved over it
  if (await isGone(file)) {
    for (const each of nodesOf(app.graph)) each.checkIterisFile?.();
    return;
  }
  const { listed_as: name } = file;
  const words = file.prompt ?? file.words.join(", ");
  const title = say("draw_with", { lora: ownName(nameOf(name)) });
  const titles = { positive: say("prompt"), negative: say("negative_prompt") };
  const known = { ...(await aboutModelOf(node)), words, title, titles };
  if (!node.graph) return;
  turnBack(node, newRow(name).text, create, app.canvas, known);
  if (!node.graph) tell(say("replaced"), say("replaced_rest"));
}
