/**
 * What the checks found.
 * @module
 */

/** What is wrong with the page. */
export class Failed extends Error {}

/** @param {unknown} condition @param {string} message */
export function expect(condition, message) {
  if (!condition) throw new Failed(message);
}

/** Collects results. */
export class Report {
  results = [];
  measured = {};

  /** @param {string} name @param {() => Promise<string>} body Returns what to say of a passed check. */
  async check(name, body) {
    let [ok, detail] = [true, ""];
    try {
      detail = await body();
    } catch (error) {
      [ok, detail] = [false, error instanceof Failed ? error.message : `${error.message}`.split("\n")[0]];
    }
    this.results.push({ name, ok, detail });
    console.log(`${ok ? "ok    " : "FAILED"} ${name}: ${detail}`);
  }

  get failed() {
    return this.results.filter(({ ok }) => !ok).length;
  }
}
