// How often something is done. No DOM and no ComfyUI here, so that `node --test` runs it.

/**
 * Return what does a task, one at a time: called again meanwhile, or within a pause, it does it once more after that.
 * So nothing newer is overtaken by what is older.
 *
 * @param {() => Promise<void>} task
 * @param {number} pause in milliseconds, from its start
 * @returns {() => void}
 */
export function oneAtATime(task, pause) {
  let isBusy = false;
  let isAgain = false;
  return async function call() {
    isAgain = isBusy;
    if (isBusy) return;
    isBusy = true;
    await Promise.allSettled([task(), new Promise((go) => setTimeout(go, pause))]);
    isBusy = false;
    if (isAgain) call();
  };
}
