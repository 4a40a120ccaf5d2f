"""The component: the policy behind the functions of `wit/routing.wit`. The only file that runs inside WebAssembly alone."""

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import diagnostics, types

import signalbox
from policy import policy

READER = signalbox.Reader(policy)


class Routing(exports.Routing):
    def configure(self, settings: str) -> None:
        try:
            READER.configure(settings)
        except signalbox.SettingsError as error:
            raise Err(str(error))

    def describe(self) -> types.Info:
        return types.Info(
            policy.name,
            policy.version,
            policy.counts,
            policy.numbers,
            policy.keys,
            policy.request_counts,
            policy.request_numbers,
            policy.request_keys,
            policy.optional,
        )

    def decide(self, request: types.Request, candidates: types.Candidates) -> types.Decision:
        try:
            decision = READER.decide(request, candidates)
        except Exception as error:
            # The fault states the last warning.
            diagnostics.log(diagnostics.Level.WARN, f"{type(error).__name__}: {error}")
            raise
        match decision:
            case signalbox.Costs(costs):
                return types.Decision_Costs(costs)
            case signalbox.Pick(row):
                return types.Decision_Pick(row)
            case signalbox.Reject(status, retry_after_s, reason):
                return types.Decision_Reject(types.Rejection(status, retry_after_s, reason))
            case _:
                return types.Decision_Abstain()
