// `{{name}}` sends each request to the worker with the least work before the request's first token.

#define POLICY_NAME "{{name}}"
#define POLICY_VERSION "0.1.0"

// What it reads: a name in C, and the name in wit/types.wit (`info`). Reading anything else does not compile.
#define POLICY_COUNTS(X)                          \
    X(overlap_device, "overlap-device")           \
    X(prefill_tokens_all, "prefill-tokens-all")   \
    X(requests_all, "requests-all")
#include "signalbox.h"

// `request_weight`: the KV blocks that a request in flight counts as.
static double request_weight;

static void policy_configure(settings_t *settings) {
    request_weight = setting_number(settings, "request_weight", 1, 0, 1000);
}

// The cost of a worker in KV blocks: those of other prompts that wait there, those of this prompt that it does not hold, and a
// surcharge for each request in flight. The lowest cost wins; INFINITY_COST rules a worker out. `costs` has a place for each
// candidate.
static decision_t policy_decide(const request_t *request, const candidates_t *candidates, float *costs) {
    for (size_t row = 0; row < candidates->count; row++) {
        double queued = (double)candidates->prefill_tokens_all[row] / request->block_size;
        double missing = (double)request->prompt_blocks - candidates->overlap_device[row];
        double in_flight = candidates->requests_all[row] * request_weight;
        costs[row] = (float)(queued + missing + in_flight);
    }
    return decide_costs();
}
