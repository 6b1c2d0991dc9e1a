// The field of a number in a row: a strength, or a priority.

import { html } from "./parts.js";
import { MOST, numberIn } from "./rows_text.js";
import { say } from "./words.js";

const STEP = 0.05;
const UNUSUAL = 3; // a strength above it
const DRAGGED = 4; // pixels to the side, for a step
const TURNED = 100; // pixels of a wheel, for a step
const NOTCH = 50; // pixels that are a step at once: those of a notch on a page that is shown at 200 %
const PAUSE = 400; // milliseconds after the last step by a key or the wheel, after which the change is done
const UNITS = [1, 40, 800]; // pixels of a wheel's units: a pixel, a line and a page

/**
 * Return a field for a number: as core's own it is dragged to the side, or clicked and written, also with the arrow keys
 * and the wheel, of which steps in a row are one change. A comma is read as a point. Escape, and what is not such a
 * number, give back what it had before.
 *
 * @param {number} value
 * @param {number} least that it may be
 * @param {string} name that it is called by
 * @param {(number: number) => void} changed at each number that is written
 * @param {() => void} [after] a change is done
 * @returns {HTMLInputElement} its `show` takes a number that is written elsewhere
 */
export function numberField(value, least, name, changed, after = () => {}) {
  const field = html("input", "iteris-number");
  Object.assign(field, { type: "text", inputMode: "decimal", role: "spinbutton", spellcheck: false, ariaLabel: name });
  Object.assign(field, { autocomplete: "off", value, ariaValueMin: least, ariaValueMax: MOST });
  let last = value;
  let before = value; // the focus came
  let turned = wheelSteps();
  let isMarked = false; // as a whole, by a focus that did not come from the mouse: the first click leaves it so
  const read = () => {
    const number = numberIn(field.value);
    const fits = number >= least && number <= MOST;
    if (fits) last = number;
    const isStrong = fits && least < 0 && Math.abs(number) > UNUSUAL;
    field.classList.toggle("iteris-wrong", !fits);
    field.classList.toggle("iteris-strong", isStrong);
    field.title = isStrong ? `${name}\n${say("strong")}` : name;
    field.ariaValueNow = fits ? number : null;
    return fits ? number : undefined;
  };
  const take = () => {
    const number = read();
    if (number !== undefined) changed(number);
  };
  const set = (number) => {
    field.value = Number(Math.min(MOST, Math.max(least, number)).toFixed(4));
    take();
  };
  let pause;
  const end = () => {
    if (pause === undefined) return;
    clearTimeout(pause);
    pause = undefined;
    after();
  };
  const step = (by) => {
    const number = numberIn(field.value);
    if (Number.isNaN(number)) return;
    set(stepped(number, by));
    clearTimeout(pause);
    pause = setTimeout(end, PAUSE);
  };
  field.addEventListener("input", () => {
    isMarked = false;
    take();
  });
  field.addEventListener("change", after);
  const giveBack = () => {
    if (field.value === String(before)) return;
    field.value = before;
    take();
    after();
  };
  field.addEventListener("focus", () => {
    read(); // which takes a mark away
    before = last;
    turned = wheelSteps();
    field.dataset.captureWheel = "true"; // or Vue nodes would hand it to the canvas
    field.select();
    isMarked = true;
  });
  field.addEventListener("blur", () => {
    end();
    delete field.dataset.captureWheel;
    const text = field.value;
    if (read() === undefined) {
      giveBack();
      field.classList.add("iteris-wrong");
      field.title = `${name}\n${say("not_number", { least, most: MOST, text })}`;
    } else field.value = last; // as it is kept: without a comma, or a "+"
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation(); // or it would close the row
      giveBack();
    }
    if (["Enter", "Escape"].includes(event.key)) field.blur(); // as the frontend's own: Enter changes nothing more
    const by = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    step(by);
    field.select(); // so that what is typed next replaces it, as before
  });
  field.addEventListener("wheel", (event) => {
    if (document.activeElement !== field) return;
    event.preventDefault();
    const by = turned(event);
    if (by) step(by);
  });
  field.addEventListener("pointerdown", (event) => event.button === 0 && drag(event));
  /** Let the number follow the pointer to the side, until it is let go; a click that does not move is to write. */
  const drag = (event) => {
    if (document.activeElement === field && !isMarked) return; // to mark what is written
    event.preventDefault();
    const start = numberIn(field.value);
    let steps = 0;
    field.setPointerCapture(event.pointerId);
    const follow = ({ clientX }) => {
      const moved = Math.trunc((clientX - event.clientX) / DRAGGED);
      if (moved === steps || Number.isNaN(start)) return;
      steps = moved;
      set(stepped(start, steps));
    };
    const release = ({ type }) => {
      stop.abort();
      if (steps) after();
      else if (type === "pointerup") field.focus();
      isMarked = false;
    };
    const stop = new AbortController();
    field.addEventListener("pointermove", follow, { signal: stop.signal });
    for (const type of ["pointerup", "pointercancel"]) field.addEventListener(type, release, { signal: stop.signal });
  };
  field.show = (number) => {
    field.value = number;
    read();
  };
  read();
  return field;
}

/** Return what takes a wheel's events, and returns steps: one a notch, which a trackpad tells in many small parts. */
export function wheelSteps() {
  let turned = 0;
  return ({ deltaY, deltaMode }) => {
    const by = deltaY * UNITS[deltaMode];
    turned += by;
    const steps = Math.trunc(-turned / TURNED) || (Math.abs(by) >= NOTCH ? -Math.sign(by) : 0);
    if (steps) turned = 0; // some notches are longer
    return steps;
  };
}

/** Return a number so many steps further, on a whole step. */
const stepped = (number, by) => (by ? Math.round(number / STEP + by) * STEP : number);
