/**
 * What the page says of pictures: captions and credits.
 * @module
 */

import { expect } from "./report.mjs";

/** @typedef {import("playwright-core").Page} Page */

/** That a switched picture is said to have the colours of the other where it has them. @param {Page} page */
export async function checkCaptions(page) {
  const seen = await page.evaluate(() => {
    const { all } = window.check;
    const colours = (pixels) =>
      [0, 1, 2].flatMap((channel) => {
        const values = [...pixels].filter((_, index) => index % 3 === channel);
        const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
        const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
        return [mean, Math.sqrt(squares / values.length)];
      });
    const apart = (one, other) => Math.hypot(...one.map((value, index) => value - other[index]));
    const [a, b] = all(".slot .picture canvas").map(colours);
    const [, bWithA, aWithB] = all(".grid .picture canvas").map(colours);
    return {
      captions: [...document.querySelectorAll(".grid figcaption")].map((caption) => caption.textContent),
      labels: [...document.querySelectorAll(".grid .picture canvas")].map((one) => one.getAttribute("aria-label")),
      taken: [2 * apart(bWithA, a) <= apart(bWithA, b), 2 * apart(aWithB, b) <= apart(aWithB, a)],
    };
  });
  const switched = ([own, other], taken) => `${own} ${taken ? "in the colours" : "with the z"} of ${other}`;
  const [ofB, ofA] = [switched("BA", seen.taken[0]), switched("AB", seen.taken[1])];
  const wanted = ["A, back again", ofB, ofA, "B, back again"];
  expect(String(seen.captions) === String(wanted), `captions are ${seen.captions.join("; ")}, not ${wanted.join("; ")}`);
  expect(String(seen.labels) === String(wanted), `a screen reader hears ${seen.labels.join("; ")}`);
  return `“${ofA}”, “${ofB}”`;
}

/** That examples have names, authors and licences, and that paper and project are named, and linked to. @param {Page} page */
export async function checkCredits(page) {
  const { examples, project } = await page.evaluate(() => window.check.config());
  const rows = await page.locator("#credits-list li").allTextContents();
  const knows = { true: "was trained on crops of it", false: "was not trained on it", null: "is not known" };
  expect(rows.length === examples.length && rows.length > 1, `${rows.length} of ${examples.length} are credited`);
  for (const [index, { title, author, licence, seen }] of examples.entries()) {
    for (const part of [title, author, licence, knows[seen]]) {
      expect(rows[index].includes(part), `“${rows[index]}” does not say “${part}”`);
    }
  }
  const names = await page.locator(".examples").first().getByRole("button").evaluateAll((buttons) =>
    buttons.map((button) => button.querySelector("img").alt),
  );
  expect(String(names) === String(examples.map(({ title }) => title)), `examples are called ${names}`);
  const links = await page.locator("footer a").evaluateAll((found) => found.map((link) => link.href));
  expect(links.includes("https://arxiv.org/abs/2004.11820"), `the page links to ${links.join(", ") || "nothing"}`);
  expect((await page.textContent("#project")) === "tfdecouple", "the page does not say what made it");
  const made = await page.locator("#project a").evaluateAll((found) => found.map((link) => link.getAttribute("href")));
  expect(String(made) === (project ?? ""), `what made the page is linked to ${made || "nothing"}, not to ${project}`);
  return `${rows.length} examples; “${rows[0]}”`;
}
