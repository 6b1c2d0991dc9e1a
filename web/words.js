// What the extension says, in the languages of the pack.

const WORDS = {
  en: {
    waiting: "After a run: how well each LoRA is reproduced, block by block.",
    scale: "0: the layer gives the same as with the LoRA alone. 1: it is as far off as the LoRA moves it.",
    strength: "{percent} % of its effect, error {error} on unseen prompts",
    change: "changes {error} of what a stack changes, on unseen prompts",
    residual: "layers: median {median}, worst {worst} at {at}",
    leak: "leak: median {median}, worst {worst} at {at}",
    hover: "Point at a bar for its layers.",
    suffers: "{lora} suffers most",
    earlier: "Report of an earlier run: the last one did not end.",
    unreadable: "The report that this workflow has kept cannot be read; a run makes a new one.",
    cut: "This report has more than can be shown; the rest is left out.",
    add: "+ add another LoRA",
    add_title: "Add another LoRA behind this one",
    remove: "− take out",
    remove_title: "Take this LoRA out of the chain; its neighbours are joined",
    chip: "Click: add to the prompts",
    making: "No prompts given: a run makes them from these words.",
    made: "Prompts of the last run: {prompts}",
    no_words: "The file names no trigger words: write prompts.",
  },
  zh: {
    waiting: "运行之后，这里按模块显示每个 LoRA 被还原得多好。",
    scale: "0：该层的输出与单独使用该 LoRA 时相同。1：偏差与该 LoRA 造成的改变一样大。",
    strength: "未见过的提示词上：效果的 {percent} %，误差 {error}",
    change: "未见过的提示词上：改变量为叠加时的 {error}",
    residual: "各层：中位数 {median}，最差 {worst}（{at}）",
    leak: "泄漏：中位数 {median}，最差 {worst}（{at}）",
    hover: "将指针移到柱上可查看各层。",
    suffers: "{lora} 损失最大",
    earlier: "这是更早一次运行的报告：上一次运行没有完成。",
    unreadable: "此工作流保存的报告无法读取；运行后会生成新的报告。",
    cut: "此报告的内容多于可显示的范围，其余部分已略去。",
    add: "+ 再加一个 LoRA",
    add_title: "在此之后再加一个 LoRA",
    remove: "− 移出",
    remove_title: "将此 LoRA 移出链条，前后自动相连",
    chip: "点击：加入提示词",
    making: "未填提示词：运行时用这些词生成。",
    made: "上次运行的提示词：{prompts}",
    no_words: "该文件没有触发词：请填写提示词。",
  },
  ja: {
    waiting: "実行後、各 LoRA がどれだけ再現されたかをブロックごとに表示します。",
    scale: "0：その層の出力は LoRA 単独のときと同じ。1：LoRA による変化と同じだけずれている。",
    strength: "未使用のプロンプトで効果の {percent} %、誤差 {error}",
    change: "未使用のプロンプトでの変化は重ね掛けの {error}",
    residual: "層ごと：中央値 {median}、最大 {worst}（{at}）",
    leak: "漏れ：中央値 {median}、最大 {worst}（{at}）",
    hover: "棒に重ねると層ごとの値が出ます。",
    suffers: "{lora} の損失が最大",
    earlier: "以前の実行の結果です：直前の実行は完了しませんでした。",
    unreadable: "このワークフローに保存されたレポートは読めません。実行すると新しく作られます。",
    cut: "このレポートは表示できる量を超えているため、残りは省かれています。",
    add: "+ LoRA を追加",
    add_title: "この後ろに LoRA をもう一つ追加",
    remove: "− 外す",
    remove_title: "この LoRA を列から外し、前後をつなぎます",
    chip: "クリックでプロンプトに追加",
    making: "プロンプト未入力：実行時にこれらの語から作られます。",
    made: "直前の実行のプロンプト：{prompts}",
    no_words: "ファイルにトリガーワードがありません：プロンプトを書いてください。",
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
