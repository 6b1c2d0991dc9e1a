// The report in a node: first the verdict and the file, then what fails, and what of the prompts did not count; in its
// details a line per LoRA, bars per block, and the layers of the block under the pointer.

import { ofMerge } from "./merge_names.js";
import { paintOf } from "./paint.js";
import { button, copied, fileName, html, wrapping } from "./parts.js";
import { bars, headline, isJudged, isUncertain, layersOf, noteLine, scaleTop } from "./report.js";
import { ownName } from "./rows_text.js";

const WIDTH = 360;
const HEIGHT = 96;
const LABELS = 14;
const LETTER = 6.7; // of a label
const APART = 36; // labels from one another
const MOST_LAYERS = 3;
const NAME = 20; // letters of a name that has its figure beside it
const NAME_BESIDE_LONG = 10; // and one that has a long badge beside it
// where to look in Compare for what the check does not tell, by `promptsOf`
const OF_BOTH = { own: "look_both", named: "look_both_named" };
const OF_STYLE = { own: "look_first", named: "look_named" };
const COPIED = 2000; // milliseconds that a button says so

const percent = (share) => Math.round(100 * share);
const figure = (value) => (value === null ? "–" : value.toFixed(value < 0.0995 ? 3 : 2));

function svg(tag, attributes, text = "") {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

/** Let an element look like its task: a bar, a swatch, or the line under a figure. */
function paint(element, task) {
  const { colour, kind } = paintOf(task);
  element.style.setProperty("--iteris-colour", colour);
  element.classList.add(`iteris-${kind}`);
  return element;
}

/** Return what a panel says before there is a report. */
const soon = (isAlone, isPreview, say) =>
  html("div", "iteris-quiet", say(isAlone ? "one_lora" : isPreview ? "waiting_preview" : "waiting"));

/**
 * Draw a report, or what will be there once there is one.
 *
 * @param {HTMLElement} element what was in it is replaced
 * @param {object|undefined} model `figures()` of a report
 * @param {(word: string, values?: object) => string} say
 * @param {object} [how]
 * @param {string} [how.earlier] the word for why this is not the report of the node as it is now
 * @param {string} [how.since] in what the node was another one in the run of this report; "": nobody knows
 * @param {string} [how.failure] what the last run ended with, if that is an error of this node
 * @param {string} [how.stopped] what is said of the last run, if this node was stopped in it
 * @param {boolean} [how.isAlone] whether the next run makes of one LoRA the same one
 * @param {boolean} [how.isApart] whether the next run does not measure subjects together, of which there are several
 * @param {boolean} [how.isGone] whether the file was removed since, or changed
 * @param {boolean} [how.isTogether] whether the next run measures them together
 * @param {boolean} [how.isPreview] whether the next run measures nothing
 * @param {boolean} [how.isSet] whether "together" was switched on for the user
 * @param {boolean} [how.isOpen] whether the details are shown; undefined: where there is no verdict
 * @param {object} [how.live] what a run that goes on has told, which the details show: their bars are no verdict
 * @param {"own"|"named"|"given"} [how.prompts] by which its Compare draws, see `promptsOf`
 * @param {(event: Event) => void} [how.load] puts what loads the file into the graph
 * @param {() => void} [how.save] adds what saves the merge, where nothing does
 * @param {() => void} [how.see] shows the pictures of its Compare, or adds one
 * @param {() => void} [how.switchOn] lets the next run measure them together
 * @param {(isOpen: boolean) => void} [how.toggled] called at a click, before the node has another height
 */
export function draw(element, model, say, how = {}) {
  const { earlier, failure, isApart, isOpen, isAlone, isPreview, isSet, live, stopped, switchOn } = how;
  element.replaceChildren();
  element.classList.toggle("iteris-empty", !model && !failure && !stopped && !live);
  element.classList.toggle("iteris-old", !!earlier);
  if (failure) {
    element.append(html("div", "iteris-warning iteris-failure", failure));
    element.append(html("div", "iteris-far-headline iteris-far-failure", failure));
  }
  if (stopped) element.append(html("div", "iteris-quiet iteris-note", stopped));
  if (!model && (failure || stopped)) return;
  if (model) append(element, model, say, how);
  else if (!live) element.append(soon(isAlone, isPreview, say));
  if (isSet && !model && !live) element.append(html("div", "iteris-advice", say("together_set")));
  if (isApart && !live && !model?.verdict?.together)
    element.append(adviceOf({ kind: "together", names: [] }, say, switchOn));
  const told = live ?? model;
  if (!told) return;
  const details = foldOf(told, say, isOpen ?? !(live || model.verdict), how);
  details.classList.toggle("iteris-live", !!live);
  element.append(details);
}

/** Append what of a report is not in its details. */
function append(element, model, say, how) {
  const { earlier, failure, isGone, load, save, see, since } = how;
  const of = earlier !== "changed" ? ofMerge(model.made, say) : since && say("of_merge", { what: since });
  if (earlier) element.append(html("div", "iteris-earlier", say(earlier, { of })));
  if (model.verdict) element.append(verdictOf(model.verdict, say, how));
  if (model.verdict?.loras.length && !failure)
    element.append(headlineOf("iteris-far-headline", model.verdict.loras, say));
  if (see) element.append(button("iteris-see", say("see"), say("see_title"), see));
  if (model.file) element.append(savedLine({ ...model.file, isGone }, say, load));
  else if (save) element.append(unsaved(save, say));
  if (model.cut) element.append(html("div", "iteris-warning iteris-cut", say("cut")));
  for (const warning of model.warnings) element.append(html("div", "iteris-warning", warning));
}

/** Draw what a run has told since, and return whether its details were there already. */
export function drawOn(element, live, say) {
  const [summary, ...before] = element.querySelector(":scope > .iteris-live")?.children ?? [];
  for (const each of before) each.remove();
  summary?.after(...detailsOf(live, say)); // which stays, or a click on it would be lost
  return !!summary;
}

/** Return the details of a report. */
function foldOf(model, say, isOpen, how) {
  const details = html("details", "iteris-details");
  details.open = isOpen;
  const summary = html("summary", "", say("details"));
  summary.addEventListener("click", () => how.toggled?.(!details.open));
  details.append(summary, ...detailsOf(model, say, how));
  return details;
}

function detailsOf(model, say, how = {}) {
  const detail = html("div", "iteris-detail");
  const hint = html("div", "iteris-quiet", say("hover"));
  const show = (block) => detail.replaceChildren(...(block ? detailOf(model, block, say) : [hint]));
  show();
  const notes = [...model.prompts, ...model.notes].map((note) => noteOf(note, model.tasks));
  if (model.side) notes.unshift(html("div", "iteris-quiet iteris-note", say("measured_at", { side: model.side })));
  const errors = html("div", "iteris-errors");
  errors.append(html("b", "", say("errors")), html("div", "iteris-quiet", say("scale")));
  const rest = model.verdict ? [restOf(model.verdict, say, how)] : [];
  return [...rest, ...notes, errors, overallOf(model, say), chart(model, show, say), detail]; // first what can be understood without the method
}

/** Return a note, with the name of the LoRA that it is of, if it begins with one, as a heading. */
function noteOf(note, tasks) {
  const line = html("div", "iteris-quiet iteris-note");
  const text = noteLine(note, tasks);
  const name = tasks.find((task) => text.startsWith(`${task}: `));
  line.append(...(name ? [html("b", "", name), text.slice(name.length)] : [text]));
  return line;
}

/** Return what is seen of a verdict at once: a headline, and a line for each LoRA and for several of them. */
function verdictOf({ loras, together, togetherAdvice, unjudged, advice, bounds }, say, how) {
  const found = html("div", "iteris-verdict");
  if (loras.length) found.append(headlineOf("iteris-headline", loras, say));
  if (unjudged) {
    const [subjects, styles] = [unjudged.subjects, unjudged.styles].map((names) => names.map(ownName).join(", "));
    found.append(saidOf("unjudged", say("in_style", { subjects, styles }), say("not_judged")));
  }
  const [lost, good] = bounds.map(percent);
  const told = say("levels", { lost, good });
  const lines = loras.map((lora) => keptOf(lora, told, say));
  const most = loras.some(isUncertain) ? NAME_BESIDE_LONG : NAME;
  const isLong = lines.some((line) => line.querySelector(".iteris-called").textContent.length > most);
  found.classList.toggle("iteris-long", isLong);
  found.append(...lines);
  if (together) {
    const isOpen = together === "uncertain";
    const word = say(isOpen ? "look_at_compare" : together);
    const line = saidOf("together", say(loras.length === 2 ? "both_together" : "together"), word);
    line.title = say("together_title");
    line.dataset.chance = together;
    if (isOpen) line.append(html("div", "iteris-advice", say(OF_BOTH[how.prompts] ?? "look_both_drawn")));
    const isDone = togetherAdvice?.kind === "together" ? how.isTogether : isOpen;
    if (togetherAdvice && !isDone) line.append(adviceOf(togetherAdvice, say, how.switchOn, isOpen));
    found.append(line);
  }
  if (advice && !loras.length) found.append(adviceOf(advice, say));
  return found;
}

/** Return what a verdict comes to in one sentence. */
function headlineOf(className, loras, say) {
  const { level, word, ...values } = headline(loras);
  const names = (values.loras ?? []).map((lora) =>
    say("lora_is", { name: ownName(lora.name), level: levelOf(lora, say) }),
  );
  const text = say(word, { ...values, name: ownName(loras[0].name), loras: names.join(", ") });
  return html("b", `${className} iteris-${level}`, text);
}

/** Return what else a verdict tells: in which range each LoRA is, and what to do. */
function restOf({ loras, unjudged, against, advice }, say, { prompts }) {
  const rest = html("div", "iteris-rest");
  const told = (text) => rest.append(html("div", "iteris-advice", text));
  if (unjudged) told(say(OF_STYLE[prompts] ?? "look_drawn"));
  rest.append(...loras.map((lora) => rangeOf(lora, say)));
  const areTold = loras.every(({ isTold }) => isTold);
  if (loras.length) told(say(areTold ? "hint" : "not_told"));
  const isGood = (lora) => lora.level === "good" && isJudged(lora);
  if (["named", "given"].includes(prompts) && !loras.every(isGood)) told(say("look_given"));
  if (advice && loras.length) rest.append(adviceOf(advice, say));
  const { leak, leak_stacked: stacked, base } = against;
  const parts = [];
  const leaks = advice?.kind === "measure" ? "overlaps" : "leaks"; // a preview has measured no leak
  const compare = (what, share) =>
    parts.push(say(`${what}_${share > 1 ? "more" : "less"}`, { percent: percent(Math.abs(1 - share)) }));
  // which says nothing of a subject in a style, and would read as if it did
  if (leak !== null && stacked && !unjudged) compare(leaks, leak / stacked);
  if (base !== null) compare("base", base);
  if (parts.length) rest.append(html("div", "iteris-against", parts.join(" ")));
  return rest;
}

/** Return a line about several LoRAs, and the word for it. */
function saidOf(name, text, word) {
  const line = html("div", `iteris-said iteris-${name}`);
  const head = html("div", "iteris-head");
  head.append(html("b", "", text), html("span", "iteris-badge", word));
  line.append(head);
  return line;
}

/** Return the word for what was kept of a LoRA. */
function levelOf(lora, say) {
  if (isUncertain(lora)) return say("uncertain_level");
  if (!lora.isTold) return say("uncertain");
  return lora.levels.length > 1 ? say("likely_level", { level: say(lora.level) }) : say(lora.level);
}

/** Let a line about a LoRA look like what was kept of it. */
function lookOf(line, lora) {
  line.classList.add(`iteris-${isJudged(lora) ? lora.level : "open"}`);
  line.classList.toggle("iteris-likely", lora.levels.length > 1 && isJudged(lora));
  return line;
}

function nameLine({ name, strength }, say) {
  const called = html("b");
  const [own] = fileName("iteris-called", name);
  if (strength !== 1) own.append(html("span", "iteris-quiet", ` ${say("at", { strength })}`));
  called.append(own);
  called.title = name;
  return called;
}

/** Return what was kept of a LoRA: a figure, and a word for it. */
function keptOf(lora, told, say) {
  const { name, kept, level, unread } = lora;
  const line = lookOf(html("div", "iteris-said iteris-kept"), lora);
  Object.assign(line.dataset, { lora: name, kept, level });
  line.title = told;
  const head = html("div", "iteris-head");
  head.append(
    nameLine(lora, say),
    html("span", "iteris-percent", say("kept", { percent: percent(kept) })),
    html("span", "iteris-badge", levelOf(lora, say)),
  );
  line.append(head);
  if (unread)
    line.append(html("div", "iteris-warning iteris-unread", say("unread_share", { percent: percent(unread) })));
  return line;
}

/** Return in which range is what was kept of a LoRA, as a bar, too, and what to do about it. */
function rangeOf(lora, say) {
  const { kept, between, advice } = lora;
  const isOpen = isUncertain(lora);
  const line = lookOf(html("div", "iteris-said iteris-range"), lora);
  const [low, high] = (isOpen ? null : between)?.map(percent) ?? [percent(kept), percent(kept)];
  const head = html("div", "iteris-beside");
  head.append(nameLine(lora, say));
  if (between && !isOpen) head.append(html("span", "iteris-quiet iteris-between", say("between", { low, high })));
  const share = html("div", "iteris-share");
  for (const [name, value] of Object.entries({ low, kept: percent(kept), high }))
    share.style.setProperty(`--iteris-${name}`, `${value}%`);
  line.append(head, share);
  if (advice) line.append(adviceOf(advice, say));
  return line;
}

function adviceOf({ kind, names }, say, switchOn = undefined, isOpen = false) {
  const line = html("div", "iteris-advice");
  line.append(html("span", "", say(isOpen ? "to_together_open" : `to_${kind}`, { name: names[0] })));
  if (kind === "together" && switchOn) {
    line.classList.add("iteris-beside");
    line.append(button("iteris-copy", say("switch_on"), say("switch_on_title"), switchOn));
  }
  line.dataset.advice = kind;
  return line;
}

/** Return a line about the file of a merge, which is called as in ComfyUI's list of LoRAs if it is there. */
export function savedLine({ name: own, listed_as: listed, mb, ranks, words, isGone }, say, load = undefined) {
  const line = html("div", "iteris-file");
  const name = listed ?? own;
  if (isGone) {
    const again = html("span", "iteris-again", say("saves_again")); // not seen in a result of other settings
    const gone = html("span", "iteris-quiet", say("file_gone", { name }));
    gone.append(" ", again);
    line.append(gone);
    return line;
  }
  const [least, most] = ranks;
  const rank = least === most ? least : say("ranks", { least, most });
  const told = html("span");
  told.append(...wrapping(say("saved", { name, mb: mb.toFixed(mb < 10 ? 1 : 0), rank })));
  line.append(...loadButton(load, say), told);
  if (words.length) {
    const beside = html("div", "iteris-beside");
    beside.append(html("span", "iteris-words", say("words", { words: words.join(", ") })), copyOf(words, say));
    line.append(beside);
  }
  return line;
}

/** Return the button that loads a file, which floats at the right of what comes after it; none, where nothing can. */
export const loadButton = (load, say) =>
  load ? [button("iteris-load", say("load_this"), say("load_this_title"), load)] : [];

function copyOf(words, say) {
  const copy = button("iteris-copy", say("copy"), say("copy_title"), async () => {
    const isCopied = await copied(words.join(", "));
    copy.textContent = say(isCopied ? "copied" : "not_copied");
    if (isCopied) setTimeout(() => (copy.textContent = say("copy")), COPIED);
  });
  return copy;
}

function unsaved(save, say) {
  const line = html("div", "iteris-file iteris-beside");
  const add = button("iteris-copy", say("save"), say("save_title"), save);
  line.append(html("span", "iteris-quiet", say("unsaved")), add);
  return line;
}

function overallOf(model, say) {
  // while a merge runs, it is only told which bars are whose
  const list = html("div", model.verdict ? "iteris-overall" : "iteris-overall iteris-legend");
  const kept = model.verdict?.loras.map(({ name }) => name) ?? []; // the verdict has told these
  const left = new Set(model.unseen.filter(({ name }) => !kept.includes(name)));
  const unseen = (found) => {
    const { name, error, strength } = found;
    const values = { error: figure(error), percent: Math.round(100 * strength) };
    list.append(
      lineOf(name, model.tasks.indexOf(name), say(strength === null ? "change" : "strength", values), {
        kind: "unseen",
        error,
        strength,
      }),
    );
    left.delete(found);
  };
  for (const { task, wears, median, worst, at } of model.overall) {
    [...left]
      .filter(({ name, strength }) => name === model.tasks[task] && (strength !== null) === wears)
      .forEach(unseen);
    const kind = wears ? "residual" : "leak";
    const text = model.verdict ? say(kind, { median: figure(median), worst: figure(worst), at }) : "";
    list.append(lineOf(model.tasks[task], wears ? task : -1, text, { kind, median, worst }));
  }
  left.forEach(unseen);
  return list;
}

/** Return one line about a task; its place among the bars is -1 where it has none. */
function lineOf(name, place, text, data) {
  const line = html("div", "iteris-line");
  Object.assign(line.dataset, { task: name, ...data });
  const swatch = html("span", "iteris-swatch");
  if (place >= 0) paint(swatch, place);
  const called = html("b");
  called.append(fileName("iteris-called", name)[0]);
  line.append(swatch, called, html("span", "iteris-figures", text));
  line.title = text ? `${name}: ${text}` : name;
  return line;
}

function chart(model, show, say) {
  const columns = bars(model);
  const top = scaleTop(columns);
  const left = 42;
  const column = (WIDTH - left) / columns.length;
  const y = (value) => HEIGHT - (HEIGHT - 8) * (value / top);
  const picture = svg("svg", { class: "iteris-chart", viewBox: `0 0 ${WIDTH} ${HEIGHT + LABELS}` });
  for (const value of [0, top / 2, top]) {
    picture.append(svg("line", { class: "iteris-grid", x1: left, x2: WIDTH, y1: y(value), y2: y(value) }));
    picture.append(svg("text", { class: "iteris-label", x: left - 3, y: y(value) + 3, "text-anchor": "end" }, value));
  }
  const axis = { class: "iteris-axis", x: -HEIGHT / 2, y: 9, transform: "rotate(-90)", "text-anchor": "middle" };
  picture.append(svg("text", axis, say("error")));
  let labelled = -Infinity;
  columns.forEach(({ name, bars: found }, index) => {
    const x = left + index * column;
    const group = svg("g", { class: "iteris-block", "data-block": name });
    group.append(svg("rect", { class: "iteris-hit", x, y: 0, width: column, height: HEIGHT + LABELS }));
    const width = (column * 0.8) / Math.max(1, found.length);
    found.forEach(({ task, median, worst }, place) => {
      const start = x + column * 0.1 + place * width;
      const middle = start + width / 2;
      group.append(svg("line", { class: "iteris-whisker", x1: middle, x2: middle, y1: y(worst), y2: y(median) }));
      const bar = svg("rect", {
        x: start,
        y: y(median),
        width: width * 0.92,
        height: HEIGHT - y(median),
        "data-task": model.tasks[task],
        "data-median": median,
      });
      group.append(paint(bar, task));
    });
    const middle = Math.min(x + column / 2, WIDTH - (LETTER * name.length) / 2);
    if (middle >= labelled) {
      group.append(svg("text", { class: "iteris-label", x: middle, y: HEIGHT + 11, "text-anchor": "middle" }, name));
      labelled = middle + APART;
    }
    group.addEventListener("pointerenter", () => show(name));
    picture.append(group);
  });
  return picture;
}

function detailOf(model, block, say) {
  const rows = layersOf(model, block);
  if (!rows.length) return [html("b", "", block)];
  const heading = html("div", "iteris-heading");
  heading.append(html("b", "", block), html("span", "", say("suffers", { lora: model.tasks[rows[0].suffers] })));
  const lines = rows.slice(0, MOST_LAYERS).map(({ name, rank, residuals, suffers }) => {
    const line = html("div", "iteris-layer");
    line.append(html("span", "iteris-name", name));
    residuals.forEach((value, task) => {
      if (value === null && task !== suffers) return;
      const shown = html("span", task === suffers ? "iteris-value iteris-suffers" : "iteris-value", figure(value));
      paint(shown, task);
      shown.title = model.tasks[task];
      line.append(shown);
    });
    line.append(html("span", "iteris-rank", `r${rank}`));
    return line;
  });
  return [heading, ...lines];
}
