// Pieces of HTML that our parts are made of.

import { app } from "../../scripts/app.js";
import { pieces } from "./names.js";

export const EDGE = 4; // pixels from the page's ends
const INNERMOST = /^(.*[\\/])(.*)$/s; // of folders

/** Return an element with a text. */
export function html(tag, className = "", text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

/** Return a text in one line, in pieces as those of `pieces`. */
function cut(className, parts) {
  const element = html("span", className);
  const shown = parts.map((part, at) => part && html("span", at % 2 ? "iteris-end" : "iteris-start", part));
  element.append(...shown.filter(Boolean));
  return element;
}

/**
 * Return what a file is called, and after it its folder, which gives way first where there is little room, see
 * `withFolder`. Then the name gives way, but for what tells it from `others`.
 */
export function fileName(className, name, others) {
  const [, folder, own] = name.match(/^(?:(.*)[\\/])?(.*)$/s);
  const element = cut(className, pieces(own, others));
  return folder ? [element, cut("iteris-folder", folder.match(INNERMOST)?.slice(1) ?? [folder])] : [element];
}

/** Return a file's name in one line, with its folder where at least its beginning has room. */
export function withFolder(name, others) {
  const line = html("span", "iteris-with-folder");
  line.append(...fileName("iteris-called", name, others));
  return line;
}

/** Say after a file's name, once it is known, what it is made of, see `madeOf`: each part has as much room. */
export function sayMade(line, made) {
  line.querySelector(".iteris-made")?.remove();
  if (!made) return;
  const said = html("span", "iteris-made");
  said.append(...made.split("\n").map((part) => html("span", "", part)));
  line.append(said);
}

/** Return an image that takes itself away if there is none at its address. */
export function imageAt(address, loading = "eager") {
  const image = html("img");
  image.alt = "";
  image.loading = loading;
  image.src = address;
  image.addEventListener("error", () => image.remove());
  return image;
}

/** Return a button outside any form; its title is also its name where it shows a sign only. */
export function button(className, text, title, act) {
  const element = html("button", className, text);
  element.type = "button";
  element.title = title;
  if (!/\p{L}/u.test(text)) element.ariaLabel = title;
  element.addEventListener("click", act);
  return element;
}

/** Return whether this browser shows boxes above the page: Safari 16 does not. */
export const canPopUp = () => "showPopover" in HTMLElement.prototype;

/**
 * Put a box after a place of the page along an axis, or before it where that has more room, inside the page.
 *
 * @param {HTMLElement} box
 * @param {number} axis 0: at its right or left, 1: below or above it
 * @param {DOMRect} place
 * @param {number} gap between them
 * @param {number} across where the box begins on the other axis
 */
export function putBeside(box, axis, place, gap, across) {
  const pages = [innerWidth, innerHeight];
  const sizes = [box.offsetWidth, box.offsetHeight];
  const [before, after] = [
    ["left", "right"],
    ["top", "bottom"],
  ][axis].map((edge) => place[edge]);
  const rooms = [before, pages[axis] - after].map((room) => room - gap - EDGE);
  const isAfter = sizes[axis] <= rooms[1] || rooms[0] <= rooms[1];
  const at = [across, across].with(axis, isAfter ? after + gap : before - gap - sizes[axis]);
  const [left, top] = at.map((start, i) => `${Math.max(EDGE, Math.min(start, pages[i] - sizes[i] - EDGE))}px`);
  Object.assign(box.style, { left, top });
}

/** Tell something in a corner of the page, for as long as it takes to read it. */
export function tell(summary, detail) {
  app.extensionManager?.toast?.add({ severity: "info", summary, detail, life: 2000 + 50 * detail.length });
}
