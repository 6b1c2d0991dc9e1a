// One row of the LoRAs to merge: a line, and below it what is seen when it is opened.

import { readGroups, writtenGroups } from "./blocks.js";
import { drawAbsent, draw as drawChips } from "./chips.js";
import { fit } from "./heights.js";
import { numberField } from "./number_field.js";
import { button, copied, html, imageAt, sayMade, tell, withFolder } from "./parts.js";
import { face, peek } from "./peek.js";
import { promptAfter } from "./prompt_field.js";
import { drag } from "./row_drag.js";
import { MOST, calledAs, furtherIn, furtherWords, nameOf, ownName } from "./rows_text.js";
import { isUnnamed, lacksWords, lines, madeOf, needed } from "./triggers.js";
import { isMerge } from "./prompt_graph.js";

const REST = 500; // milliseconds after a key, before it is said what is wrong
const EXAMPLES = { subject: "a photo of {trigger}", style: "a landscape, {trigger}" };
const WRITTEN = { subject: "a photo of sks dog", style: "a landscape in ink style" }; // where a file names no words
const NAMES = { subject: 'called="a sks cat"', style: 'called="in zwx style"' };

/**
 * Draw a row.
 *
 * @param {object} view the rows; see `rows.js`
 * @param {number} place of the row among its entries
 * @returns {{element: HTMLElement, mark: (known: object) => void, lack: (absent: string[]) => void}} `mark` is to be called when something is known of
 *   its file:
 *   `lora` (answer of `/iteris/lora`, or null), `isMissing`, `isNamesake` (see `namesakes`), `fitting` (see
 *   `strangers`), `isAgain` (see `repeated`), `within` (see there), `picture` (an address) and `refused` (see `refusedOf`)
 */
export function drawRow(view, place) {
  const { say } = view;
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
  peek(name, view.element, () => face({ ...file, doubts: [...idle, ...lacking, ...file.doubts] }, say));
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
    const isOpenQuestion = isMeasured(view) && !isOff && !!row.name && !!known && !known.error && !(row.kind || likely);
    kind.textContent = `${say(row.kind || likely || "subject")}${isOpenQuestion ? "?" : ""}`;
    kind.title = say(isOpenQuestion ? "kind_open" : row.kind ? "kind" : "kind_guessed");
    kind.classList.toggle("iteris-unsaid", !row.kind);
    kind.classList.toggle("iteris-wanted", isOpenQuestion);
  };
  let isBoth = false; // the strength is that on the text encoder, too
  const strength = numberField(
    row.model,
    -MOST,
    say,
    say(isMeasured(view) ? "strength_of" : "strength_loader"),
    (model) => {
      view.write(place, isBoth ? { model, clip: model } : { model });
      if (isBoth) body?.clip.show(model);
      showIdle();
    },
    view.keep,
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
  const opens = say(isMeasured(view) ? "open" : "open_loader");
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
    ...(isMeasured(view) ? [kind] : []),
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
    const own = isOpen ? [] : [furtherWords(now), isMeasured(view) ? now.prompts.join(" | ") : ""].filter(Boolean);
    lacking = isMeasured(view) && !isOff && lacksWords(now, known) ? [say("lacking")] : [];
    need = isMeasured(view) && !isOff ? needed(now, known, view.isPreview()) : undefined;
    element.classList.toggle("iteris-asks", !!need);
    if (need) [needs.textContent, needs.title] = [say(need.word), say(`${need.word}_title`)];
    element.classList.toggle("iteris-lacking", lacking.length > 0);
    opener.classList.toggle("iteris-further", own.length > 0);
    opener.title = [...lacking, ...own, opens].join("\n");
  };
  ask();
  body?.element.addEventListener("input", ask);
  const absence = html("div", "iteris-absent");
  /** Show the words of its LoRAs that the prompt lacks, a text for each LoRA. */
  const lack = (absent) => {
    drawAbsent(absence, absent, promptOfLoader(view), say, say("chip_prompt"), (isByKey) => {
      view.compareWithPrompt();
      if (isByKey) name.focus(); // the chip is gone
    });
    // an open row has them among its chips
    if (absent.length && !body) head.after(absence);
    else absence.remove();
  };
  const mark = ({ file: path, lora, isMissing, isNamesake, fitting, isAgain, within, picture: address, refused }) => {
    const refusal = refused.more || refused.prompts;
    known = lora;
    ask();
    likely = lora?.kind ?? "";
    showKind();
    element.classList.toggle("iteris-missing", isMissing || !!lora?.error);
    for (const each of ["odd", "unfit"]) element.classList.toggle(`iteris-${each}`, fitting === each);
    element.classList.toggle("iteris-refused", !!refusal);
    element.classList.toggle("iteris-again", isAgain || !!within);
    element.classList.toggle("iteris-namesake", isNamesake);
    badge.textContent =
      isMissing && row.name ? say("not_found") : fitting ? lora.family : isAgain || within ? "×2" : "";
    const called = within && { lora: calledOf(within.lora), merge: calledOf(within.other) };
    const doubts = [
      fitting ? say(fitting, { family: lora.family }) : "",
      isAgain ? say("again") : within ? say("within", called) : "",
    ];
    const wrong = isMissing ? say(row.name ? "missing" : "to_choose") : (lora?.error ?? refusal);
    const told = wrong ? [wrong] : doubts;
    const isUsable = told === doubts && fitting !== "unfit";
    file = { name: said, doubts: told.filter(Boolean), isUsable, lora, picture: address };
    name.setAttribute("aria-description", file.doubts.join("\n"));
    picture.replaceChildren(...(address ? [imageAt(address)] : []));
    sayMade(line, within && within.lora === path ? say("already_in", called) : madeOf(lora ?? {}, say, true));
    body?.mark(lora, address, doubts.filter(Boolean).join("\n"), refused);
  };
  return { element, mark, lack };
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
  return { element, mark: () => {}, lack: () => {} };
}

const calledOf = (file) => ownName(nameOf(file));

/** Return whether prompts are for the measuring of a merge; a plain loader has no use for them. */
const isMeasured = (view) => isMerge(view.node);

/** Draw what is below the line of an open row; `changed` is called when its strength on the text encoder is another one. */
function drawBody(view, place, changed) {
  const { say } = view;
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
    say,
    say("clip"),
    (strength) => {
      view.write(place, { clip: strength });
      changed();
    },
    view.keep,
  );
  const priority = () =>
    numberField(row.priority, 0, say, say("priority"), (priority) => view.write(place, { priority }), view.keep);
  const blocks = blocksFields(
    view,
    place,
    () => more.show(),
    () => document.activeElement === more.field,
  );
  const more = moreField(view, place, () => blocks.show());
  fields.append(
    ...(isMeasured(view) ? [labelled(say("priority"), say("priority_title"), priority())] : []),
    labelled(say("clip"), say("clip_title"), clip),
    blocks.element,
    labelled(say("more"), say(isMeasured(view) ? "more_title" : "more_title_loader"), more.field),
    more.why,
  );
  const prompts = isMeasured(view) ? promptsField(view, place) : undefined;
  element.append(warning, top, ...(prompts ? [prompts.field, prompts.why] : []), fields);
  let shown;
  chips.addEventListener("pointerenter", () => shown?.mark()); // the text may be another one by now
  prompts?.field.addEventListener("input", () => shown?.mark());
  const mark = (lora, address, told, refused) => {
    more.mark(refused.more, lora);
    prompts?.mark(refused.prompts);
    warning.textContent = told;
    large.replaceChildren(...(address ? [imageAt(address)] : []));
    const kind = row.kind || lora?.kind || "subject";
    const isAsked = needed({ prompts: [], called: "" }, lora);
    const hint = isAsked ? say("prompts_such_as", { example: WRITTEN[kind] }) : `${say("prompts")}\n${EXAMPLES[kind]}`;
    const isPreview = view.isPreview();
    if (prompts) prompts.field.placeholder = isPreview ? say("prompts_of") : hint;
    const written = prompts?.written ?? promptOfLoader(view);
    const how = { isMeasured: isMeasured(view), isPreview };
    shown = drawChips(chips, lora, written, say, kind, () => fit(view.node), how);
    if (lora?.merged_from?.length)
      chips.append(
        button("iteris-apart iteris-chip", say("apart"), say("apart_title"), () => view.takeApart(place, lora.name)),
      );
    blocks.show(lora?.blocks);
  };
  return { element, mark, clip };
}

/** Return the field of a row's prompts, what writes into it as a user does, and why the server would not run them. */
function promptsField(view, place) {
  const { say } = view;
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
      view.keep();
    },
  };
  field.addEventListener("input", () => view.write(place, { prompts: lines(field.value) }));
  field.addEventListener("change", () => {
    view.keep();
    view.learn();
  });
  const why = html("div", "iteris-why");
  const mark = (refusal = "") => {
    why.textContent = refusal;
    field.classList.toggle("iteris-wrong", !!refusal);
  };
  return { field, written, why, mark };
}

/** Return what writes into the prompt that a loader's CLIP leads to, or copies where there is none. */
function promptOfLoader(view) {
  return {
    get value() {
      return promptAfter(view.node)?.value ?? "";
    },
    set value(text) {
      const field = promptAfter(view.node);
      if (!field) {
        copied(text).then((isCopied) => tell(view.say(isCopied ? "copied" : "not_copied"), text));
        return;
      }
      field.value = text;
      field.callback?.(text);
      view.keep();
    },
  };
}

function labelled(text, title, field) {
  const label = html("label", "", text);
  label.title = title;
  label.append(field);
  return label;
}

/**
 * Return a strength for each group of the file's blocks, once it is known which there are: `show` draws them, where the
 * row's block weights say no more than that; what `isWriting` is for would jump if they went meanwhile.
 */
function blocksFields(view, place, changed, isWriting) {
  const element = html("span", "iteris-blocks");
  let groups = [];
  const show = (known = groups) => {
    groups = known;
    if (element.contains(document.activeElement)) return; // one of them is being written
    const strengths = readGroups(view.entries[place].row.blocks, groups);
    if (!strengths && isWriting()) return;
    element.replaceChildren(
      ...(strengths?.length ? [html("span", "", view.say("blocks"))] : []),
      ...(strengths ?? []).map((strength, at) => {
        const name = groups[at];
        const write = (number) => {
          strengths[at] = number;
          view.write(place, { blocks: writtenGroups(strengths, groups) });
          changed();
        };
        const field = numberField(strength, -MOST, view.say, view.say("block", { name }), write, view.keep);
        return labelled(name, view.say("block_title", { name }), field);
      }),
    );
  };
  return { element, show };
}

/**
 * Return a field for what a row says in words: its name among others, its blocks, and layers left out; and what stands
 * below it: why the server would not run that; it is written in any case, so that the row is what is seen.
 */
function moreField(view, place, changed) {
  const { say } = view;
  const field = html("input", "iteris-more");
  const why = html("div", "iteris-why");
  let [unread, refusal] = ["", ""];
  let lora; // what is known of the file
  let waiting;
  const unnamed = () => {
    const { row, isOff } = view.entries[place];
    if (!isMeasured(view) || isOff || !isUnnamed(row, lora, view.isPreview())) return "";
    return say("unnamed", { example: NAMES[row.kind || lora.kind || "subject"] });
  };
  const mark = () => {
    why.textContent = refusal ? unread || refusal : unnamed();
    field.classList.toggle("iteris-wrong", !!why.textContent);
  };
  const show = () => {
    field.value = furtherWords({ ...view.entries[place].row, priority: 1 });
    unread = "";
  };
  show();
  field.placeholder = say(isMeasured(view) ? "more_of" : "more_of_loader");
  field.spellcheck = false;
  field.addEventListener("input", () => {
    const { error, ...found } = furtherIn(field.value);
    unread = error ? say("unread_more", { what: say(error.kind, { part: error.part }) }) : "";
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      mark();
      fit(view.node);
      view.learn();
    }, REST);
    view.write(place, found);
    changed();
  });
  field.addEventListener("change", view.keep);
  field.addEventListener("blur", () => changed());
  return {
    field,
    why,
    show,
    mark(told, known) {
      [refusal, lora] = [told, known];
      mark();
    },
  };
}
