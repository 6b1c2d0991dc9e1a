// A choice among many names: a field to search in, the names that hold all its words, and the picture of one of them.

import { pictureOf } from "./loras.js";
import { html, imageAt } from "./parts.js";
import { canName, matching, nameOf } from "./rows_text.js";

const MOST = 200; // names in the list at a time
const REST = 80; // milliseconds on a name, before its picture is asked for

/**
 * Let the user choose a name. Escape, and a click elsewhere, choose none. A name that no row can have is refused.
 *
 * @param {HTMLElement} anchor below which the choice opens, and which gets the focus back
 * @param {string[]} names
 * @param {(word: string, values?: object) => string} say
 * @param {(name: string) => void} chosen
 */
export function choose(anchor, names, say, chosen) {
  const box = html("div", "iteris-choice");
  const field = html("input", "iteris-search");
  const list = html("div", "iteris-names");
  const picture = html("div", "iteris-seen");
  const rest = html("div", "iteris-quiet");
  let found = [];
  let at = 0;
  let seen; // the name whose picture is shown
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
  const mark = () => {
    [...list.children].forEach((option, place) => (option.ariaSelected = String(place === at)));
    field.setAttribute("aria-activedescendant", list.children[at]?.id ?? "");
    see(found[at]);
  };
  const search = () => {
    found = matching(names, field.value);
    at = 0;
    list.replaceChildren(
      ...found.slice(0, MOST).map((name, place) => {
        const option = html("div", "iteris-option", nameOf(name));
        option.role = "option";
        option.id = `${list.id}-${place}`;
        option.title = name;
        option.addEventListener("click", () => take(name));
        option.addEventListener("pointermove", ({ movementX, movementY }) => {
          // a list that moves below the pointer is not pointed at
          if (at === place || !(movementX || movementY)) return;
          at = place;
          mark();
        });
        return option;
      }),
    );
    rest.textContent =
      found.length > MOST ? say("more_names", { count: found.length - MOST }) : found.length ? "" : say("no_names");
    mark();
  };
  const keys = {
    ArrowDown: () => (at = Math.min(at + 1, list.childElementCount - 1)),
    ArrowUp: () => (at = Math.max(at - 1, 0)),
    Enter: () => found.length && take(found[at]),
  };
  field.addEventListener("input", search);
  box.addEventListener("keydown", (event) => {
    event.stopPropagation(); // they are not for the canvas
    if (!keys[event.key] || event.isComposing) return;
    event.preventDefault();
    keys[event.key]();
    list.children[at]?.scrollIntoView({ block: "nearest" });
    mark();
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
  document.body.append(box);
  box.showPopover();
  search();
  place(box, anchor.getBoundingClientRect());
  field.focus();
}

/** Put a box below a place of the page, or above it where there is more room, and inside the page. */
function place({ style, offsetWidth, offsetHeight }, { left, top, bottom }) {
  const isBelow = bottom + offsetHeight <= innerHeight || innerHeight - bottom >= top;
  style.left = `${Math.max(4, Math.min(left, innerWidth - offsetWidth - 4))}px`;
  const y = isBelow ? Math.min(bottom + 2, innerHeight - offsetHeight - 4) : top - offsetHeight - 2;
  style.top = `${Math.max(4, y)}px`;
}
