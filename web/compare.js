// Compare's pictures: two of a row, one over the other with a divider between them, and below them all of them, small.

import { api } from "../../scripts/api.js";
import { addPanel } from "./frame.js";
import { also } from "./graph.js";
import { button, html, tell } from "./parts.js";
import { canRecord, saveVideo } from "./wipe.js";
import { say } from "./words.js";

const HEIGHT = 460;
const WIDTH = 560; // of a new node

const addressOf = ({ filename, subfolder, type }) =>
  api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);

/** Add the pictures to a node: at first the last two of the first row, stacked and merged. */
export function addPictures(node) {
  const pictures = new Pictures(addPanel(node, "pictures", HEIGHT));
  node.setSize([Math.max(WIDTH, node.size[0]), node.size[1]]);
  also(node, "onExecuted", (output) => pictures.show(output?.iteris?.[0]?.pictures));
}

/** Return the shares of a picture as texts, such as "87 of sks_robot". */
function sharesOf(shares) {
  return Object.entries(shares ?? {}).map(([lora, share]) => say("share", { percent: Math.round(share), lora }));
}

class Pictures {
  rows = [];
  row = 0;
  sides = html("div", "iteris-sides");
  frame = html("div", "iteris-frame");
  pair = html("div", "iteris-pair");
  strip = html("div", "iteris-strip");

  constructor(element) {
    this.element = element;
    [this.left, this.right] = ["on_left", "on_right"].map((word) => {
      const side = html("div", "iteris-side");
      const select = html("select");
      select.ariaLabel = select.title = say(word);
      select.addEventListener("change", () => this.draw());
      const shares = html("div", "iteris-shares");
      shares.title = say("share_title");
      side.append(select, shares);
      this.sides.append(side);
      return { select, shares, image: html("img") };
    });
    this.divider = Object.assign(html("input"), { type: "range", step: "any", ariaLabel: say("divider") });
    this.divider.addEventListener("input", () => this.cut());
    this.pair.append(this.right.image, this.left.image, this.divider, this.buttons());
    const close = button("iteris-close", "×", say("close_full_screen"), () => document.exitFullscreen());
    this.frame.append(this.pair, this.sides, close);
    this.cut();
  }

  buttons() {
    const line = html("div", "iteris-on-pair");
    const video = button("iteris-video", say("video"), say("video_title"), async () => {
      video.disabled = true;
      video.textContent = say("video_making");
      try {
        const [left, right] = [this.left, this.right].map(({ image }) => ({ image, name: image.alt }));
        await saveVideo(left, right);
      } catch (error) {
        tell(say("video_failed"), String(error?.message ?? error));
      } finally {
        Object.assign(video, { textContent: say("video"), disabled: false });
      }
    });
    video.hidden = !canRecord();
    const full = button("iteris-full", "⛶", say("full_screen"), () => this.frame.requestFullscreen());
    full.hidden = !document.fullscreenEnabled;
    line.append(video, full);
    return line;
  }

  cut() {
    this.pair.style.setProperty("--iteris-cut", `${this.divider.value}%`);
  }

  /** Show the pictures of a run. */
  show(rows) {
    if (!rows?.length) return;
    this.rows = rows;
    this.strip.replaceChildren(...rows.flatMap((row, at) => this.lineOf(row, at)));
    this.element.replaceChildren(this.frame, this.strip);
    this.choose(0, rows[0].names.length - 2, rows[0].names.length - 1);
  }

  lineOf({ prompt, names, files }, row) {
    const line = html("div", "iteris-thumbs");
    line.append(
      ...files.map((file, place) => {
        const thumb = button("iteris-thumb", "", names[place], () => this.pick(row, place));
        Object.assign(thumb.dataset, { row, place });
        const image = Object.assign(html("img"), { src: addressOf(file), alt: "", loading: "lazy" });
        thumb.append(image, html("span", "", names[place]));
        return thumb;
      }),
    );
    return [html("div", "iteris-drawn-by", prompt), line];
  }

  /** Show a picture: the last one of a row, the merge's, on the right side, any other on the left one. */
  pick(row, place) {
    const last = this.rows[row].names.length - 1;
    const [left, right] = row === this.row ? [this.left, this.right].map(({ select }) => select.selectedIndex) : [];
    if (place === last) this.choose(row, left ?? last - 1, last);
    else this.choose(row, place, right ?? last);
  }

  choose(row, left, right) {
    this.row = row;
    for (const [{ select }, place] of [
      [this.left, left],
      [this.right, right],
    ]) {
      select.replaceChildren(...this.rows[row].names.map((name) => html("option", "", name)));
      select.selectedIndex = Math.max(0, place);
    }
    this.draw();
  }

  draw() {
    const { names, files, shares = [] } = this.rows[this.row];
    const places = [this.left, this.right].map(({ select, image, shares: below }) => {
      const place = select.selectedIndex;
      Object.assign(image, { src: addressOf(files[place]), alt: names[place] });
      below.replaceChildren(...sharesOf(shares[place]).map((text) => html("span", "", text)));
      return place;
    });
    for (const thumb of this.strip.querySelectorAll("button"))
      thumb.ariaPressed = String(
        Number(thumb.dataset.row) === this.row && places.includes(Number(thumb.dataset.place)),
      );
  }
}
