// A choice among many files: a field to search in, the files whose names hold all its words, each with its picture, and
// the picture of one of them large. Files for another model than the one that is connected are left out.

import { offer } from "./fitting.js";
import { aboutLora, lastAboutLora, pictureOf } from "./loras.js";
import { button, fileName, html, imageAt } from "./parts.js";
import { canName, matching, nameOf } from "./rows_text.js";

const MOST = 200; // names in the list at a time
const AT_ONCE = 8; // files that the server is asked about
const LINE = 24; // pixels of a name in the list
const PAGE = 10; // names that the page keys go over
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
  const asked = new Set(); // names of files that the server was asked about since
  const families = new Map(); // name -> what its LoRA is for, which stays so while the list is open
  const familyOf = (name) => {
    const lora = lastAboutLora(name);
    if (!families.has(name) && lora !== undefined) families.set(name, lora?.family ?? "");
    return families.get(name);
  };
  const isWhole = (name) => !lastAboutLora(name)?.error;
  let found = []; // names that can be chosen, of which the first are listed
  let marked; // a name
  let wished = now; // to be marked once it is listed, unless the user has marked one
  let isOwn = false; // the mark, the user's
  let seen; // the name whose picture is shown large
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
    const address = seen === name && name && pictureOf(name, await aboutLora(name));
    if (seen === name && address) picture.replaceChildren(imageAt(address));
  };
  const light = (name) => {
    marked = name;
    for (const option of list.children) option.ariaSelected = String(option === options.get(name));
    field.setAttribute("aria-activedescendant", options.get(name)?.id ?? "");
    see(name);
  };
  const mark = (name) => {
    isOwn = true;
    light(name);
  };
  const optionOf = (name) => {
    if (options.has(name)) return options.get(name);
    const option = html("div", "iteris-option");
    option.append(html("span", "iteris-picture"), ...fileName("iteris-called", nameOf(name)));
    option.role = "option";
    option.id = `${list.id}-${options.size}`;
    option.addEventListener("click", () => take(name));
    option.addEventListener("pointermove", ({ movementX, movementY }) => {
      // a list that moves below the pointer is not pointed at
      if (marked !== name && (movementX || movementY)) mark(name);
    });
    options.set(name, option);
    dress(name);
    return option;
  };
  /** Show on a name what is known of its file. */
  const dress = (name) => {
    const option = options.get(name);
    const lora = lastAboutLora(name);
    const isOther = fits.length && lora?.family && !fits.includes(lora.family);
    const address = pictureOf(name, lora);
    if (option.firstChild.firstChild?.getAttribute("src") !== address)
      option.firstChild.replaceChildren(...(address ? [imageAt(address)] : []));
    option.classList.toggle("iteris-broken", !isWhole(name));
    option.classList.toggle("iteris-stranger", !!isOther);
    const doubt = isOther ? say("unfit", { family: lora.family }) : undefined;
    option.title = [name, lora?.error, doubt].filter(Boolean).join("\n");
  };
  /** List what is found, and return the names of all that may be listed. */
  const show = () => {
    const all = matching(names, field.value);
    const { offered, unread } = offer(all, withOthers ? [] : fits, familyOf, isWhole);
    found = offered;
    const wanted = found.slice(0, MOST).map(optionOf);
    for (const option of [...list.children]) if (!wanted.includes(option)) option.remove();
    wanted.forEach((option, place) => {
      if (list.children[place] !== option) list.insertBefore(option, list.children[place] ?? null);
    });
    box.classList.toggle("iteris-reading", !found.length && unread.length > 0); // said where one looks, above the names
    const more = found.length + unread.length - MOST;
    if (more > 0 && found.length >= MOST) rest.replaceChildren(say("more_names", { count: more }));
    else if (unread.length) rest.replaceChildren(say("reading"));
    else if (found.length) rest.replaceChildren();
    else rest.replaceChildren(all.length ? shownInstead(all.length) : say("no_names"));
    const best = found.includes(wished) ? wished : (found.find(isWhole) ?? found[0]);
    if (!(isOwn && found.includes(marked)) && marked !== best) {
      light(best);
      options.get(best)?.scrollIntoView({ block: "nearest" });
    }
    return [...found, ...unread].slice(0, MOST);
  };
  const shownInstead = (count) =>
    button("iteris-show-others", say("only_others", { count }), say("others"), () => {
      others.firstChild.click();
      field.focus();
    });
  /** Ask what the files that may be listed are for, and whether they have a picture: those first that wait for it. */
  const learn = async (wanted) => {
    const mine = {};
    asking = mine;
    while (mine === asking && box.isConnected) {
      const waiting = wanted.filter((name) => !asked.has(name));
      const isKnown = (name) => familyOf(name) !== undefined;
      const next = waiting.sort((one, other) => isKnown(one) - isKnown(other)).slice(0, AT_ONCE);
      if (!next.length) return;
      await Promise.all(next.map(aboutLora));
      for (const name of next) asked.add(name);
      if (mine !== asking) return;
      wanted = show();
      for (const name of next) if (options.has(name)) dress(name);
    }
  };
  const search = () => {
    isOwn = false;
    wished = undefined;
    learn(show());
  };
  const move = (by) => found[Math.max(0, Math.min(found.indexOf(marked) + by, list.childElementCount - 1))];
  const keys = {
    ArrowDown: () => mark(move(1)),
    ArrowUp: () => mark(move(-1)),
    PageDown: () => mark(move(PAGE)),
    PageUp: () => mark(move(-PAGE)),
    Enter: () => found.length && take(marked),
    Tab: (isBack) => {
      const stops = [...box.querySelectorAll("input, button")];
      stops.at((stops.indexOf(document.activeElement) + (isBack ? -1 : 1)) % stops.length).focus();
    },
  };
  const others = othersSwitch(say, search);
  field.addEventListener("input", search);
  box.addEventListener("keydown", (event) => {
    event.stopPropagation(); // they are not for the canvas
    const isButtons = event.key === "Enter" && event.target !== field;
    if (!keys[event.key] || event.isComposing || isButtons) return;
    event.preventDefault();
    keys[event.key](event.shiftKey);
    options.get(marked)?.scrollIntoView({ block: "nearest" });
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
  const wanted = show();
  if (wanted.length > found.length) both.style.height = `${names.length * LINE}px`; // so that the box does not grow
  learn(wanted);
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
