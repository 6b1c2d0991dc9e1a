// The line on a node that tells how far it is. The frontend's own would be on nodes of the same id in other workflows,
// too.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addElement, isShown, passing } from "./elements.js";
import { also } from "./graph.js";
import { heightOf } from "./heights.js";
import { html } from "./parts.js";
import { followed, shareOf, stepsOf, timeLeft, waiting } from "./progress.js";
import { nameAsRun } from "./runs.js";

const FAR = 0.5; // at a smaller scale of the canvas usual letters cannot be read
const STEP = 0.05; // of what is smaller
const FARTHEST = 0.2;
const LETTERS = 13; // pixels of the screen

let isAway = false; // the server
for (const event of ["reconnecting", "reconnected"])
  api.addEventListener(event, () => (isAway = event === "reconnecting"));

const nowInSeconds = () => performance.now() / 1000;

/** Let style sheets know where the canvas is far away, and how large letters are then that can be read. */
export function followScale() {
  let known;
  also(app.canvas, "onDrawForeground", () => {
    const { scale } = app.canvas.ds;
    const step = scale < FAR ? Math.max(FARTHEST, STEP * Math.floor(scale / STEP)) : FAR;
    if (step === known) return;
    known = step;
    document.body.classList.toggle("iteris-afar", scale < FAR);
    document.body.style.setProperty("--iteris-letters", `${LETTERS / step}px`);
  });
}

/**
 * Add the line; where the canvas is far away, it is shown over what is above it, in letters that can be read.
 *
 * @param {object} node
 * @param {(word: string, values?: object) => string} say
 * @param {object} [above] the widget above it; none: at the node's end
 * @param {(isShown: boolean) => void} [changed] called before it is shown, also where it is already, and hidden
 * @returns {() => void} what takes the line away
 */
export function addProgress(node, say, above, changed = () => {}) {
  const element = addElement(node, "progress", (shown) => heightOf(shown, 0) || 34, above, true);
  const { show, hide } = passing(node, element, (shown) => heightOf(shown, 0));
  let told; // by the server
  let end; // see `followed`
  let drawn; // what is on the page
  let isCounting = false;
  let isOther = false; // the node is not what it was in the run that is told

  const lineOf = ({ stage }, left) => {
    const place = stage.count > 1 ? say("stage", stage) : "";
    const words = { "of-other": isOther ? say("other_settings") : "", place, steps: stepsOf(told), left };
    return Object.entries(words).map(([name, text]) => text && html("span", `iteris-${name}`, text));
  };
  const draw = () => {
    const left = isAway ? say("server_away") : timeLeft(end, nowInSeconds(), say);
    const now = [told, left, isOther];
    if (now.every((each, i) => each === drawn?.[i])) return;
    drawn = now;
    const line = html("div", "iteris-stage");
    const large = html("div", "iteris-far");
    for (const each of [line, large]) each.append(...lineOf(told, left), html("div", "iteris-bar"));
    line.append(large);
    element.style.setProperty("--iteris-done", `${(100 * shareOf(told)).toFixed(1)}%`);
    element.replaceChildren(line);
  };
  const count = () => {
    isCounting = isShown(element) && node.graph?.getNodeById(node.id) === node; // or its workflow was opened anew
    if (!isCounting) return;
    draw();
    requestAnimationFrame(count);
  };
  /** Take note of the node's name as it is shown, see `workOf`. */
  const compare = async (name) => {
    const run = told.prompt_id;
    const ran = await nameAsRun(node, undefined, run);
    if (told?.prompt_id !== run) return;
    isOther = ran !== undefined && ran !== name;
    draw();
  };
  node.showIterisProgress = (detail) => {
    const isNew = detail.prompt_id !== told?.prompt_id;
    end = followed(end, detail, nowInSeconds());
    told = detail;
    if (isNew) isOther = false;
    node.compareIterisProgress = compare;
    if (isNew) node.compareIterisRun?.();
    draw();
    changed(true);
    show();
    if (!isCounting) count();
  };
  const remove = () => {
    end = told = node.compareIterisProgress = undefined;
    changed(false);
    hide();
  };
  node.showIterisWaiting = (before, run, isElsewhere) => {
    const words = before ? say("queued", { before }) : say(isElsewhere ? "running_elsewhere" : "running");
    if (before !== undefined) node.showIterisProgress({ ...waiting(words), prompt_id: run });
    else if (told?.isWaiting) remove();
  };
  return remove;
}
