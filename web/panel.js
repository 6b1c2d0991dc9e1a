// The panel of a node: how far its run is, then what it has done, or why it failed.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addPanel } from "./frame.js";
import { also, nodeAt, nodesOf } from "./graph.js";
import { html } from "./parts.js";
import { duration, expected, followed, shareOf, stepsOf, timeLeft } from "./progress.js";
import { say } from "./words.js";

const panels = new WeakMap(); // node -> its panel
const MOST_NOTES = 200;
const PAUSE = 250; // milliseconds from one look at the clock to the next
let isAway = false; // the server

const nowInSeconds = () => performance.now() / 1000;

/**
 * Add the panel to a node.
 *
 * @param {object} node
 * @param {number} height in pixels
 * @param {object} [options] see `addPanel`
 */
export function addResult(node, height, options) {
  const panel = new Panel(addPanel(node, "result", height, options));
  panels.set(node, panel);
  also(node, "onExecuted", (output) => panel.show(output));
}

class Panel {
  result = [html("div", "iteris-quiet", say("nothing"))]; // of the last run that was done
  step; // of the run that goes on, as the server tells it
  end; // see `followed`
  isCounting = false;

  constructor(element) {
    this.element = element;
    this.rest();
  }

  /** Show what a run has done. */
  show(output) {
    const result = output?.iteris?.[0];
    const texts = output?.text?.flatMap((text) => String(text).split("\n")) ?? [];
    if (result?.of) this.result = linesOf(result);
    else if (texts.length) this.result = texts.map((text) => html("div", "", text));
    this.rest();
  }

  /** Show no run, and no failure. */
  rest() {
    this.step = undefined;
    this.element.replaceChildren(...this.result);
  }

  /** Show why a run failed. */
  fail(message) {
    this.step = undefined;
    this.element.replaceChildren(html("b", "", say("failed")), html("div", "iteris-warning", message));
  }

  /** Show how far a run is. */
  follow(step) {
    this.end = followed(step.prompt_id === this.step?.prompt_id ? this.end : undefined, step, nowInSeconds());
    this.step = step;
    if (!this.isCounting) this.count();
  }

  count() {
    this.isCounting = !!this.step && this.element.isConnected;
    if (!this.isCounting) return;
    const { stage } = this.step;
    const place = stage.count > 1 ? say("stage", stage) : "";
    const left = isAway ? say("server_away") : timeLeft(this.end, nowInSeconds());
    const line = html("div", "iteris-stage");
    line.append(html("span", "", `${place}${stepsOf(this.step)}`), html("span", "iteris-left", left));
    const bar = html("div", "iteris-bar");
    bar.style.setProperty("--iteris-done", `${(100 * shareOf(this.step)).toFixed(1)}%`);
    this.element.replaceChildren(line, bar);
    setTimeout(() => this.count(), PAUSE);
  }
}

/** Return the line that says what a result is of. */
function titleOf({ rows, preset, together, size, time }) {
  const short = (strength) => String(Number(strength.toFixed(4)));
  const names = rows.map(({ name, strength }) =>
    strength === 1 ? name : say("at", { name, strength: short(strength) }),
  );
  const how = [
    preset || say("by_recipe"),
    together ? say("together") : "",
    size && size !== "as is" ? size : "",
    new Date(1000 * time).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" }),
  ];
  return [names.join(" + "), ...how.filter(Boolean)].join(", ");
}

function linesOf({ of, facts = [], notes = [], cost, files = [] }) {
  const shown = notes.toSorted((one, other) => !!other.warning - !!one.warning).slice(0, MOST_NOTES);
  return [
    html("div", "iteris-of", titleOf(of)),
    ...files.flatMap(fileLines),
    ...shown.filter(({ warning }) => warning).map(({ text }) => html("div", "iteris-warning", text)),
    ...facts.map((fact) => html("div", "", fact)),
    ...shown.filter(({ warning }) => !warning).map(({ text }) => html("div", "iteris-quiet", text)),
    ...(cost ? [html("div", "iteris-quiet", timesOf(cost))] : []),
  ];
}

function fileLines({ name, listed_as: listed, mb, ranks, words }) {
  const rank = ranks[0] === ranks[1] ? ranks[0] : ranks.join("-");
  return [
    html("b", "", listed ?? name),
    html("div", "", `${mb.toFixed(1)} MB, ${say("rank", { rank })}`),
    ...(listed ? [] : [html("div", "iteris-warning", say("unlisted"))]),
    ...(words.length ? [html("div", "", say("words", { words: words.join(", ") }))] : []),
  ];
}

function timesOf(cost) {
  const times = expected(cost).map(({ names, seconds }) =>
    say("time", { name: names.join(" = "), time: duration(seconds) }),
  );
  return `${say("merge_again")} ${times.join(" · ")}`;
}

/** Bring to the panels what the server tells of runs, and why it has refused one. */
export function followRuns() {
  const panelOf = (id) => panels.get(nodeAt(app.graph, id));
  const restAll = () => {
    for (const node of nodesOf(app.graph)) panels.get(node)?.rest();
  };
  const listen = (event, act) => api.addEventListener(event, ({ detail }) => act(detail ?? {}));
  listen("iteris.stage", (step) => panelOf(step.node)?.follow(step));
  for (const event of ["execution_start", "execution_interrupted"]) listen(event, restAll);
  listen("execution_error", ({ node_id: id, exception_message: message }) => {
    restAll();
    panelOf(id)?.fail(String(message ?? "").trim());
  });
  for (const event of ["reconnecting", "reconnected"]) listen(event, () => (isAway = event === "reconnecting"));
  let shown; // what the server has refused is no event, but the canvas is drawn anew
  also(app.canvas, "onDrawForeground", () => {
    if (app.lastNodeErrors === shown) return;
    shown = app.lastNodeErrors;
    for (const [id, { errors = [] }] of Object.entries(shown ?? {}))
      panelOf(id)?.fail(errors.map(({ message, details }) => details || message).join("\n"));
  });
}
