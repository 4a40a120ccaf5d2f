// promptfoo, as a command: one prompt with an assertion.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { base, check, model, run } from "./checks.mjs";

check("evaluation", async () => {
  const folder = mkdtempSync(join(tmpdir(), "promptfoo-"));
  try {
    const config = { apiBaseUrl: `${base}/v1`, apiKey: "unused", max_tokens: 8 };
    writeFileSync(
      join(folder, "promptfooconfig.json"),
      JSON.stringify({
        prompts: ["Name a {{thing}}."],
        providers: [
          { id: `openai:chat:${model}`, config },
          { id: `openai:completion:${model}`, config },
        ],
        tests: [{ vars: { thing: "colour" }, assert: [{ type: "javascript", value: "output.length > 0" }] }],
      }),
    );
    const program = join(process.env.SIGNALBOX_CLIENTS, "node", "node_modules", ".bin", "promptfoo");
    const output = join(folder, "results.json");
    const quiet = { PROMPTFOO_DISABLE_TELEMETRY: "1", PROMPTFOO_DISABLE_UPDATE: "1", PROMPTFOO_CONFIG_DIR: folder };
    execFileSync(program, ["eval", "--no-cache", "-c", join(folder, "promptfooconfig.json"), "-o", output], {
      env: { ...process.env, ...quiet },
      stdio: ["ignore", "ignore", "pipe"],
      timeout: 180_000,
    });
    const stats = JSON.parse(readFileSync(output, "utf8")).results.stats;
    if (stats.successes !== 2) throw new Error(JSON.stringify(stats));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
});

run();
