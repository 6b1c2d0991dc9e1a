// The rows of Merge LoRAs and Load LoRAs: a view of its text, which is the input itself and all that is kept.

import { app } from "../../scripts/app.js";
import { choose } from "./choose.js";
import { addElement, showAbove } from "./elements.js";
import { also, nodesOf } from "./graph.js";
import { fit, heightOf, keepWidth, savesWithout, shrink, widenAround } from "./heights.js";
import { knownOfRows } from "./known_rows.js";
import { comparesOf, renameSaves } from "./merge.js";
import { aboutModelOf, forget, lastAboutLora, loraNames, recipeOf } from "./loras.js";
import { undoOrRedo } from "./number_field.js";
import { isRestoring, store } from "./open_workflow.js";
import { button, html, keep, tell } from "./parts.js";
import { drawLine, drawRow } from "./row.js";
import {
  changed,
  fileOf,
  mergedName,
  moved,
  nameOf,
  newRow,
  ownName,
  picked,
  readRows,
  switched,
  writtenRows,
} from "./rows_text.js";
import { textAfter } from "./prompt_field.js";
import { TRIGGER, absentFrom } from "./triggers.js";
import { PREVIEW, isMerge } from "./prompt_graph.js";

const USUAL_HEIGHT = 60;
const LEAST_WIDTH = 330; // at which a row shows a name
const MOST_HEIGHT = 400; // of the text field
const MOST_DRAWN = 200; // rows; a merge takes 100

/**
 * Add the rows to a node, in the place of its text.
 *
 * @param {object} node
 * @param {(word: string, values?: object) => string} say
 * @param {HTMLElement[]} more buttons beside those of the rows
 */
export function addRows(node, say, more = []) {
  const text = node.widgets?.find(({ name }) => name === "loras");
  if (!text) return;
  const element = addElement(node, "rows", (shown) => heightOf(shown, 0) || USUAL_HEIGHT, text);
  showAbove(node, element, false);
  keepWidth(node, LEAST_WIDTH);
  const view = new Rows(node, text, element, say, more);
  also(text, "callback", () => view.read());
  also(node, "onConfigure", () => {
    view.read(true);
    if (isRestoring() && asked?.id === String(node.id)) view.focusAgain(asked);
  });
  also(node, "onConnectionsChange", () => view.draw());
  if (presetOf(node)) also(presetOf(node), "callback", () => view.draw()); // a preview needs no prompts
  also(node, "getExtraMenuOptions", (_, options) => {
    if (view.list.contains(pressed)) options.unshift(...view.menu(Number(pressed.dataset.place)), null);
  });
  element.addEventListener("pointerenter", () => view.learn()); // the model may be another one by now
  // on the canvas, the frontend would not know of a wheel that turns above an element; and Vue nodes would be dragged
  element.addEventListener(
    "wheel",
    (event) =>
      LiteGraph.vueNodesMode || event.target.matches("textarea, :focus") || app.canvas.processMouseWheel(event),
  );
  element.addEventListener("pointerdown", (event) => event.button === 0 && event.stopPropagation());
  element.addEventListener("contextmenu", (event) => {
    if (LiteGraph.vueNodesMode || event.target.matches("input, textarea")) return;
    event.preventDefault();
    LGraphCanvas.active_canvas = app.canvas; // in older frontends it is only where the mouse was pressed last
    app.canvas.adjustMouseEvent(event);
    app.canvas.processContextMenu(node, event);
  });
  element.addEventListener("beforeinput", (event) => {
    // the browser also goes back in the field that was written in last, wherever the focus is: at a key of the canvas, too
    if (event.inputType.startsWith("history") && event.target !== document.activeElement) event.preventDefault();
  });
  element.addEventListener("focusout", ({ target }) => {
    // a text that stays marked would be copied instead of nodes; where the window alone has lost the focus, it may
    if (document.activeElement !== target) getSelection().removeAllRanges();
  });
  element.addEventListener("keydown", (event) => {
    const [part] = event.target.classList;
    const place = Number(event.target.closest(".iteris-row")?.dataset.place);
    const { target } = event;
    if (event.ctrlKey || event.metaKey) asked = { id: String(node.id), place, part, target };
    const back = part === "iteris-number" && undoOrRedo(event);
    if (back) {
      event.preventDefault();
      app.extensionManager.command.execute(`Comfy.${back}`); // which the frontend does not do from within a field
    }
    if (!["Delete", "Backspace"].includes(event.key)) return;
    event.stopPropagation(); // not for the canvas, which would delete the node
    if (["iteris-grip", "iteris-toggle", "iteris-lora"].includes(part)) view.remove(place, part);
  });
  savesWithout(node, () => view.heightOpen());
  new ResizeObserver(() => widenAround(node, element, LEAST_WIDTH)).observe(element);
  node.learnIterisFiles = (isAsked) => view.learn(isAsked);
  node.compareIterisPrompt = () => view.compareWithPrompt();
  node.iterisAbsentFrom = (prompt) => view.absentFrom(prompt).flat();
  node.isIterisNamedIn = (prompt) => view.areNamedIn(prompt);
  node.focusIterisRow = () => view.focusAgain({ place: view.drawn()[0], part: "iteris-lora" });
  view.read(true);
}

/** Return the preset of a merge; undefined: of a plain loader. */
const presetOf = (node) => node.widgets.find(({ name }) => name === "preset");

let pressed; // the row on which a pointer went down last
addEventListener("pointerdown", ({ target }) => (pressed = target.closest?.(".iteris-row") ?? undefined), true);

let asked; // what had the focus at a shortcut, which may be Undo, until the next key: the node's id, the row's place, and its part
addEventListener("keydown", () => (asked = undefined), true);

let isTyped = false; // something, in this frame
addEventListener(
  "input",
  () => {
    if (isTyped) return;
    isTyped = true;
    requestAnimationFrame(() => {
      isTyped = false;
      for (const node of nodesOf(app.graph)) node.compareIterisPrompt?.();
    });
  },
  true,
);

/** Return the height of some of what is in an element. */
const heightIn = (element, parts) =>
  [...element.querySelectorAll(parts)].reduce((sum, { offsetHeight }) => sum + offsetHeight, 0);

const views = new WeakMap(); // workflow -> node's id -> how its rows are shown

/** Remember how the rows of a node are shown: Undo makes every node anew. */
function remember(node, shown) {
  const workflow = store()?.activeWorkflow;
  if (!workflow) return;
  if (!views.has(workflow)) views.set(workflow, new Map());
  views.get(workflow).set(node.id, shown);
}

/** Return how the rows were shown on a node that Undo makes anew; undefined: it is another one. */
const restored = (node) => (isRestoring() ? views.get(store().activeWorkflow)?.get(node.id) : undefined);

class Rows {
  constructor(node, text, element, say, more) {
    Object.assign(this, { node, text, element, say, more, entries: [], known: [], asText: false });
    this.keep = keep;
    this.list = html("div", "iteris-list");
    this.list.role = "list";
    this.plain = html("div", "iteris-warning iteris-plain", say("plain_stack"));
    this.plain.hidden = true;
    // the same one at all times: a list that was opened by it gives the focus back
    this.add = button("iteris-add", say("add_row"), say("add_row_title"), () => this.chooseFile(this.add));
  }

  /** Read the text, unless it is what the view itself has written; rows that are open stay so. */
  read(anew = false) {
    const value = String(this.text.value ?? "");
    if (!anew && value === this.written) return;
    const { openNames, asText } = restored(this.node) ?? this.shown();
    const open = new Set(openNames);
    this.asText = asText;
    this.written = value;
    this.name = mergedName(value) ?? this.name; // of the merge's file, from two LoRAs on
    this.entries = readRows(value).map((entry) => (open.has(entry.row?.name) ? { ...entry, isOpen: true } : entry));
    this.draw();
  }

  /** Write entries into the text. */
  put(entries) {
    this.entries = entries;
    this.setText(writtenRows(entries));
  }

  /** Write the text of the rows, and call the merge's file like them. */
  setText(value) {
    this.written = value;
    this.text.value = value;
    const name = mergedName(value) ?? this.name;
    if (name !== this.name && isMerge(this.node)) renameSaves(this.node, this.name, name);
    this.name = name;
    this.showPlain();
  }

  /** Show that what takes the rows as a stack gets them without what only this node knows, where that is so. */
  showPlain() {
    const isTaken = this.node.outputs?.some(({ type, links }) => type === "LORA_STACK" && links?.length);
    const isMore = ({ row, isOff }) => row && !isOff && (row.blocks || row.without.length);
    const isShown = !!isTaken && this.entries.some(isMore);
    if (this.plain.hidden !== isShown) return;
    this.plain.hidden = !isShown;
    fit(this.node);
  }

  /** Change a row's line, and leave what is drawn as it is. */
  write(place, change, isOff) {
    this.put(this.entries.with(place, changed(this.entries[place], change, isOff)));
  }

  /** Take over a text as it is. */
  writeText(value) {
    this.entries = readRows(value);
    this.setText(value);
  }

  writeLine(place, line) {
    this.put(this.entries.with(place, { text: line }));
  }

  /** Read a line that was written anew, and draw it alone: the user may be on the way to another one. */
  readLine(place) {
    const found = readRows(this.entries[place].text);
    this.entries = this.entries.toSpliced(place, 1, ...found);
    const at = this.parts.findIndex((part) => part.place === place);
    if (found.length > 1 || at < 0) this.draw();
    else {
      const part = this.drawPart(place);
      this.parts[at].element.replaceWith(part.element);
      this.parts = this.parts.with(at, part);
      this.learn();
    }
    this.keep();
  }

  edit(place, change, isOff) {
    this.write(place, change, isOff);
    this.finish();
  }

  switchAll(isOff) {
    this.put(switched(this.entries, isOff));
    this.finish();
  }

  shown() {
    const openNames = this.entries.filter(({ isOpen }) => isOpen).map(({ row }) => row.name);
    return { openNames, asText: this.asText };
  }

  /** Return what the rows' files are called, without folders. */
  ownNames() {
    return this.entries.flatMap(({ row }) => (row ? [ownName(row.name)] : []));
  }

  open(place, isOpen) {
    this.entries = this.entries.with(place, { ...this.entries[place], isOpen });
    remember(this.node, this.shown());
    this.draw(true);
  }

  /** Close a row from within it. */
  close(place) {
    this.keep();
    this.open(place, false);
    this.focus(place, "iteris-opener");
  }

  /** Open a row at a field of it, with the place of the trigger words marked, so that they are typed there. */
  openAt(place, part) {
    this.open(place, true);
    this.focus(place, part);
    const field = document.activeElement;
    const start = field.value?.indexOf(TRIGGER) ?? -1;
    if (start >= 0) field.setSelectionRange(start, start + TRIGGER.length);
  }

  /** Take a row out, and focus a part of the one that comes into its place. */
  remove(place, part = "iteris-out") {
    this.put(this.entries.toSpliced(place, 1));
    this.finish();
    const next = this.parts.find((each) => each.place >= place) ?? this.parts.at(-1); // empty lines have none
    (next?.element.querySelector(`.${part}, .iteris-out`) ?? this.element.querySelector(".iteris-add"))?.focus();
  }

  /** Put the LoRAs that a file is a merge of in the place of its row. */
  async takeApart(place, file) {
    const { row, isOff } = this.entries[place];
    const { rows, error } = (await recipeOf(file)) ?? {};
    if (this.entries[place]?.row?.name !== row.name) return; // changed meanwhile
    if (!rows) return void tell(this.say("not_apart"), error ?? this.say("server_away"));
    this.put(this.entries.toSpliced(place, 1, ...switched(readRows(rows), isOff)));
    this.finish();
    this.focus(place, "iteris-lora");
  }

  /** Return what a row adds to the menu of its node. */
  menu(place) {
    const entry = this.entries[place];
    const item = (word, entries) => ({
      content: this.say(word),
      callback: () => {
        this.put(entries);
        this.finish();
      },
    });
    const ofRow = () => [
      item("duplicate", this.entries.toSpliced(place + 1, 0, { ...entry, isOpen: false })),
      item("alone", switched(this.entries, true).with(place, changed(entry, {}, false))),
    ];
    return [...(entry.row ? ofRow() : []), { content: this.say("out"), callback: () => this.remove(place) }];
  }

  /** Move a row to the next place that is drawn, before or after it. */
  move(place, by) {
    const drawn = this.drawn();
    const to = drawn[drawn.indexOf(place) + by];
    if (to !== undefined) this.moveTo(place, to);
  }

  /** Move a row, and leave the focus in its grip. */
  moveTo(place, to) {
    if (to !== place) this.put(moved(this.entries, place, to));
    this.finish();
    this.focus(to, "iteris-grip");
  }

  chooseFile(anchor, place) {
    const row = this.drawn().indexOf(place) + 1;
    choose(anchor, { row, several: place === undefined }, this.offered(place), this.say, (file, isOpen) => {
      const wanting = place ?? this.wanting();
      if (wanting === undefined)
        this.put([...this.entries.filter(({ text }, i) => text || i < this.entries.length - 1), newRow(file)]);
      else {
        const { merged_from: merged, kind } = lastAboutLora(file) ?? {};
        const { row } = this.entries[wanting];
        const change = { name: nameOf(file) };
        if (merged?.length && !row.name) Object.assign(change, { model: 1, clip: 1 }); // its strengths are in it
        if (kind && kind !== row.kind && !row.called) change.kind = ""; // it was said of another file, or of none
        this.write(wanting, change);
      }
      this.finish();
      if (isOpen) return;
      this.focus(wanting ?? this.entries.length - 1, "iteris-lora");
      this.chooseNext(wanting);
    });
  }

  /** Return what can be chosen for a row, or for a new one, see `choose`. */
  async offered(place) {
    forget();
    const [names, about] = await Promise.all([loraNames(), aboutModelOf(this.node)]);
    for (const node of nodesOf(app.graph)) node.learnIterisFiles?.(); // files may have come and gone
    const chosen = this.entries.map(({ row }) => row && fileOf(row.name, names ?? []));
    const now = chosen[place];
    const lost = now ? "" : this.entries[place]?.row.name;
    const taken = new Set(chosen.filter((file, at) => file && at !== place));
    return { names: names ?? [], fits: about.fits ?? [], now, lost, taken };
  }

  /** Return the first row, after another one, whose file is still to be chosen; undefined: there is none. */
  wanting(place = -1) {
    const next = this.entries.findIndex(({ row, isOff }, at) => at > place && row && !row.name && !isOff);
    return next < 0 ? undefined : next;
  }

  /** Go on with the next row whose file is still to be chosen, after one of these was chosen. */
  chooseNext(place = this.entries.length) {
    const next = this.wanting(place);
    const name = this.list.querySelector(`[data-place="${next}"] .iteris-lora`);
    if (name) this.chooseFile(name, next);
  }

  finish() {
    this.draw();
    this.keep();
  }

  focus(place, part) {
    this.list.querySelector(`[data-place="${place}"] .${part}`)?.focus();
  }

  /** Focus what had the focus before the node was made anew, once that is drawn, unless the user is elsewhere by then. */
  focusAgain(had, frames = 30) {
    const { place, part, target } = had;
    if (!frames || ![document.body, target].includes(document.activeElement)) return; // a frame or two it is still there
    if (this.element.offsetHeight) {
      this.focus(place, part);
      if (!this.element.contains(document.activeElement)) this.add.focus(); // that row is gone
    }
    requestAnimationFrame(() => this.focusAgain(had, frames - 1));
  }

  /** Return the places of the entries that are drawn: all but empty lines, as far as there is an end. */
  drawn() {
    const places = this.entries.flatMap(({ text, row }, place) => (row || text.trim() ? [place] : []));
    return places.slice(0, MOST_DRAWN);
  }

  /** Draw the entries; `isOther`: they are the same as before, and seen in another way. */
  draw(isOther = false) {
    const before = this.heightClosed();
    const isLinked = this.isLinked(this.text.name);
    const focused = this.list.contains(document.activeElement) ? document.activeElement : undefined;
    const [place, part] = [focused?.closest(".iteris-row")?.dataset.place, focused?.classList[0]];
    this.parts = [];
    this.showPlain();
    if (isLinked) this.element.replaceChildren(html("div", "iteris-quiet", this.say("linked")));
    else this.element.replaceChildren(this.asText ? this.textField() : this.rows(), this.plain, this.buttons());
    if (part && !this.asText) this.focus(place, part);
    if (this.asText && !isLinked) this.fitText();
    const lower = before > 0 ? before - this.heightClosed() : 0;
    shrink(this.node, isOther ? 0 : Math.max(0, lower)); // another height would be a step of Undo
    this.learn();
  }

  isPreview() {
    return presetOf(this.node)?.value === PREVIEW;
  }

  isLinked(input) {
    return this.node.inputs?.some(({ name, link }) => name === input && link != null);
  }

  rows() {
    const places = this.drawn();
    this.parts = places.map((place) => this.drawPart(place));
    this.list.replaceChildren(...this.parts.map(({ element }) => element));
    const none = this.isLinked("more_loras") ? "rows_elsewhere" : "no_rows";
    if (!places.length) this.list.append(html("div", "iteris-quiet iteris-none", this.say(none)));
    if (this.entries.length > MOST_DRAWN) this.list.append(html("div", "iteris-quiet", this.say("cut_rows")));
    return this.list;
  }

  drawPart(place) {
    return { place, ...(this.entries[place].row ? drawRow(this, place) : drawLine(this, place)) };
  }

  textField() {
    const field = html("textarea", "iteris-rows-text");
    field.value = this.written;
    field.rows = 5;
    field.spellcheck = false;
    field.ariaLabel = this.say("as_text");
    field.placeholder = "<lora:name:0.8> subject | a photo of sks dog | sks dog on a beach";
    field.addEventListener("input", () => this.writeText(field.value));
    field.addEventListener("change", this.keep);
    field.addEventListener("paste", (event) => this.paste(event));
    return field;
  }

  /** Take the tags out of a prompt that is pasted as lines of its own. */
  paste(event) {
    const { value, selectionStart, selectionEnd } = event.target;
    const around = [...value.slice(0, selectionStart).slice(-1), ...value.slice(selectionEnd, selectionEnd + 1)];
    const tags = picked(event.clipboardData.getData("text/plain"));
    if (tags === undefined || around.some((letter) => letter !== "\n")) return;
    event.preventDefault();
    document.execCommand("insertText", false, tags); // as Undo of the browser knows it
    tell(this.say("picked"), this.say("picked_rest"));
  }

  fitText() {
    const field = this.element.querySelector(".iteris-rows-text");
    field.style.height = "";
    field.style.height = `${Math.min(field.scrollHeight + 4, MOST_HEIGHT)}px`;
  }

  buttons() {
    const line = html("div", "iteris-buttons");
    const other = button("iteris-other", this.say(this.asText ? "as_rows" : "as_text"), this.say("other_title"), () => {
      this.asText = !this.asText;
      remember(this.node, this.shown());
      this.draw(true);
      const shown = this.element.querySelector(this.asText ? ".iteris-rows-text" : ".iteris-other");
      shown.setSelectionRange?.(0, 0);
      shown.focus();
    });
    line.append(...(this.asText ? [] : [this.add]), other, ...this.more);
    return line;
  }

  /** Return the height of what is seen now and then: of what is open, which is closed once the workflow is opened again. */
  heightOpen() {
    return heightIn(this.element, ".iteris-row-body, .iteris-absent, .iteris-plain");
  }

  /** Return the height of the rows as they are once the workflow is opened again; 0 before they were seen. */
  heightClosed() {
    return heightOf(this.element, 0) - this.heightOpen();
  }

  /** Ask what is known of the files, and mark the rows with it; `isAsked`: as the user wants to have it anew. */
  async learn(isAsked = false) {
    const parts = this.parts;
    const mine = {};
    this.isAsked ||= isAsked; // though another question takes the place of this one
    this.learning = mine;
    if (!parts.length) return void this.node.showIterisLoras?.(0, 0);
    const known = await knownOfRows(
      this.node,
      parts.map(({ place }) => this.entries[place]),
    );
    if (mine !== this.learning) return; // drawn or written anew meanwhile
    const areThere = (rows) => rows.every(({ key, isOff }) => key || isOff);
    if ((this.isAsked || !areThere(this.known)) && areThere(known)) this.node.doubtIterisRefusal?.();
    this.isAsked = false;
    this.known = known;
    const subjects = new Set(known.filter(({ isSubject }) => isSubject).map(({ file }) => file));
    this.node.showIterisLoras?.(areThere(known) ? known.filter(({ key }) => key).length : NaN, subjects.size);
    const signs = JSON.stringify(known);
    if (signs === this.signs && parts === this.marked) return this.compareWithPrompt();
    [this.signs, this.marked, this.absent] = [signs, parts, undefined];
    const before = heightOf(this.element, 0);
    parts.forEach(({ mark }, at) => mark(known[at]));
    this.compareWithPrompt();
    if (heightOf(this.element, 0) !== before) fit(this.node);
  }

  /** Return for each row the words of its LoRAs that a prompt lacks. */
  absentFrom(prompt) {
    const files = this.known.map(({ lora, wantsWords }) => (wantsWords && lora) || {});
    return absentFrom(prompt, files);
  }

  /** Return whether a prompt names all LoRAs, which is not known of those whose files have no trigger words. */
  areNamedIn(prompt) {
    const loras = this.known.filter(({ key }) => key).map(({ lora }) => lora);
    const areKnown = loras.length > 1 && loras.every((lora) => lora?.trigger_words?.length);
    return areKnown && !this.absentFrom(prompt).flat().length;
  }

  /** Say on the rows which words of their LoRAs a loader's prompt lacks; of a merge's, its Compares say it. */
  compareWithPrompt() {
    const { marked: parts, known, node } = this;
    if (!node.graph || parts !== this.parts) return;
    if (isMerge(node)) {
      for (const compare of comparesOf(node)) compare.compareIterisPrompt?.();
      return;
    }
    const text = textAfter(node);
    const absent = text === undefined ? known.map(() => []) : this.absentFrom(text);
    if (JSON.stringify(absent) === JSON.stringify(this.absent)) return;
    this.absent = absent;
    parts.forEach(({ lack }, at) => lack(absent[at]));
    fit(node);
  }
}
