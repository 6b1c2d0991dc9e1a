// What the extension says, in the languages of the pack.

const WORDS = {
  en: {
    waiting: "After a run: how well each LoRA is reproduced, block by block.",
    scale: "0: the merge does what the LoRA does. 1: as if it were not there.",
    strength: "{percent} % of its effect, error {error} on unseen prompts",
    change: "changes {error} of what a stack changes, on unseen prompts",
    residual: "layers: median {median}, worst {worst} at {at}",
    leak: "leak: median {median}, worst {worst} at {at}",
    hover: "Point at a bar for its layers.",
    suffers: "{lora} suffers most",
    add: "+ add another LoRA",
    chip: "Click: add to the prompts",
  },
  zh: {
    waiting: "运行之后，这里按模块显示每个 LoRA 被还原得多好。",
    scale: "0：合并结果与该 LoRA 一致。1：如同没有它。",
    strength: "未见过的提示词上：效果的 {percent} %，误差 {error}",
    change: "未见过的提示词上：改变量为叠加时的 {error}",
    residual: "各层：中位数 {median}，最差 {worst}（{at}）",
    leak: "泄漏：中位数 {median}，最差 {worst}（{at}）",
    hover: "将指针移到柱上可查看各层。",
    suffers: "{lora} 损失最大",
    add: "+ 再加一个 LoRA",
    chip: "点击：加入提示词",
  },
  ja: {
    waiting: "実行後、各 LoRA がどれだけ再現されたかをブロックごとに表示します。",
    scale: "0：LoRA と同じ働き。1：LoRA が無いのと同じ。",
    strength: "未使用のプロンプトで効果の {percent} %、誤差 {error}",
    change: "未使用のプロンプトでの変化は重ね掛けの {error}",
    residual: "層ごと：中央値 {median}、最大 {worst}（{at}）",
    leak: "漏れ：中央値 {median}、最大 {worst}（{at}）",
    hover: "棒に重ねると層ごとの値が出ます。",
    suffers: "{lora} の損失が最大",
    add: "+ LoRA を追加",
    chip: "クリックでプロンプトに追加",
  },
};

/**
 * Return a function that says a thing in a language, English where the pack does not have it.
 *
 * @param {string} [locale] such as "ja" or "zh-TW"
 * @returns {(word: string, values?: object) => string}
 */
export function sayer(locale = "en") {
  const words = WORDS[locale.split("-")[0]] ?? WORDS.en;
  return (word, values = {}) => words[word].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

export const languages = WORDS;
