// What a policy in C is written with. Define before this file is included:
//
//   POLICY_NAME, POLICY_VERSION     what the policy is called
//   POLICY_COUNTS(X), POLICY_NUMBERS(X), POLICY_KEYS(X)
//                                   the columns that it reads: X(a name in C, the name in wit/types.wit) for each
//   POLICY_REQUEST_COUNTS(X), POLICY_REQUEST_NUMBERS(X), POLICY_REQUEST_KEYS(X)
//                                   what it reads of the request, likewise
//
// Each name becomes a member of `candidates_t` or `request_t`: what was not named does not compile. Then define
// `policy_configure` and `policy_decide`.

#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "settings.h"

#ifndef POLICY_COUNTS
#define POLICY_COUNTS(X)
#endif
#ifndef POLICY_NUMBERS
#define POLICY_NUMBERS(X)
#endif
#ifndef POLICY_KEYS
#define POLICY_KEYS(X)
#endif
#ifndef POLICY_REQUEST_COUNTS
#define POLICY_REQUEST_COUNTS(X)
#endif
#ifndef POLICY_REQUEST_NUMBERS
#define POLICY_REQUEST_NUMBERS(X)
#endif
#ifndef POLICY_REQUEST_KEYS
#define POLICY_REQUEST_KEYS(X)
#endif

// The request to place; wit/types.wit says what each value means.
typedef struct {
    uint32_t prompt_tokens, prompt_blocks, block_size;
    // The client's limit, where it set one.
    bool has_max_output_tokens;
    uint32_t max_output_tokens;
    int32_t priority;
    uint32_t attempt;
    uint64_t now_ms, seed, decision_number;
#define MEMBER(name, text) uint32_t name;
    POLICY_REQUEST_COUNTS(MEMBER)
#undef MEMBER
#define MEMBER(name, text) float name;
    POLICY_REQUEST_NUMBERS(MEMBER)
#undef MEMBER
#define MEMBER(name, text) uint64_t name;
    POLICY_REQUEST_KEYS(MEMBER)
#undef MEMBER
} request_t;

// The workers that can take the request, as columns: row i of each column is candidate i. There is at least one.
typedef struct {
    size_t count;
#define MEMBER(name, text) const uint32_t *name;
    POLICY_COUNTS(MEMBER)
#undef MEMBER
#define MEMBER(name, text) const float *name;
    POLICY_NUMBERS(MEMBER)
#undef MEMBER
#define MEMBER(name, text) const uint64_t *name;
    POLICY_KEYS(MEMBER)
#undef MEMBER
} candidates_t;

// A decision: see the functions below.
typedef struct {
    enum { DECIDE_COSTS, DECIDE_PICK, DECIDE_REJECT, DECIDE_ABSTAIN } kind;
    uint32_t row;
    uint16_t status;
    uint32_t retry_after_s;
    const char *reason;
} decision_t;

// The cost of a worker that must not have the request.
#define INFINITY_COST __builtin_inff()

// The lowest of the costs that were written wins.
__attribute__((unused)) static decision_t decide_costs(void) { return (decision_t){.kind = DECIDE_COSTS}; }

// The candidate in this row gets the request.
__attribute__((unused)) static decision_t decide_pick(uint32_t row) {
    return (decision_t){.kind = DECIDE_PICK, .row = row};
}

// The client gets an error, 429 or 503, in place of a worker's answer.
__attribute__((unused)) static decision_t decide_reject(uint16_t status, uint32_t retry_after_s, const char *reason) {
    return (decision_t){.kind = DECIDE_REJECT, .status = status, .retry_after_s = retry_after_s, .reason = reason};
}

// No opinion: the next policy decides, after the last one the router's own formula.
__attribute__((unused)) static decision_t decide_abstain(void) { return (decision_t){.kind = DECIDE_ABSTAIN}; }

static void policy_configure(settings_t *settings);
static decision_t policy_decide(const request_t *request, const candidates_t *candidates, float *costs);

static settings_t policy_settings;

// Configures the policy; returns why the settings are refused, NULL if they are not.
__attribute__((unused)) static const char *configured_with(const char *text, size_t length) {
    settings_parse(&policy_settings, text, length);
    if (policy_settings.refusal[0] == 0) policy_configure(&policy_settings);
    if (policy_settings.refusal[0] == 0) settings_refuse_unread(&policy_settings);
    return policy_settings.refusal[0] == 0 ? NULL : policy_settings.refusal;
}

// The same for a text that ends with a zero: for tests.
__attribute__((unused)) static const char *configured(const char *text) {
    size_t length = 0;
    while (text[length] != 0) length++;
    return configured_with(text, length);
}

#ifdef __wasm__
#include "component.h"
#endif
