// What a policy in JavaScript is written with.
//
// Keys and other values of 64 bits, such as `request.seed`, are BigInts. QuickJS hands them over rounded to 53 bits: equal keys
// stay equal on every router, and a hash of one is not the hash that a policy in another language computes.

/** A cost for each candidate: the lowest wins, `Infinity` rules one out. */
export const costs = (list) => ({ tag: "costs", val: list });
/** The row of the candidate that gets the request. */
export const pick = (row) => ({ tag: "pick", val: row });
/** An error for the client, 429 or 503, in place of a worker's answer. */
export const reject = (status, retryAfterS, reason) => ({ tag: "reject", val: { status, retryAfterS, reason } });
/** No opinion: the next policy decides, after the last one the router's own formula. */
export const abstain = () => ({ tag: "abstain" });

const LISTS = ["counts", "numbers", "keys", "requestCounts", "requestNumbers", "requestKeys", "optional"];

/** Completes a policy: a name, a version, what it reads (`wit/types.wit`, `info`), `decide`, and perhaps `configure`. */
export function definePolicy(policy) {
  for (const list of LISTS) {
    policy[list] ??= [];
  }
  return policy;
}

/** The settings of a policy: a JSON object, or the empty text for the defaults. */
export class Settings {
  #values;
  #read = new Set();

  constructor(text) {
    this.#values = text.trim() === "" ? {} : JSON.parse(text);
    if (this.#values === null || typeof this.#values !== "object" || Array.isArray(this.#values)) {
      throw new SettingsError("settings are one JSON object");
    }
  }

  /** A number within bounds. */
  number(name, otherwise, least, most) {
    const fits = (value) => typeof value === "number" && value >= least && value <= most;
    return this.#value(name, otherwise, fits, `a number from ${least} to ${most}`);
  }

  /** True or false. */
  switch(name, otherwise) {
    return this.#value(name, otherwise, (value) => typeof value === "boolean", "true or false");
  }

  /** A text. */
  text(name, otherwise) {
    return this.#value(name, otherwise, (value) => typeof value === "string", "a string");
  }

  /** Refuses settings that were not read: most likely they are misspelt. */
  refuseUnread() {
    for (const name of Object.keys(this.#values)) {
      if (!this.#read.has(name)) {
        throw new SettingsError(`there is no setting "${name}"`);
      }
    }
  }

  #value(name, otherwise, fits, what) {
    this.#read.add(name);
    if (!Object.hasOwn(this.#values, name)) {
      return otherwise;
    }
    if (!fits(this.#values[name])) {
      throw new SettingsError(`the setting "${name}" must be ${what}`);
    }
    return this.#values[name];
  }
}

class SettingsError extends Error {}

/** The place of each name in a list of the policy. */
function places(names) {
  const at = new Map(names.map((name, place) => [name, place]));
  return (name) => {
    const place = at.get(name);
    if (place === undefined) {
      throw new Error(`the policy reads "${name}", which it does not name among what it reads`);
    }
    return place;
  };
}

// QuickJS hands over whole numbers above 2^31, and keys above 2^63, as negative ones, and keys as plain numbers.
const count = (value) => value >>> 0;
const number = (value) => value;
const key = (value) => BigInt.asUintN(64, BigInt(value));

/** Reads columns and values by name, for one policy. */
function reader(policy) {
  const place = Object.fromEntries(LISTS.map((list) => [list, places(policy[list])]));
  const column = (candidates, list, read) => (name) => {
    const start = place[list](name) * candidates.count;
    return Array.from(candidates[list].slice(start, start + candidates.count), read);
  };
  return {
    candidates: (given) => ({
      length: given.count,
      counts: column(given, "counts", count),
      numbers: column(given, "numbers", number),
      keys: column(given, "keys", key),
    }),
    request: (given) => ({
      promptTokens: count(given.promptTokens),
      promptBlocks: count(given.promptBlocks),
      blockSize: count(given.blockSize),
      // `undefined` where the client set no limit.
      maxOutputTokens: given.maxOutputTokens == null ? undefined : count(given.maxOutputTokens),
      priority: given.priority,
      attempt: count(given.attempt),
      nowMs: key(given.nowMs),
      seed: key(given.seed),
      decisionNumber: key(given.decisionNumber),
      count: (name) => count(given.counts[place.requestCounts(name)]),
      number: (name) => given.numbers[place.requestNumbers(name)],
      key: (name) => key(given.keys[place.requestKeys(name)]),
    }),
  };
}

/** The functions of `wit/routing.wit` for a policy. `log` is that of `wit/diagnostics.wit`. */
export function component(policy, log) {
  let read;
  return {
    configure(text) {
      try {
        const settings = new Settings(text);
        policy.configure?.(settings);
        settings.refuseUnread();
      } catch (error) {
        // What is thrown here is the error of the WIT's result: a sentence.
        throw error instanceof SettingsError || error instanceof SyntaxError ? error.message : `${error}`;
      }
      read = reader(policy);
    },
    describe() {
      const lists = Object.fromEntries(LISTS.map((list) => [list, policy[list]]));
      return { name: policy.name, version: policy.version, ...lists };
    },
    decide(request, candidates) {
      try {
        return policy.decide(read.request(request), read.candidates(candidates));
      } catch (error) {
        // The fault states the last warning.
        log("warn", `${error}`);
        throw error;
      }
    },
  };
}

const EMPTY_REQUEST = {
  promptTokens: 0,
  promptBlocks: 0,
  blockSize: 1,
  priority: 0,
  attempt: 0,
  nowMs: 0n,
  seed: 0n,
  decisionNumber: 0n,
  counts: [],
  numbers: [],
  keys: [],
};

/** For tests: what a policy decides with these settings. `columns` has `counts`, `numbers` and `keys`, each by name. */
export function tried(policy, settings, request, columns) {
  const of = (list, names) => names.flatMap((name) => columns[list]?.[name] ?? []);
  const rows = ["counts", "numbers", "keys"].flatMap((list) => Object.values(columns[list] ?? {}));
  const candidates = {
    count: rows[0]?.length ?? 0,
    counts: of("counts", policy.counts),
    numbers: of("numbers", policy.numbers),
    keys: of("keys", policy.keys),
  };
  const tested = component(policy, () => {});
  tested.configure(settings);
  return tested.decide({ ...EMPTY_REQUEST, ...request }, candidates);
}
