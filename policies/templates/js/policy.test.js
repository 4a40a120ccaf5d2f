import assert from "node:assert";
import test from "node:test";
import policy from "./policy.js";
import { tried } from "./signalbox.js";

// Two workers: the first has 20 of the prompt's 40 blocks and a request, the second neither.
const counts = { "overlap-device": [20, 0], "prefill-tokens-all": [32, 0], "requests-all": [1, 0] };
const request = { promptBlocks: 40, blockSize: 16 };

test("a worker that holds the prompt costs less unless requests weigh more", () => {
  assert.deepEqual(tried(policy, "", request, { counts }), { tag: "costs", val: [23, 40] });
  const settings = '{"request_weight": 100}';
  assert.deepEqual(tried(policy, settings, request, { counts }), { tag: "costs", val: [122, 40] });
});

test("numbers above 2^31 arrive as negative ones, and are read as they are", () => {
  const overloaded = { ...counts, "requests-all": [-1, 0] };
  const { val } = tried(policy, "", request, { counts: overloaded });
  assert.deepEqual(val, [4294967295 + 22, 40]);
});

test("a column that the policy does not name is an error that names it", () => {
  const forgetful = { ...policy, counts: ["overlap-device", "requests-all"] };
  assert.throws(() => tried(forgetful, "", request, { counts }), /prefill-tokens-all/);
});
