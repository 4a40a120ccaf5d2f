// A policy's settings: one flat JSON object of numbers, booleans and strings, or the empty text for the defaults.

#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAX_SETTINGS 32

typedef struct {
    const char *name, *value;
    size_t name_length, value_length;
    bool was_read;
} setting_t;

typedef struct {
    setting_t entries[MAX_SETTINGS];
    size_t count;
    // Why the settings are refused: a sentence; empty for none.
    char refusal[160];
} settings_t;

static void settings_refuse(settings_t *settings, const char *what, const char *name, size_t name_length) {
    if (settings->refusal[0] != 0) return;
    size_t at = 0;
    for (; *what != 0 && at < sizeof settings->refusal - 1; what++) {
        if (*what != '%') {
            settings->refusal[at++] = *what;
            continue;
        }
        for (size_t i = 0; i < name_length && at < sizeof settings->refusal - 1; i++) settings->refusal[at++] = name[i];
    }
    settings->refusal[at] = 0;
}

static const char *settings_skip_space(const char *at, const char *end) {
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r')) at++;
    return at;
}

// The end of the JSON string that begins at `at`; NULL if there is none. Escapes are not decoded: names and values are compared
// as they are written.
static const char *settings_string_end(const char *at, const char *end) {
    if (at == end || *at != '"') return NULL;
    for (at++; at < end; at++) {
        if (*at == '\\') at++;
        else if (*at == '"') return at + 1;
    }
    return NULL;
}

static void settings_parse(settings_t *settings, const char *text, size_t length) {
    static const char *const NO_OBJECT = "settings are one flat JSON object";
    const char *end = text + length, *at = settings_skip_space(text, end);
    settings->count = 0;
    settings->refusal[0] = 0;
    if (at == end) return;
    if (*at != '{') return settings_refuse(settings, NO_OBJECT, "", 0);
    at = settings_skip_space(at + 1, end);
    if (at < end && *at == '}') {
        at++;
    } else {
        for (;;) {
            if (settings->count == MAX_SETTINGS) return settings_refuse(settings, "there are too many settings", "", 0);
            setting_t *entry = &settings->entries[settings->count++];
            const char *name_end = settings_string_end(at, end);
            if (name_end == NULL) return settings_refuse(settings, NO_OBJECT, "", 0);
            *entry = (setting_t){.name = at + 1, .name_length = (size_t)(name_end - at) - 2};
            at = settings_skip_space(name_end, end);
            if (at == end || *at != ':') return settings_refuse(settings, NO_OBJECT, "", 0);
            at = settings_skip_space(at + 1, end);
            entry->value = at;
            if (at < end && *at == '"') {
                at = settings_string_end(at, end);
                if (at == NULL) return settings_refuse(settings, NO_OBJECT, "", 0);
            } else {
                while (at < end && *at != ',' && *at != '}' && *at != '{' && *at != '[' && *at > ' ') at++;
            }
            entry->value_length = (size_t)(at - entry->value);
            at = settings_skip_space(at, end);
            if (at < end && *at == '}') {
                at++;
                break;
            }
            if (at == end || *at != ',') return settings_refuse(settings, NO_OBJECT, "", 0);
            at = settings_skip_space(at + 1, end);
        }
    }
    if (settings_skip_space(at, end) != end) settings_refuse(settings, NO_OBJECT, "", 0);
}

static setting_t *settings_find(settings_t *settings, const char *name) {
    for (size_t i = 0; i < settings->count; i++) {
        setting_t *entry = &settings->entries[i];
        size_t same = 0;
        while (same < entry->name_length && name[same] != 0 && name[same] == entry->name[same]) same++;
        if (same == entry->name_length && name[same] == 0) {
            entry->was_read = true;
            return entry;
        }
    }
    return NULL;
}

// Reads a JSON number. Exact up to 15 digits and 22 decimal places.
static bool settings_read_number(const char *at, size_t length, double *value) {
    const char *end = at + length;
    bool is_negative = at < end && *at == '-';
    if (is_negative) at++;
    double digits = 0, power = 1;
    int count = 0, exponent = 0;
    for (; at < end && *at >= '0' && *at <= '9'; at++, count++) digits = digits * 10 + (*at - '0');
    if (at < end && *at == '.') {
        for (at++; at < end && *at >= '0' && *at <= '9'; at++, count++, exponent--) digits = digits * 10 + (*at - '0');
    }
    if (count == 0) return false;
    if (at < end && (*at == 'e' || *at == 'E')) {
        int sign = 1, given = 0, given_digits = 0;
        at++;
        if (at < end && (*at == '-' || *at == '+')) sign = *at++ == '-' ? -1 : 1;
        for (; at < end && *at >= '0' && *at <= '9' && given < 1000; at++, given_digits++) given = given * 10 + (*at - '0');
        if (given_digits == 0) return false;
        exponent += sign * given;
    }
    if (at != end || exponent > 300 || exponent < -300) return false;
    for (int i = exponent < 0 ? -exponent : exponent; i > 0; i--) power *= 10;
    *value = exponent < 0 ? digits / power : digits * power;
    if (is_negative) *value = -*value;
    return true;
}

// A number within bounds, or `otherwise` where it is not set. A wrong one refuses the settings.
__attribute__((unused)) static double setting_number(
    settings_t *settings, const char *name, double otherwise, double least, double most
) {
    setting_t *entry = settings_find(settings, name);
    double value = otherwise;
    if (entry == NULL) return otherwise;
    if (!settings_read_number(entry->value, entry->value_length, &value) || !(value >= least && value <= most)) {
        settings_refuse(settings, "the setting \"%\" must be a number within its bounds", entry->name, entry->name_length);
        return otherwise;
    }
    return value;
}

// True or false, or `otherwise` where it is not set.
__attribute__((unused)) static bool setting_switch(settings_t *settings, const char *name, bool otherwise) {
    setting_t *entry = settings_find(settings, name);
    if (entry == NULL) return otherwise;
    if (entry->value_length == 4 && entry->value[0] == 't' && entry->value[3] == 'e') return true;
    if (entry->value_length == 5 && entry->value[0] == 'f' && entry->value[4] == 'e') return false;
    settings_refuse(settings, "the setting \"%\" must be true or false", entry->name, entry->name_length);
    return otherwise;
}

// Settings that were not read are most likely misspelt.
static void settings_refuse_unread(settings_t *settings) {
    for (size_t i = 0; i < settings->count; i++) {
        setting_t *entry = &settings->entries[i];
        if (!entry->was_read) settings_refuse(settings, "there is no setting \"%\"", entry->name, entry->name_length);
    }
}
