// The component: the functions of wit/routing.wit by the canonical ABI, which this file writes out for one fixed interface. So
// a policy needs no generated bindings and no C library. The host puts the columns into `arena` before a decision; they end
// with it.

#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE 65536
#define ROUTING "signalbox:policy/routing@0.2.0#"
#define EXPORT(name) __attribute__((export_name(name)))

__attribute__((import_module("signalbox:policy/diagnostics@0.2.0"), import_name("log"))) void diagnostics_log(
    int32_t level, const char *text, size_t length
);

// Writes a warning to the router's log.
__attribute__((unused)) static void log_warning(const char *text) {
    size_t length = 0;
    while (text[length] != 0) length++;
    diagnostics_log(2, text, length);
}

// ---- Memory: pieces of one arena, which is empty again after each call.

extern unsigned char __heap_base;
static uintptr_t arena_top;

static void arena_clear(void) { arena_top = ((uintptr_t)&__heap_base + 15) & ~(uintptr_t)15; }

static void *arena_piece(size_t size, size_t alignment) {
    if (arena_top == 0) arena_clear();
    uintptr_t start = (arena_top + alignment - 1) & ~(uintptr_t)(alignment - 1);
    uintptr_t present = (uintptr_t)__builtin_wasm_memory_size(0) * PAGE;
    // The host ends the instance where its limit is passed.
    if (size > UINT32_MAX - start - PAGE) __builtin_trap();
    if (start + size > present) {
        size_t pages = (start + size - present + PAGE - 1) / PAGE;
        if (__builtin_wasm_memory_grow(0, pages) == (size_t)-1) __builtin_trap();
    }
    arena_top = start + size;
    return (void *)start;
}

EXPORT("cabi_realloc") void *cabi_realloc(void *old, size_t old_size, size_t alignment, size_t size) {
    unsigned char *piece = arena_piece(size, alignment);
    for (size_t i = 0; i < old_size && i < size; i++) piece[i] = ((unsigned char *)old)[i];
    return piece;
}

// Compilers call these for copies of structures.
void *memcpy(void *restrict to, const void *restrict from, size_t size) {
    for (size_t i = 0; i < size; i++) ((unsigned char *)to)[i] = ((const unsigned char *)from)[i];
    return to;
}

void *memset(void *to, int byte, size_t size) {
    for (size_t i = 0; i < size; i++) ((unsigned char *)to)[i] = (unsigned char)byte;
    return to;
}

// ---- The values of wit/types.wit, laid out as the canonical ABI has them.

typedef struct {
    const void *start;
    size_t length;
} abi_list_t;

typedef struct {
    uint32_t prompt_tokens, prompt_blocks, block_size;
    uint8_t has_max_output_tokens;
    uint32_t max_output_tokens;
    int32_t priority;
    uint32_t attempt;
    uint64_t now_ms, seed, decision_number;
    abi_list_t counts, numbers, keys;
} abi_request_t;

typedef struct {
    uint32_t count;
    abi_list_t counts, numbers, keys;
} abi_candidates_t;

typedef struct {
    abi_request_t request;
    abi_candidates_t candidates;
} abi_decide_t;

typedef struct {
    abi_list_t name, version, counts, numbers, keys, request_counts, request_numbers, request_keys, optional;
} abi_info_t;

typedef struct {
    uint8_t is_error;
    abi_list_t error;
} abi_configured_t;

enum { ABI_COSTS = 0, ABI_PICK = 1, ABI_REJECT = 4, ABI_ABSTAIN = 5 };

typedef struct {
    uint8_t kind;
    union {
        abi_list_t costs;
        uint32_t pick;
        struct {
            uint16_t status;
            uint32_t retry_after_s;
            abi_list_t reason;
        } rejection;
    };
} abi_decision_t;

_Static_assert(sizeof(abi_request_t) == 80 && offsetof(abi_request_t, now_ms) == 32, "the request");
_Static_assert(offsetof(abi_decide_t, candidates) == 80 && sizeof(abi_candidates_t) == 28, "the candidates");
_Static_assert(sizeof(abi_info_t) == 72 && sizeof(abi_configured_t) == 12, "what configure and describe return");
_Static_assert(offsetof(abi_decision_t, costs) == 4 && sizeof(abi_decision_t) == 20, "the decision");

// ---- The functions.

static abi_configured_t abi_configured;
static abi_info_t abi_info;
static abi_decision_t abi_decision;

EXPORT(ROUTING "configure") abi_configured_t *abi_configure(const char *text, size_t length) {
    const char *refusal = configured_with(text, length);
    size_t refusal_length = 0;
    while (refusal != NULL && refusal[refusal_length] != 0) refusal_length++;
    abi_configured = (abi_configured_t){refusal != NULL, {refusal, refusal_length}};
    return &abi_configured;
}

#define NAME(name, text) {text, sizeof text - 1},
#define NAMES(list)                                                              \
    static const abi_list_t list##_names[] = {POLICY_##list(NAME){NULL, 0}};     \
    static const size_t list##_length = sizeof list##_names / sizeof(abi_list_t) - 1;
NAMES(COUNTS)
NAMES(NUMBERS)
NAMES(KEYS)
NAMES(REQUEST_COUNTS)
NAMES(REQUEST_NUMBERS)
NAMES(REQUEST_KEYS)

EXPORT(ROUTING "describe") abi_info_t *abi_describe(void) {
    abi_info = (abi_info_t){
        .name = {POLICY_NAME, sizeof POLICY_NAME - 1},
        .version = {POLICY_VERSION, sizeof POLICY_VERSION - 1},
        .counts = {COUNTS_names, COUNTS_length},
        .numbers = {NUMBERS_names, NUMBERS_length},
        .keys = {KEYS_names, KEYS_length},
        .request_counts = {REQUEST_COUNTS_names, REQUEST_COUNTS_length},
        .request_numbers = {REQUEST_NUMBERS_names, REQUEST_NUMBERS_length},
        .request_keys = {REQUEST_KEYS_names, REQUEST_KEYS_length},
        .optional = {COUNTS_names, 0},
    };
    return &abi_info;
}

EXPORT(ROUTING "decide") abi_decision_t *abi_decide(const abi_decide_t *given) {
    const abi_request_t *from = &given->request;
    request_t request = {
        .prompt_tokens = from->prompt_tokens,
        .prompt_blocks = from->prompt_blocks,
        .block_size = from->block_size,
        .has_max_output_tokens = from->has_max_output_tokens != 0,
        .max_output_tokens = from->max_output_tokens,
        .priority = from->priority,
        .attempt = from->attempt,
        .now_ms = from->now_ms,
        .seed = from->seed,
        .decision_number = from->decision_number,
    };
    size_t rows = given->candidates.count, place = 0;
    candidates_t candidates = {.count = rows};
#define VALUE(name, text) request.name = ((const uint32_t *)from->counts.start)[place++];
    POLICY_REQUEST_COUNTS(VALUE)
#undef VALUE
    place = 0;
#define VALUE(name, text) request.name = ((const float *)from->numbers.start)[place++];
    POLICY_REQUEST_NUMBERS(VALUE)
#undef VALUE
    place = 0;
#define VALUE(name, text) request.name = ((const uint64_t *)from->keys.start)[place++];
    POLICY_REQUEST_KEYS(VALUE)
#undef VALUE
    place = 0;
#define COLUMN(name, text) candidates.name = (const uint32_t *)given->candidates.counts.start + rows * place++;
    POLICY_COUNTS(COLUMN)
#undef COLUMN
    place = 0;
#define COLUMN(name, text) candidates.name = (const float *)given->candidates.numbers.start + rows * place++;
    POLICY_NUMBERS(COLUMN)
#undef COLUMN
    place = 0;
#define COLUMN(name, text) candidates.name = (const uint64_t *)given->candidates.keys.start + rows * place++;
    POLICY_KEYS(COLUMN)
#undef COLUMN
    (void)place;

    float *costs = arena_piece(rows * sizeof(float), 16);
    decision_t decision = policy_decide(&request, &candidates, costs);
    switch (decision.kind) {
    case DECIDE_COSTS:
        abi_decision = (abi_decision_t){.kind = ABI_COSTS, .costs = {costs, rows}};
        break;
    case DECIDE_PICK:
        abi_decision = (abi_decision_t){.kind = ABI_PICK, .pick = decision.row};
        break;
    case DECIDE_REJECT: {
        size_t length = 0;
        while (decision.reason[length] != 0) length++;
        abi_decision = (abi_decision_t){
            .kind = ABI_REJECT, .rejection = {decision.status, decision.retry_after_s, {decision.reason, length}}
        };
        break;
    }
    case DECIDE_ABSTAIN:
        abi_decision = (abi_decision_t){.kind = ABI_ABSTAIN};
        break;
    }
    return &abi_decision;
}

// The host calls these when it has read what a call returned.
EXPORT("cabi_post_" ROUTING "configure") void abi_after_configure(abi_configured_t *result) {
    (void)result;
    arena_clear();
}

EXPORT("cabi_post_" ROUTING "describe") void abi_after_describe(abi_info_t *result) {
    (void)result;
    arena_clear();
}

EXPORT("cabi_post_" ROUTING "decide") void abi_after_decide(abi_decision_t *result) {
    (void)result;
    arena_clear();
}
