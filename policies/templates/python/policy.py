"""`{{name}}` sends each request to the worker with the least work before the request's first token."""

from signalbox import Candidates, Costs, Decision, Policy, Request, Settings


class LeastWork(Policy):
    name = "{{name}}"
    version = "0.1.0"
    # What it reads. Reading anything else is an error that names it.
    counts = ["overlap-device", "prefill-tokens-all", "requests-all"]

    def configure(self, settings: Settings) -> None:
        # The KV blocks that a request in flight counts as.
        self.request_weight = settings.number("request_weight", 1.0, 0.0, 1000.0)

    def decide(self, request: Request, candidates: Candidates) -> Decision:
        """The cost of a worker in KV blocks: those of other prompts that wait there, those of this prompt that it does not
        hold, and a surcharge for each request in flight. The lowest cost wins; `math.inf` rules a worker out."""
        overlap = candidates.counts("overlap-device")
        waiting = candidates.counts("prefill-tokens-all")
        requests = candidates.counts("requests-all")
        size, blocks, weight = request.block_size, request.prompt_blocks, self.request_weight
        rows = zip(waiting, overlap, requests)
        return Costs([queued / size + (blocks - held) + running * weight for queued, held, running in rows])


policy = LeastWork()
