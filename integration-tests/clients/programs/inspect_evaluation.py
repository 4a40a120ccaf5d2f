"""inspect-ai, with its provider for OpenAI-compatible servers."""

import os
import tempfile

from checks import base, check, model, run

os.environ |= {"SIGNALBOX_BASE_URL": f"{base}/v1", "SIGNALBOX_API_KEY": "unused"}
from inspect_ai import Task, eval as evaluate  # noqa: E402
from inspect_ai.dataset import Sample  # noqa: E402
from inspect_ai.scorer import includes  # noqa: E402


@check("evaluation")
def evaluation():
    task = Task(dataset=[Sample(input=f"Name a {thing}.", target="a") for thing in ("colour", "river", "train")], scorer=includes())
    with tempfile.TemporaryDirectory() as folder:
        [log] = evaluate(
            task, model=f"openai-api/signalbox/{model}", max_tokens=8, log_dir=folder, display="none", max_retries=0
        )
        assert log.status == "success", log.error
        # Samples are read from the log when they are asked for.
        assert len(log.samples) == 3 and all(sample.output.completion for sample in log.samples)


run()
