// `{{name}}` sends each request to the worker with the least work before the request's first token.
import { costs, definePolicy } from "./signalbox.js";

export default definePolicy({
  name: "{{name}}",
  version: "0.1.0",

  // What it reads. Reading anything else is an error that names it.
  counts: ["overlap-device", "prefill-tokens-all", "requests-all"],

  // `request_weight`: the KV blocks that a request in flight counts as.
  configure(settings) {
    this.requestWeight = settings.number("request_weight", 1, 0, 1000);
  },

  // The cost of a worker in KV blocks: those of other prompts that wait there, those of this prompt that it does not hold, and
  // a surcharge for each request in flight. The lowest cost wins; `Infinity` rules a worker out.
  decide(request, candidates) {
    const overlap = candidates.counts("overlap-device");
    const waiting = candidates.counts("prefill-tokens-all");
    const requests = candidates.counts("requests-all");
    const list = new Array(candidates.length);
    for (let row = 0; row < list.length; row++) {
      const queued = waiting[row] / request.blockSize;
      const missing = request.promptBlocks - overlap[row];
      list[row] = queued + missing + requests[row] * this.requestWeight;
    }
    return costs(list);
  },
});
