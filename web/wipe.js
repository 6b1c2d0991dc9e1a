// A short video of two pictures with a divider that goes over them and back, to post elsewhere.

const SECONDS = 4;
const RATE = 30; // pictures a second
const MOST_SIDE = 1080;
const TYPES = ["video/mp4", "video/webm"]; // the first one plays everywhere

const typeHere = () => TYPES.find((type) => globalThis.MediaRecorder?.isTypeSupported(type));

/** Return whether this browser makes videos. */
export const canRecord = () => !!typeHere() && "captureStream" in HTMLCanvasElement.prototype;

/**
 * Let the user save the video of two pictures.
 *
 * @param {{image: HTMLImageElement, name: string}} left
 * @param {{image: HTMLImageElement, name: string}} right of the same size
 * @returns {Promise<void>} once it is made; it takes as long as it plays
 */
export async function saveVideo(left, right) {
  const canvas = document.createElement("canvas");
  const { naturalWidth: width, naturalHeight: height } = left.image;
  const scale = Math.min(1, MOST_SIDE / Math.max(width, height));
  // codecs take even sides
  [canvas.width, canvas.height] = [width, height].map((side) => 2 * Math.round((side * scale) / 2));
  draw(canvas, left, right, 0); // Firefox records no canvas before
  const recorder = new MediaRecorder(canvas.captureStream(RATE), { mimeType: typeHere(), videoBitsPerSecond: 8e6 });
  const parts = [];
  recorder.addEventListener("dataavailable", ({ data }) => parts.push(data));
  const ended = new Promise((resolve, reject) => {
    recorder.addEventListener("stop", resolve);
    recorder.addEventListener("error", ({ error }) => reject(error));
  });
  recorder.start();
  await Promise.all([ended, play((share) => draw(canvas, left, right, share)).then(() => recorder.stop())]);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(parts, { type: typeHere() }));
  link.download = `${fileName(left)} - ${fileName(right)}.${typeHere().slice(6)}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // a browser takes its time to save it
}

const fileName = ({ name }) => name.replace(/[^\p{L}\p{N}.,_-]+/gu, " ").trim() || "picture";

/** Call with a share from 0 to 1 while the video lasts. */
function play(show) {
  const begin = performance.now();
  return new Promise((resolve) => {
    const next = (now) => {
      const share = (now - begin) / (1000 * SECONDS);
      show(Math.min(1, Math.max(0, share)));
      if (share < 1) requestAnimationFrame(next);
      else resolve();
    };
    requestAnimationFrame(next);
  });
}

/** Draw both pictures with the divider where it is at a share of the time: from the right to the left, and back. */
function draw(canvas, left, right, share) {
  const { width, height } = canvas;
  const pen = canvas.getContext("2d");
  const at = (width * (1 + Math.cos(2 * Math.PI * share))) / 2;
  pen.drawImage(right.image, 0, 0, width, height);
  pen.save();
  pen.beginPath();
  pen.rect(0, 0, at, height);
  pen.clip();
  pen.drawImage(left.image, 0, 0, width, height);
  pen.restore();
  pen.fillStyle = "#fff";
  pen.fillRect(at - 1, 0, 2, height);
  const letters = Math.max(11, Math.round(width / 28));
  pen.font = `${letters}px sans-serif`;
  pen.textBaseline = "bottom";
  for (const [{ name }, align, x] of [
    [left, "left", letters / 2],
    [right, "right", width - letters / 2],
  ]) {
    pen.textAlign = align;
    pen.strokeStyle = "#000";
    pen.lineWidth = letters / 5;
    pen.strokeText(name, x, height - letters / 2, width / 2 - letters);
    pen.fillText(name, x, height - letters / 2, width / 2 - letters);
  }
}
