// Named checks of one client program. Each prints one line of JSON: its name, whether it passed, and why not.
export const base = process.env.SIGNALBOX_BASE;
export const model = process.env.SIGNALBOX_MODEL;
// What the engine can do: `text`, and `json` or `tools` if it constrains answers.
const able = (process.env.SIGNALBOX_ABLE ?? "text").split(",");
const checks = [];

/** Adds a check; `needs` names what it asks of the engine beyond text. */
export function check(what, body, needs = "text") {
  checks.push([what, body, needs]);
}

export async function run() {
  for (const [what, body, needs] of checks) {
    const line = { check: what };
    try {
      await body();
      line.ok = true;
    } catch (error) {
      const reason = String(error).split("\n")[0].slice(0, 300);
      // An engine that cannot do it must say so, rather than answer something else.
      const refused = error?.status === 400 || error?.statusCode === 400;
      line.ok = refused && !able.includes(needs);
      line[line.ok ? "refused" : "error"] = reason;
      if (!line.ok) {
        console.error(error);
        process.exitCode = 1;
      }
    }
    console.log(JSON.stringify(line));
  }
}
