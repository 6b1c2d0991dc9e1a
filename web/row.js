// One row of the LoRAs to merge: a line, and below it what is seen when it is opened.

import { drawChips } from "./chips.js";
import { noteChange } from "./frame.js";
import { numberField } from "./number_field.js";
import { button, html, imageAt, sayMade, withFolder } from "./parts.js";
import { face, peek } from "./peek.js";
import { drag } from "./row_drag.js";
import { MOST, calledAs, furtherIn, furtherWords } from "./rows_text.js";
import { isUnnamed, lacksWords, lines, madeOf, needed } from "./triggers.js";
import { say } from "./words.js";

const REST = 500; // milliseconds after a key, before it is said what is wrong
const EXAMPLES = { subject: "a photo of {trigger}", style: "a landscape, {trigger}" };
const WRITTEN = { subject: "a photo of sks dog", style: "a landscape in ink style" }; // where a file names no words
const NAMES = { subject: 'called="a sks cat"', style: 'called="in zwx style"' };

/**
 * Draw a row.
 *
 * @param {object} view the rows; see `rows.js`
 * @param {number} place of the row among its entries
 * @returns {{element: HTMLElement, mark: (known: object) => void}} `mark` is to be called when something is known of its
 *   file: `lora` (answer of `/iteris/lora`, or null), `isMissing`, `isNamesake` (see `namesakes`), `fitting` (see
 *   `strangers`), `isAgain` (see `repeated`), `picture` (an address) and `refused`: why the server would not run it
 */
export function drawRow(view, place) {
  const { row, isOff, isOpen } = view.entries[place];
  const body = isOpen ? drawBody(view, place, () => showIdle()) : undefined;
  const element = html("div", `iteris-row${isOff ? " iteris-off" : ""}`);
  element.role = "listitem";
  element.dataset.place = place;
  const head = html("div", "iteris-row-head");
  const grip = button("iteris-grip", "⠿", say("move"), () => {});
  grip.addEventListener("pointerdown", (event) => drag(view, event, place));
  grip.addEventListener("keydown", (event) => {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    event.stopPropagation();
    view.move(place, by);
  });
  const toggle = button("iteris-toggle", "", say("use"), ({ shiftKey, altKey }) =>
    shiftKey || altKey ? view.switchAll(!isOff) : view.edit(place, {}, !isOff),
  );
  toggle.role = "switch";
  toggle.ariaChecked = String(!isOff);
  let idle = []; // why it is left out though it is switched on
  let lacking = []; // what its prompts lack
  const said = row.name || say(row.kind ? `no_${row.kind}` : "no_file");
  const name = button("iteris-lora", "", said, () => view.chooseFile(name, place));
  name.removeAttribute("title"); // it is told beside the node
  let file = { name: said, doubts: [] };
  peek(name, view.element, () => face({ ...file, doubts: [...idle, ...lacking, ...file.doubts] }));
  const badge = html("span", "iteris-family");
  const picture = html("span", "iteris-picture");
  const line = withFolder(said, view.ownNames());
  name.append(picture, line, badge);
  let likely = ""; // the file's kind, if something tells
  const kind = button("iteris-kind", "", say("kind"), () => {
    const kind = (row.kind || likely) === "subject" ? "style" : "subject";
    view.edit(place, { kind, called: calledAs(kind, view.entries[place].row.called) });
  });
  let known; // of the file
  const showKind = () => {
    const isOpenQuestion = !isOff && !!row.name && !!known && !known.error && !(row.kind || likely);
    kind.textContent = `${say(row.kind || likely || "subject")}${isOpenQuestion ? "?" : ""}`;
    kind.title = say(isOpenQuestion ? "kind_open" : row.kind ? "kind" : "kind_guessed");
    kind.classList.toggle("iteris-unsaid", !row.kind);
    kind.classList.toggle("iteris-wanted", isOpenQuestion);
  };
  let isBoth = false; // the strength is that on the text encoder, too
  const strength = numberField(
    row.model,
    -MOST,
    say("strength_of"),
    (model) => {
      view.write(place, isBoth ? { model, clip: model } : { model });
      if (isBoth) body?.clip.show(model);
      showIdle();
    },
    noteChange,
  );
  for (const start of ["focus", "pointerdown"])
    strength.addEventListener(start, () => {
      if (start !== "focus" && document.activeElement === strength) return; // in the middle of a number they may meet
      const { row: now } = view.entries[place];
      isBoth = now.clip === now.model;
    });
  strength.addEventListener("keydown", ({ key, shiftKey, ctrlKey, metaKey }) => {
    if (key !== "Enter" || ctrlKey || metaKey) return;
    const column = [...view.list.querySelectorAll(".iteris-row-head > .iteris-number")];
    column[column.indexOf(strength) + (shiftKey ? -1 : 1)]?.focus(); // as in a table
  });
  const showIdle = () => {
    const { model, clip } = view.entries[place].row;
    idle = isOff || model || clip ? [] : [say("idle")];
    element.classList.toggle("iteris-idle", idle.length > 0);
    toggle.title = [...idle, say("use")].join("\n");
    if (!model) strength.title = [strength.ariaLabel, ...idle].join("\n");
  };
  showIdle();
  const opens = say("open");
  const opener = button("iteris-opener", isOpen ? "▾" : "▸", opens, () => view.open(place, !isOpen));
  opener.ariaExpanded = String(!!isOpen);
  const clip = html("span", "iteris-clip", row.clip === row.model || isOpen ? "" : `/ ${row.clip}`);
  clip.title = `${say("clip")}: ${row.clip}`;
  let need; // what only the user can write
  const needs = button("iteris-needs", "", "", () => view.openAt(place, `iteris-${need.part}`));
  head.append(
    grip,
    toggle,
    name,
    needs,
    kind,
    strength,
    clip,
    opener,
    button("iteris-out", "×", say("out"), () => view.remove(place)),
  );
  element.append(head);
  if (body) {
    element.append(body.element);
    body.element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      view.close(place);
    });
  }
  showKind();
  const ask = () => {
    const { row: now } = view.entries[place];
    const own = isOpen ? [] : [furtherWords(now), now.prompts.join(" | ")].filter(Boolean);
    lacking = !isOff && lacksWords(now, known) ? [say("lacking")] : [];
    need = isOff ? undefined : needed(now, known, view.isPreview());
    element.classList.toggle("iteris-asks", !!need);
    if (need) [needs.textContent, needs.title] = [say(need.word), say(`${need.word}_title`)];
    element.classList.toggle("iteris-lacking", lacking.length > 0);
    opener.classList.toggle("iteris-further", own.length > 0);
    opener.title = [...lacking, ...own, opens].join("\n");
  };
  ask();
  body?.element.addEventListener("input", ask);
  const mark = ({ lora, isMissing, isNamesake, fitting, isAgain, picture: address, refused }) => {
    const refusal = refused.more || refused.prompts;
    known = lora;
    ask();
    likely = lora?.kind ?? "";
    showKind();
    element.classList.toggle("iteris-missing", isMissing || !!lora?.error);
    for (const each of ["odd", "unfit"]) element.classList.toggle(`iteris-${each}`, fitting === each);
    element.classList.toggle("iteris-refused", !!refusal);
    element.classList.toggle("iteris-again", isAgain);
    element.classList.toggle("iteris-namesake", isNamesake);
    badge.textContent = isMissing && row.name ? say("not_found") : fitting ? lora.family : isAgain ? "×2" : "";
    const doubts = [fitting ? say(fitting, { family: lora.family }) : "", isAgain ? say("again") : ""];
    const wrong = isMissing ? say(row.name ? "missing" : "to_choose") : (lora?.error ?? refusal);
    const told = wrong ? [wrong] : doubts;
    const isUsable = told === doubts && fitting !== "unfit";
    file = { name: said, doubts: told.filter(Boolean), isUsable, lora, picture: address };
    name.setAttribute("aria-description", file.doubts.join("\n"));
    picture.replaceChildren(...(address ? [imageAt(address)] : []));
    sayMade(line, madeOf(lora ?? {}, true));
    body?.mark(lora, address, doubts.filter(Boolean).join("\n"), refused);
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
  field.title = error ? say(error.kind, { part: error.part }) : say("remark");
  field.ariaLabel = field.title;
  field.addEventListener("input", () => view.writeLine(place, field.value));
  field.addEventListener("change", () => view.readLine(place));
  const head = html("div", "iteris-row-head");
  head.append(
    field,
    button("iteris-out", "×", say("out"), () => view.remove(place)),
  );
  element.append(head);
  if (error) element.append(html("div", "iteris-why", field.title));
  return { element, mark: () => {} };
}

/** Draw what is below the line of an open row; `changed` is called when its strength on the text encoder is another one. */
function drawBody(view, place, changed) {
  const { row } = view.entries[place];
  const element = html("div", "iteris-row-body");
  const warning = html("div", "iteris-fitting");
  const chips = html("div", "iteris-triggers");
  const large = html("span", "iteris-large");
  const top = html("div", "iteris-row-top");
  top.append(large, chips);
  const fields = html("div", "iteris-fields");
  const clip = numberField(
    row.clip,
    -MOST,
    say("clip"),
    (strength) => {
      view.write(place, { clip: strength });
      changed();
    },
    noteChange,
  );
  const write = (priority) => view.write(place, { priority });
  const priority = numberField(row.priority, 0, say("priority"), write, noteChange);
  const more = moreField(view, place);
  fields.append(
    labelled(say("priority"), say("priority_title"), priority),
    labelled(say("clip"), say("clip_title"), clip),
    labelled(say("more"), say("more_title"), more.field),
    more.why,
  );
  const prompts = promptsField(view, place);
  element.append(warning, top, prompts.field, prompts.why, fields);
  let markChips = () => {};
  let drawnOf;
  prompts.field.addEventListener("input", () => markChips());
  const mark = (lora, address, told, refused) => {
    more.mark(refused.more, lora);
    prompts.mark(refused.prompts);
    warning.textContent = told;
    large.replaceChildren(...(address ? [imageAt(address)] : []));
    const kind = row.kind || lora?.kind || "subject";
    const isAsked = needed({ prompts: [], called: "" }, lora);
    const hint = isAsked ? say("prompts_such_as", { example: WRITTEN[kind] }) : `${say("prompts")}\n${EXAMPLES[kind]}`;
    const isPreview = view.isPreview();
    prompts.field.placeholder = isPreview ? say("prompts_of") : hint;
    const drawn = JSON.stringify([lora, kind, isPreview]);
    if (drawn === drawnOf) return markChips(); // a chip that is replaced while the mouse is down misses its click
    drawnOf = drawn;
    markChips = drawChips(chips, lora, prompts.written, kind, isPreview);
  };
  return { element, mark, clip };
}

/** Return the field of a row's prompts, what writes into it as a user does, and why the server would not run them. */
function promptsField(view, place) {
  const { row } = view.entries[place];
  const field = html("textarea", "iteris-prompts");
  field.value = row.prompts.join("\n");
  field.rows = Math.min(8, Math.max(2, row.prompts.length + 1));
  field.ariaLabel = say("prompts_of");
  field.spellcheck = false;
  const written = {
    get value() {
      return field.value;
    },
    set value(text) {
      field.value = text;
      field.dispatchEvent(new Event("input", { bubbles: true }));
      noteChange();
    },
  };
  field.addEventListener("input", () => view.write(place, { prompts: lines(field.value) }));
  field.addEventListener("change", () => {
    noteChange();
    view.learn();
  });
  const why = html("div", "iteris-why");
  const mark = (refusal = "") => {
    why.textContent = refusal;
    field.classList.toggle("iteris-wrong", !!refusal);
  };
  return { field, written, why, mark };
}

function labelled(text, title, field) {
  const label = html("label", "", text);
  label.title = title;
  label.append(field);
  return label;
}

/**
 * Return a field for what a row says in words: its name among others, its blocks, and layers left out; and below it why
 * the server would not run that. It is written in any case, so that the row is what is seen.
 */
function moreField(view, place) {
  const field = html("input", "iteris-more");
  const why = html("div", "iteris-why");
  let [unread, refusal] = ["", ""];
  let lora; // what is known of the file
  let waiting;
  const unnamed = () => {
    const { row, isOff } = view.entries[place];
    if (isOff || !isUnnamed(row, lora, view.isPreview())) return "";
    return say("unnamed", { example: NAMES[row.kind || lora.kind || "subject"] });
  };
  const mark = () => {
    why.textContent = refusal ? unread || refusal : unnamed();
    field.classList.toggle("iteris-wrong", !!why.textContent);
  };
  field.value = furtherWords({ ...view.entries[place].row, priority: 1 });
  field.placeholder = say("more_of");
  field.spellcheck = false;
  field.addEventListener("input", () => {
    const { error, ...found } = furtherIn(field.value);
    unread = error ? say("unread_more", { what: say(error.kind, { part: error.part }) }) : "";
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      mark();
      view.learn();
    }, REST);
    view.write(place, found);
  });
  field.addEventListener("change", noteChange);
  return {
    field,
    why,
    mark(told, known) {
      [refusal, lora] = [told, known];
      mark();
    },
  };
}
