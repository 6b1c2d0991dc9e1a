// What of a node was another one in a run, in a few words. No DOM and no ComfyUI here, so that `node --test` runs it.

import { wordOf } from "./meanings.js";
import { nameOf, ownName, readRows } from "./rows_text.js";
import { changesBetween } from "./prompt_graph.js";

const MOST = { told: 2, letters: 24 };
const STRENGTHS = ["model", "clip"];

/** Return the row in which alone two texts differ, as it was and as it is; undefined: they differ in others. */
function changedRow(was, is) {
  const [before, now] = [was, is].map((text) => readRows(text).filter(({ row }) => row));
  if (before.length !== now.length) return undefined;
  const changed = before.flatMap((each, i) => (each.text === now[i].text ? [] : [[each, now[i]]]));
  return changed.length === 1 && changed[0][0].row.name === changed[0][1].row.name ? changed[0] : undefined;
}

/** Return what of the rows of a merge was another one; undefined: too much. */
function rowsIn(was, is, say) {
  const found = changedRow(was, is);
  if (!found) return undefined;
  const [{ row, isOff }, { row: now, isOff: isOffNow }] = found;
  const name = ownName(nameOf(row.name));
  if (isOff !== isOffNow) return say(isOff ? "was_off" : "was_on", { name });
  if (STRENGTHS.every((each) => row[each] === now[each])) return say("row_was", { name });
  const value = [...new Set(STRENGTHS.map((each) => row[each]))].join("/");
  return say("strength_was", { name, value });
}

function inWords({ type, name, was, is }, say) {
  if (name === "loras" && typeof was === "string" && typeof is === "string") return rowsIn(was, is, say);
  const word = wordOf(type, name, was);
  if (typeof was === "boolean") return say(was ? "was_on" : "was_off", { name });
  if (was === "") return say("was_empty", { name });
  const text = word ? say(word) : `${was}`;
  return say("was", { name, value: text.length > MOST.letters ? `${text.slice(0, MOST.letters)}…` : text });
}

/** Return what was another one, such as "strength of ink was 0.8", see `changesBetween`; "": nobody knows, or too much. */
export function sinceRun(ran, shown, say) {
  const changes = (changesBetween(ran, shown) ?? []).filter(({ was, is }) => was !== undefined && is !== undefined);
  const told = changes.map((each) => inWords(each, say));
  if (!told.length || !told.every(Boolean)) return "";
  return [...told.slice(0, MOST.told), ...(told.length > MOST.told ? ["…"] : [])].join(", ");
}
