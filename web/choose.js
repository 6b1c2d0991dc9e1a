// A choice among many files: a field to search in, the files whose names hold all its words, each with its picture, and
// the picture of one of them large. Files for another model than the one that is connected are left out, once that is
// known of them.

import { aboutLora, pictureOf } from "./loras.js";
import { button, fileName, html, imageAt } from "./parts.js";
import { canName, matching, nameOf } from "./rows_text.js";

const MOST = 200; // names in the list at a time
const AT_ONCE = 8; // files that the server is asked about
const REST = 80; // milliseconds on a name, before its picture is shown large
let withOthers = false; // files for other models, until the page is closed

/**
 * Let the user choose a name. Escape, and a click elsewhere, choose none. A name that no row can have is refused.
 *
 * @param {HTMLElement} anchor below which the choice opens, and which gets the focus back
 * @param {object} offer
 * @param {string[]} offer.names
 * @param {string[]} offer.fits families whose LoRAs fit the model; none: that is not known, and all are listed
 * @param {string} [offer.now] the name that is chosen now
 * @param {(word: string, values?: object) => string} say
 * @param {(name: string) => void} chosen
 */
export function choose(anchor, { names, fits, now }, say, chosen) {
  const box = html("div", "iteris-choice");
  const field = html("input", "iteris-search");
  const list = html("div", "iteris-names");
  const picture = html("div", "iteris-seen");
  const rest = html("div", "iteris-quiet");
  const options = new Map(); // name -> its element
  const families = new Map(); // name -> what its LoRA is for, as far as that was asked
  const broken = new Set(); // names of files that cannot be read
  const isOther = (name) => !!families.get(name) && !fits.includes(families.get(name));
  let found = [];
  let marked; // a name
  let seen; // the name whose picture is shown large
  let isPointed = false; // the list, by a pointer that has moved there
  let asking; // the last question, which ends those before it
  box.popover = "auto";
  list.role = "listbox";
  list.id = `iteris-names-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
  field.placeholder = field.ariaLabel = say("search");
  field.role = "combobox";
  field.ariaExpanded = "true";
  field.setAttribute("aria-controls", list.id);
  const take = (name) => {
    if (!canName(name)) {
      rest.textContent = say("no_row_name", { name });
      return;
    }
    box.hidePopover();
    chosen(name);
  };
  const see = async (name) => {
    if (seen === name) return;
    seen = name;
    picture.replaceChildren();
    await new Promise((go) => setTimeout(go, REST)); // the server is not asked about names that are only passed
    const address = seen === name && name && (await pictureOf(name));
    if (seen === name && address) picture.replaceChildren(imageAt(address));
  };
  const mark = (name) => {
    marked = name;
    for (const option of list.children) option.ariaSelected = String(option === options.get(name));
    field.setAttribute("aria-activedescendant", options.get(name)?.id ?? "");
    see(name);
  };
  const optionOf = (name) => {
    if (options.has(name)) return options.get(name);
    const option = html("div", "iteris-option");
    option.append(html("span", "iteris-picture"), ...fileName("iteris-called", nameOf(name)));
    option.role = "option";
    option.id = `${list.id}-${options.size}`;
    option.title = name;
    option.addEventListener("click", () => take(name));
    option.addEventListener("pointermove", ({ movementX, movementY }) => {
      // a list that moves below the pointer is not pointed at
      if (marked !== name && (movementX || movementY)) mark(name);
    });
    options.set(name, option);
    return option;
  };
  /** Return whether a name stays where the pointer is, though its file has turned out to be for another model. */
  const isHeld = (name) => isPointed && options.get(name)?.parentElement === list;
  /** List what is found; what is listed already stays where it is. */
  const show = () => {
    const all = matching(names, field.value);
    found = all.filter((name) => withOthers || !isOther(name) || isHeld(name));
    const wanted = found.slice(0, MOST).map(optionOf);
    for (const option of [...list.children]) if (!wanted.includes(option)) option.remove();
    wanted.forEach((option, place) => {
      if (list.children[place] !== option) list.insertBefore(option, list.children[place] ?? null);
    });
    const left = found.length > MOST ? say("more_names", { count: found.length - MOST }) : "";
    rest.replaceChildren(found.length ? left : all.length ? shownInstead(all.length) : say("no_names"));
  };
  const shownInstead = (count) =>
    button("iteris-show-others", say("only_others", { count }), say("others"), () => {
      others.firstChild.click();
      field.focus();
    });
  /** Ask what the files that are listed are for, and whether they have a picture. */
  const learn = async () => {
    asking = {};
    const mine = asking;
    for (;;) {
      const next = found.slice(0, MOST).filter((name) => !families.has(name));
      if (!next.length) return;
      const answers = await Promise.all(
        next.slice(0, AT_ONCE).map(async (name) => [name, await aboutLora(name), await pictureOf(name)]),
      );
      for (const [name, lora, address] of answers) {
        if (families.has(name)) continue; // another question was quicker
        families.set(name, (fits.length && lora?.family) || "");
        const option = options.get(name);
        if (address) option.firstChild.append(imageAt(address));
        option.classList.toggle("iteris-broken", !!lora?.error);
        option.classList.toggle("iteris-stranger", isOther(name));
        if (lora?.error) broken.add(name);
        const doubt = isOther(name) ? say("unfit", { family: lora.family }) : undefined;
        option.title = [name, lora?.error, doubt].filter(Boolean).join("\n");
      }
      if (mine !== asking || !box.isConnected) return;
      show();
      if (!found.includes(marked) || (broken.has(marked) && marked !== now))
        mark(found.find((name) => !broken.has(name)) ?? found[0]);
    }
  };
  const search = () => {
    show();
    mark(found[0]);
    learn();
  };
  const move = (by) => found[Math.max(0, Math.min(found.indexOf(marked) + by, list.childElementCount - 1))];
  const keys = {
    ArrowDown: () => mark(move(1)),
    ArrowUp: () => mark(move(-1)),
    Enter: () => found.length && take(marked),
  };
  const others = othersSwitch(say, search);
  field.addEventListener("input", search);
  box.addEventListener("keydown", (event) => {
    event.stopPropagation(); // they are not for the canvas
    if (!keys[event.key] || event.isComposing) return;
    event.preventDefault();
    keys[event.key]();
    options.get(marked)?.scrollIntoView({ block: "nearest" });
  });
  list.addEventListener("pointermove", ({ movementX, movementY }) => {
    isPointed ||= !!(movementX || movementY);
  });
  list.addEventListener("pointerleave", () => {
    isPointed = false;
    show();
  });
  box.addEventListener("wheel", (event) => event.stopPropagation());
  box.addEventListener("toggle", ({ newState }) => {
    if (newState === "open") return;
    box.remove();
    if (anchor.isConnected) anchor.focus();
  });
  const both = html("div", "iteris-found");
  both.append(list, picture);
  box.append(field, both, rest);
  if (fits.length) box.append(others);
  document.body.append(box);
  box.showPopover();
  search();
  if (found.includes(now)) {
    mark(now);
    options.get(now)?.scrollIntoView({ block: "nearest" });
  }
  place(box, anchor.getBoundingClientRect());
  field.focus();
}

/** Return what lists files for other models, too. */
function othersSwitch(say, changed) {
  const label = html("label", "iteris-others");
  const box = html("input");
  box.type = "checkbox";
  box.checked = withOthers;
  box.addEventListener("change", () => {
    withOthers = box.checked;
    changed();
  });
  label.append(box, say("others"));
  return label;
}

/** Put a box below a place of the page, or above it where there is more room, and inside the page. */
function place({ style, offsetWidth, offsetHeight }, { left, top, bottom }) {
  const isBelow = bottom + offsetHeight <= innerHeight || innerHeight - bottom >= top;
  style.left = `${Math.max(4, Math.min(left, innerWidth - offsetWidth - 4))}px`;
  const y = isBelow ? Math.min(bottom + 2, innerHeight - offsetHeight - 4) : top - offsetHeight - 2;
  style.top = `${Math.max(4, y)}px`;
}
