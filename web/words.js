// What the extension says, in the languages of the pack.

import en from "./words/en.js";
import ja from "./words/ja.js";
import zh from "./words/zh.js";

export const languages = { en, zh, ja };

/** Return the pack's language for a locale such as "ja" or "zh-TW": English where it does not have that one. */
export function languageOf(locale = "en") {
  const [language] = locale.split("-");
  return Object.hasOwn(languages, language) ? language : "en";
}

/**
 * Return a function that says a thing in a language, English where the pack does not have it.
 *
 * @param {string} [locale] such as "ja" or "zh-TW"
 * @returns {(word: string, values?: object) => string}
 */
export function sayer(locale) {
  const words = languages[languageOf(locale)];
  return (word, values = {}) => words[word].replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

const NAMED = ["needs", "needs_words", "more", "add_row"]; // buttons and fields that the server names in a message, in quotation marks

/** Return an English message with the buttons and fields that it names as they are called in a language. */
export function withButtons(message, locale) {
  const words = languages[languageOf(locale)];
  return NAMED.reduce((said, word) => said.replaceAll(`'${en[word]}'`, `'${words[word]}'`), message);
}
