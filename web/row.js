// One row of the LoRAs to merge: a line, and below it what is seen when it is opened.

import { draw as drawChips } from "./chips.js";
import { button, fileName, html, imageAt } from "./parts.js";
import { readRows, writtenRow } from "./rows_text.js";
import { lines, needsPrompts } from "./triggers.js";

const STEP = 0.05;
const MOST = 100; // of a strength, and of a priority

/**
 * Draw a row.
 *
 * @param {object} view the rows; see `rows.js`
 * @param {number} place of the row among its entries
 * @returns {{element: HTMLElement, mark: (known: object) => void}} `mark` is to be called when something is known of
 *   its file:
 *   `lora` (answer of `/iteris/lora`, or null), `isMissing`, `fitting` (see `strangers`), `isAgain` (see `repeated`) and
 *   `picture` (an address)
 */
export function drawRow(view, place) {
  const { say } = view;
  const { row, isOff, isOpen } = view.entries[place];
  const body = isOpen ? drawBody(view, place) : undefined;
  const element = html("div", `iteris-row${isOff ? " iteris-off" : ""}`);
  element.role = "listitem";
  element.dataset.place = place;
  const head = html("div", "iteris-row-head");
  const grip = button("iteris-grip", "⠿", say("move"), () => {});
  grip.addEventListener("pointerdown", (event) => view.drag(event, place));
  grip.addEventListener("keydown", (event) => {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    view.move(place, by);
  });
  const toggle = button("iteris-toggle", "", say("use"), () => view.edit(place, {}, !isOff));
  toggle.role = "switch";
  toggle.ariaChecked = String(!isOff);
  const said = row.name || say("no_file");
  const name = button("iteris-lora", "", said, () => view.chooseFile(name, place));
  const badge = html("span", "iteris-family");
  const picture = html("span", "iteris-picture");
  name.append(picture, ...fileName("iteris-called", said), badge);
  const kind = button("iteris-kind", say(row.kind || "subject"), say("kind"), () =>
    view.edit(place, { kind: row.kind === "style" ? "subject" : "style" }),
  );
  kind.classList.toggle("iteris-unsaid", !row.kind);
  const strength = numberField(
    row.model,
    -MOST,
    say("strength_of"),
    (model) => {
      const { row: now } = view.entries[place];
      const isBoth = now.clip === now.model;
      view.write(place, isBoth ? { model, clip: model } : { model });
      if (isBoth && body) body.clip.value = model;
    },
    view.keep,
  );
  const opener = button("iteris-opener", isOpen ? "▾" : "▸", say("open"), () => view.open(place, !isOpen));
  opener.ariaExpanded = String(!!isOpen);
  const needs = button("iteris-needs", say("needs"), say("needs_title"), () => view.openPrompts(place));
  head.append(
    grip,
    toggle,
    name,
    needs,
    kind,
    strength,
    opener,
    button("iteris-out", "×", say("out"), () => view.remove(place)),
  );
  element.append(head);
  if (body) element.append(body.element);
  let known; // of the file
  const isMeasured = view.node.comfyClass === "IterISMerge";
  const ask = () =>
    element.classList.toggle("iteris-asks", isMeasured && !isOff && needsPrompts(view.entries[place].row, known));
  body?.element.addEventListener("input", ask);
  const mark = ({ lora, isMissing, fitting, isAgain, picture: address }) => {
    known = lora;
    ask();
    element.classList.toggle("iteris-missing", isMissing || !!lora?.error);
    for (const each of ["odd", "unfit"]) element.classList.toggle(`iteris-${each}`, fitting === each);
    element.classList.toggle("iteris-again", isAgain);
    badge.textContent = fitting ? lora.family : isAgain ? "×2" : "";
    const doubts = [fitting ? say(fitting, { family: lora.family }) : "", isAgain ? say("again") : ""];
    const told = isMissing ? [say(row.name ? "missing" : "to_choose")] : lora?.error ? [lora.error] : doubts;
    name.title = [said, ...told].filter(Boolean).join("\n");
    picture.replaceChildren(...(address ? [imageAt(address)] : []));
    body?.mark(lora, address, doubts.filter(Boolean).join("\n"));
  };
  return { element, mark };
}

/** Draw a line that is not a row: one that is not understood, or a remark. */
export function drawLine(view, place) {
  const { text, error } = view.entries[place];
  const element = html("div", `iteris-row ${error ? "iteris-unread" : "iteris-remark"}`);
  element.role = "listitem";
  element.dataset.place = place;
  const field = html("input");
  field.value = text;
  field.spellcheck = false;
  field.title = error ? view.say(error.kind, { part: error.part }) : view.say("remark");
  field.ariaLabel = field.title;
  field.addEventListener("input", () => view.writeLine(place, field.value));
  field.addEventListener("change", () => view.readLine(place));
  const head = html("div", "iteris-row-head");
  head.append(
    field,
    button("iteris-out", "×", view.say("out"), () => view.remove(place)),
  );
  element.append(head);
  if (error) element.append(html("div", "iteris-why", field.title));
  return { element, mark: () => {} };
}

function drawBody(view, place) {
  const { say } = view;
  const { row } = view.entries[place];
  const element = html("div", "iteris-row-body");
  const warning = html("div", "iteris-fitting");
  const chips = html("div", "iteris-triggers");
  const large = html("span", "iteris-large");
  const top = html("div", "iteris-row-top");
  top.append(large, chips);
  const prompts = html("textarea", "iteris-prompts");
  prompts.value = row.prompts.join("\n");
  prompts.rows = Math.min(8, Math.max(2, row.prompts.length + 1));
  prompts.placeholder = say("prompts");
  prompts.ariaLabel = say("prompts_of");
  prompts.spellcheck = false;
  const written = {
    get value() {
      return prompts.value;
    },
    set value(text) {
      prompts.value = text;
      view.write(place, { prompts: lines(text) });
      view.keep();
    },
  };
  let shown;
  prompts.addEventListener("input", () => {
    view.write(place, { prompts: lines(prompts.value) });
    shown?.mark();
  });
  prompts.addEventListener("change", view.keep);
  const fields = html("div", "iteris-fields");
  const clip = numberField(
    row.clip,
    -MOST,
    say("clip"),
    (strength) => view.write(place, { clip: strength }),
    view.keep,
  );
  fields.append(
    labelled(
      say("priority"),
      say("priority_title"),
      numberField(row.priority, 0, say("priority"), (priority) => view.write(place, { priority }), view.keep),
    ),
    labelled(say("clip"), say("clip_title"), clip),
    labelled(say("more"), say("more_title"), moreField(view, place)),
  );
  element.append(warning, top, prompts, fields);
  const mark = (lora, address, told) => {
    warning.textContent = told;
    large.replaceChildren(...(address ? [imageAt(address)] : []));
    shown = drawChips(chips, lora, written, say);
  };
  return { element, mark, clip };
}

function labelled(text, title, field) {
  const label = html("label", "", text);
  label.title = title;
  label.append(field);
  return label;
}

function numberField(value, least, name, changed, after) {
  const field = html("input", "iteris-number");
  Object.assign(field, { type: "number", step: STEP, min: least, max: MOST, value, ariaLabel: name, title: name });
  field.addEventListener("input", () => {
    const number = field.valueAsNumber;
    const fits = number >= least && number <= MOST;
    field.classList.toggle("iteris-wrong", !fits);
    if (fits) changed(number);
  });
  if (after) field.addEventListener("change", after);
  return field;
}

/** Return a field for what a row says in words: its name among others, its blocks, and layers left out. */
function moreField(view, place) {
  const { called, blocks, without } = view.entries[place].row;
  const plain = { name: "x", model: 1, clip: 1, kind: "", priority: 1, prompts: [] };
  const field = html("input", "iteris-more");
  field.value = writtenRow({ ...plain, called, blocks, without })
    .replace("<lora:x:1>", "")
    .trim();
  field.placeholder = 'called="a sks dog" blocks=… without=…';
  field.spellcheck = false;
  field.addEventListener("input", () => {
    const [{ row: found }] = readRows(`<lora:x> ${field.value}`);
    const fits = found && !found.kind && found.priority === 1 && !found.prompts.length;
    field.classList.toggle("iteris-wrong", !fits);
    if (fits) view.write(place, { called: found.called, blocks: found.blocks, without: found.without });
  });
  field.addEventListener("change", view.keep);
  return field;
}
