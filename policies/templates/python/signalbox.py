"""What a policy in Python is written with. It needs nothing but the standard library, so that tests run anywhere."""

import json
from dataclasses import dataclass, field
from typing import Any, Callable, Sequence, Union


@dataclass
class Costs:
    """A cost for each candidate: the lowest wins, `math.inf` rules one out."""

    costs: list[float]


@dataclass
class Pick:
    """The row of the candidate that gets the request."""

    row: int


@dataclass
class Reject:
    """An error for the client, 429 or 503, in place of a worker's answer."""

    status: int
    retry_after_s: int
    reason: str


@dataclass
class Abstain:
    """No opinion: the next policy decides, after the last one the router's own formula."""


Decision = Union[Costs, Pick, Reject, Abstain]


class SettingsError(ValueError):
    """Why settings are refused: a sentence for the person who wrote them."""


class Settings:
    """The settings of a policy: a JSON object, or the empty text for the defaults."""

    def __init__(self, text: str) -> None:
        try:
            self._values = json.loads(text) if text.strip() else {}
        except ValueError as error:
            raise SettingsError(f"settings are one JSON object: {error}") from None
        if not isinstance(self._values, dict):
            raise SettingsError("settings are one JSON object")
        self._read: set[str] = set()

    def number(self, name: str, default: float, least: float, most: float) -> float:
        """A number within bounds."""
        is_number = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = lambda value: is_number(value) and least <= value <= most
        return float(self._value(name, default, fits, f"a number from {least} to {most}"))

    def switch(self, name: str, default: bool) -> bool:
        """True or false."""
        return self._value(name, default, lambda value: isinstance(value, bool), "true or false")

    def text(self, name: str, default: str) -> str:
        """A text."""
        return self._value(name, default, lambda value: isinstance(value, str), "a string")

    def refuse_unread(self) -> None:
        """Refuses settings that were not read: most likely they are misspelt."""
        for name in self._values:
            if name not in self._read:
                raise SettingsError(f'there is no setting "{name}"')

    def _value(self, name: str, default: Any, fits: Callable[[Any], bool], what: str) -> Any:
        self._read.add(name)
        if name not in self._values:
            return default
        if not fits(self._values[name]):
            raise SettingsError(f'the setting "{name}" must be {what}')
        return self._values[name]


class _Named:
    """Values in the order of names."""

    def __init__(self, names: Sequence[str]) -> None:
        self._places = {name: place for place, name in enumerate(names)}

    def place(self, name: str) -> int:
        if name not in self._places:
            raise KeyError(f'the policy reads "{name}", which it does not name among what it reads')
        return self._places[name]


class Candidates:
    """The workers that can take the request, as columns: row i of each column is candidate i."""

    def __init__(self, reader: "Reader", given: Any) -> None:
        self._reader, self._given = reader, given

    def __len__(self) -> int:
        return self._given.count

    def counts(self, name: str) -> list[int]:
        """A column of whole numbers."""
        return self._column(self._given.counts, self._reader.counts.place(name))

    def numbers(self, name: str) -> list[float]:
        """A column of numbers."""
        return self._column(self._given.numbers, self._reader.numbers.place(name))

    def keys(self, name: str) -> list[int]:
        """A column of keys."""
        return self._column(self._given.keys, self._reader.keys.place(name))

    def _column(self, columns: list, place: int) -> list:
        rows = self._given.count
        return columns[place * rows : (place + 1) * rows]


class Request:
    """The request to place. Its fixed values are attributes, named as in `wit/types.wit` with underscores."""

    def __init__(self, reader: "Reader", given: Any) -> None:
        self._reader, self._given = reader, given

    def __getattr__(self, name: str) -> Any:
        return getattr(self._given, name)

    def count(self, name: str) -> int:
        """A whole number of the request."""
        return self._given.counts[self._reader.request_counts.place(name)]

    def number(self, name: str) -> float:
        """A number of the request."""
        return self._given.numbers[self._reader.request_numbers.place(name)]

    def key(self, name: str) -> int:
        """A key of the request; 0 for none."""
        return self._given.keys[self._reader.request_keys.place(name)]


class Policy:
    """A routing policy. What it reads is named in the lists (`wit/types.wit`, `info`)."""

    name = ""
    version = "0.1.0"
    counts: list[str] = []
    numbers: list[str] = []
    keys: list[str] = []
    request_counts: list[str] = []
    request_numbers: list[str] = []
    request_keys: list[str] = []
    optional: list[str] = []

    def configure(self, settings: Settings) -> None:
        """Reads each setting that the policy has. Settings that were not read are refused."""

    def decide(self, request: Request, candidates: Candidates) -> Decision:
        """Chooses among the candidates. There is at least one."""
        raise NotImplementedError


class Reader:
    """A policy, and where it finds what it reads."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.counts, self.numbers, self.keys = map(_Named, (policy.counts, policy.numbers, policy.keys))
        self.request_counts = _Named(policy.request_counts)
        self.request_numbers = _Named(policy.request_numbers)
        self.request_keys = _Named(policy.request_keys)

    def configure(self, text: str) -> None:
        settings = Settings(text)
        self._policy.configure(settings)
        settings.refuse_unread()

    def decide(self, request: Any, candidates: Any) -> Decision:
        return self._policy.decide(Request(self, request), Candidates(self, candidates))


@dataclass
class _GivenRequest:
    prompt_tokens: int = 0
    prompt_blocks: int = 0
    block_size: int = 1
    max_output_tokens: Union[int, None] = None
    priority: int = 0
    attempt: int = 0
    now_ms: int = 0
    seed: int = 0
    decision_number: int = 0
    counts: list[int] = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)


@dataclass
class _GivenCandidates:
    count: int
    counts: list[int]
    numbers: list[float]
    keys: list[int]


def tried(policy: Policy, settings: str, request: dict, **columns: dict[str, list]) -> Decision:
    """For tests: what a policy decides with these settings. `counts`, `numbers` and `keys` are columns by name."""
    rows = [column for named in columns.values() for column in named.values()]
    flat = lambda kind, names: [row for name in names for row in columns.get(kind, {}).get(name, [])]
    candidates = _GivenCandidates(
        len(rows[0]) if rows else 0,
        flat("counts", policy.counts),
        flat("numbers", policy.numbers),
        flat("keys", policy.keys),
    )
    reader = Reader(policy)
    reader.configure(settings)
    return reader.decide(_GivenRequest(**request), candidates)
