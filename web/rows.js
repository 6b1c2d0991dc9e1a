// The rows of Merge LoRAs: a view of its text, which is the input itself and all that is kept.

import { app } from "../../scripts/app.js";
import { choose } from "./choose.js";
import { addPanel, noteChange, replaceWidget } from "./frame.js";
import { also } from "./graph.js";
import { knownOfRows } from "./known_rows.js";
import { aboutModelOf, forget, lastAboutLora, loraNames } from "./loras.js";
import { button, html } from "./parts.js";
import { drawLine, drawRow } from "./row.js";
import { changed, fileOf, moved, nameOf, newRow, ownName, readRows, switched, writtenRows } from "./rows_text.js";
import { TRIGGER } from "./triggers.js";
import { say } from "./words.js";

const HEIGHT = 170;
const MOST_DRAWN = 200; // rows; a merge takes 100
const PREVIEW = "Preview"; // the preset that measures nothing

let pressed; // the row on which a pointer went down last
addEventListener("pointerdown", ({ target }) => (pressed = target.closest?.(".iteris-row") ?? undefined), true);

/** Add the rows to a node, in the place of its text; `node.learnIterisFiles` asks anew what is known of the files. */
export function addRows(node) {
  const text = node.widgets?.find(({ name }) => name === "loras");
  if (!text) return;
  const element = addPanel(node, "rows", HEIGHT, { above: text });
  replaceWidget(text, element);
  const view = new Rows(node, text, element);
  also(text, "callback", () => view.read());
  also(node, "onConfigure", () => view.read(true));
  also(node, "onConnectionsChange", () => view.draw());
  const preset = presetOf(node);
  if (preset) also(preset, "callback", () => view.draw()); // a preview needs no prompts
  also(node, "getExtraMenuOptions", (_, options) => {
    if (view.list.contains(pressed)) options.unshift(...view.menu(Number(pressed.dataset.place)), null);
  });
  element.addEventListener("pointerenter", () => view.learn()); // the model may be another one by now
  element.addEventListener("contextmenu", (event) => {
    if (LiteGraph.vueNodesMode || event.target.matches("input, textarea")) return;
    event.preventDefault();
    app.canvas.adjustMouseEvent(event);
    app.canvas.processContextMenu(node, event);
  });
  element.addEventListener("keydown", (event) => {
    if (!["Delete", "Backspace"].includes(event.key)) return;
    event.stopPropagation(); // not for the canvas, which would delete the node
    const [part] = event.target.classList;
    const place = Number(event.target.closest(".iteris-row")?.dataset.place);
    if (["iteris-grip", "iteris-toggle", "iteris-lora"].includes(part)) view.remove(place, part);
  });
  node.learnIterisFiles = () => view.learn();
  view.read(true);
}

const presetOf = (node) => node.widgets.find(({ name }) => name === "preset");

class Rows {
  entries = [];
  asText = false;
  list = html("div", "iteris-list");
  // the same one at all times: a list that was opened by it gives the focus back
  add = button("iteris-add", say("add_row"), say("add_row_title"), () => this.chooseFile(this.add));

  constructor(node, text, element) {
    Object.assign(this, { node, text, element });
    this.list.role = "list";
  }

  /** Read the text, unless it is what the view itself has written; rows that are open stay so. */
  read(anew = false) {
    const value = String(this.text.value ?? "");
    if (!anew && value === this.written) return;
    const open = new Set(this.entries.filter(({ isOpen }) => isOpen).map(({ row }) => row.name));
    this.written = value;
    this.entries = readRows(value).map((entry) => (open.has(entry.row?.name) ? { ...entry, isOpen: true } : entry));
    this.draw();
  }

  /** Write entries into the text. */
  put(entries) {
    this.entries = entries;
    this.setText(writtenRows(entries));
  }

  setText(value) {
    this.written = value;
    this.text.value = value;
  }

  /** Change a row's line, and leave what is drawn as it is. */
  write(place, change, isOff) {
    this.put(this.entries.with(place, changed(this.entries[place], change, isOff)));
  }

  writeLine(place, line) {
    this.put(this.entries.with(place, { text: line }));
  }

  /** Read a line that was written anew. */
  readLine(place) {
    this.entries = this.entries.toSpliced(place, 1, ...readRows(this.entries[place].text));
    this.finish();
  }

  edit(place, change, isOff) {
    this.write(place, change, isOff);
    this.finish();
  }

  switchAll(isOff) {
    this.put(switched(this.entries, isOff));
    this.finish();
  }

  /** Return what the rows' files are called, without folders. */
  ownNames() {
    return this.entries.flatMap(({ row }) => (row ? [ownName(row.name)] : []));
  }

  open(place, isOpen) {
    this.entries = this.entries.with(place, { ...this.entries[place], isOpen });
    this.draw();
  }

  /** Close a row from within it. */
  close(place) {
    noteChange();
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

  /** Return what a row adds to the menu of its node. */
  menu(place) {
    const entry = this.entries[place];
    const item = (word, entries) => ({
      content: say(word),
      callback: () => {
        this.put(entries);
        this.finish();
      },
    });
    const ofRow = () => [
      item("duplicate", this.entries.toSpliced(place + 1, 0, { ...entry, isOpen: false })),
      item("alone", switched(this.entries, true).with(place, changed(entry, {}, false))),
    ];
    return [...(entry.row ? ofRow() : []), { content: say("out"), callback: () => this.remove(place) }];
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
    choose(anchor, { row, several: place === undefined }, this.offered(place), (file, isOpen) => {
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
    this.learn(); // files may have come and gone
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
    noteChange();
  }

  focus(place, part) {
    this.list.querySelector(`[data-place="${place}"] .${part}`)?.focus();
  }

  /** Return the places of the entries that are drawn: all but empty lines, as far as there is an end. */
  drawn() {
    const places = this.entries.flatMap(({ text, row }, place) => (row || text.trim() ? [place] : []));
    return places.slice(0, MOST_DRAWN);
  }

  draw() {
    const focused = this.list.contains(document.activeElement) ? document.activeElement : undefined;
    const [place, part] = [focused?.closest(".iteris-row")?.dataset.place, focused?.classList[0]];
    this.parts = [];
    if (this.isLinked(this.text.name)) this.element.replaceChildren(html("div", "iteris-quiet", say("linked")));
    else this.element.replaceChildren(this.asText ? this.textField() : this.rows(), this.buttons());
    if (part && !this.asText) this.focus(place, part);
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
    this.parts = places.map((place) => ({
      place,
      ...(this.entries[place].row ? drawRow(this, place) : drawLine(this, place)),
    }));
    this.list.replaceChildren(...this.parts.map(({ element }) => element));
    const isElsewhere = ["more_loras", "lora_stack"].some((input) => this.isLinked(input));
    if (!places.length)
      this.list.append(html("div", "iteris-quiet iteris-none", say(isElsewhere ? "rows_elsewhere" : "no_rows")));
    if (this.entries.length > MOST_DRAWN) this.list.append(html("div", "iteris-quiet", say("cut_rows")));
    return this.list;
  }

  textField() {
    const field = html("textarea", "iteris-rows-text");
    field.value = this.written;
    field.spellcheck = false;
    field.ariaLabel = say("as_text");
    field.placeholder = "<lora:name:0.8> subject | a photo of sks dog | sks dog on a beach";
    field.addEventListener("input", () => {
      this.entries = readRows(field.value);
      this.setText(field.value);
    });
    field.addEventListener("change", noteChange);
    return field;
  }

  buttons() {
    const line = html("div", "iteris-buttons");
    const other = button("iteris-other", say(this.asText ? "as_rows" : "as_text"), say("other_title"), () => {
      this.asText = !this.asText;
      this.draw();
      this.element.querySelector(this.asText ? ".iteris-rows-text" : ".iteris-other").focus();
    });
    line.append(...(this.asText ? [] : [this.add]), other);
    return line;
  }

  /** Ask what is known of the files, and mark the rows with it. */
  async learn() {
    const { parts } = this;
    const known = await knownOfRows(
      this.node,
      parts.map(({ place }) => this.entries[place]),
    );
    if (parts === this.parts) parts.forEach(({ mark }, at) => mark(known[at]));
  }
}
