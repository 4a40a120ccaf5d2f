// Tests of policy.c, on your own machine: `make test`.

#include "policy.c"

#include <assert.h>
#include <stdio.h>

// Two workers: the first has 20 of the prompt's 40 blocks and a request, the second neither.
static const candidates_t CANDIDATES = {
    .count = 2,
    .overlap_device = (const uint32_t[]){20, 0},
    .prefill_tokens_all = (const uint32_t[]){32, 0},
    .requests_all = (const uint32_t[]){1, 0},
};
static const request_t REQUEST = {.prompt_blocks = 40, .block_size = 16};

int main(void) {
    float costs[2];
    assert(configured("") == NULL);
    assert(policy_decide(&REQUEST, &CANDIDATES, costs).kind == DECIDE_COSTS);
    assert(costs[0] == 23 && costs[1] == 40);

    assert(configured("{\"request_weight\": 100}") == NULL);
    policy_decide(&REQUEST, &CANDIDATES, costs);
    assert(costs[0] == 122 && costs[1] == 40);

    assert(configured("{\"request_weight\": -1}") != NULL);
    assert(configured("{\"requestweight\": 1}") != NULL);
    puts("policy.c: all tests passed");
    return 0;
}
