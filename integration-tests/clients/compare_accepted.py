"""The differences between a vLLM's answers and Signalbox's that are meant, each with its reason."""

import re

# A pattern of the difference, one of the request's name, and why the difference is accepted: at an engine of this repository,
# then in front of a vLLM.
LIKE = [
    # Shapes
    (r"^absent .*: null$", "", "a member that OpenAI's API does not have is left out where vLLM has null"),
    (r"created_cache_tokens|\.data\[\]\.(permission|root)", "", "a member that vLLM alone has"),
    (r"^absent .*prompt_(logprobs|token_ids): list", '"echo"', "a repeated prompt has its scores in logprobs, as at OpenAI"),
    (r"^added .*(usage: null|logprobs\.refusal: null|system_fingerprint: str)$", "", "a member that OpenAI's API has"),
    (r"^absent .*delta\.content: str$", "stream", "the last event of a choice has an empty delta, as at OpenAI"),
    (r"logprobs: object -> null$|^added event: a token", "stream", "the end of a choice is an event of its own"),
    (r"top_logprobs: list -> null$", '"logprobs": 0', "none of the likeliest tokens is asked for, as at OpenAI"),
    (r"stop_reason: (null -> )?str", '"stop"', "where a text stops depends on the text: the weights are rounded in other ways"),
    # Errors
    (r"^type .\.error\.code: number -> ", "", "code is OpenAI's, and not the status once more"),
    (r"^type .\.error\.param: null -> str$", "", "param names the member where vLLM names none"),
    (r"^type .\.error\.param: str -> null$", " b['\"]", "a body that is no JSON object has no member at fault, as at OpenAI"),
    (r"^(absent .\.detail|added .\.error)", r"^(GET|PUT|POST|DELETE) ", "an unknown path has an error of OpenAI's shape"),
    # What is refused
    (r"^status 400 .* -> 200 ", '"tools"', "tools need no flag here, and an empty list of them is none"),
    (r"^status 400 .* -> 200 ", '"n": 2}$', "several choices may be the same"),
    (r"^status 400 .* -> 200 ", '"structured_outputs": {}', "constraints that are all left out are none"),
    (r"^status 400 .* -> 200 ", "content-type", "a body is read as JSON, whatever its media type"),
    (r"^status 200 .* -> 400 ", '"model": null', "a router may serve several models"),
    (r"^status 200 .* -> 400 ", "robot|best_of|\\[{\"role\": \"user\"}\\]", "what an engine would ignore or guess is refused"),
    # The rest
    (r"", "^//?v1/models/? ", "slashes too many are ignored"),
    (r"^status 200  -> 200 application/json", "^/health", "health has a document"),
    (r"(count|tokens)", '"refusal"', "a refusal in the history is what the assistant said"),
]
SAME = [
    (r"error", " b['\"]|\"model\": ", "a body that is no JSON object, or names no served model, gets the router's error"),
    (r"system_fingerprint", '"stream": true', "vLLM names it in the last event, whichever choice that ends"),
    (r"^status 200 .* -> 400 ", '"model": null', "a router may serve several models"),
    (r"^(status 400 .* -> 200 |.*error)", "content-type", "an engine gets a body as JSON, whatever its media type"),
    (r"^(absent .\.detail|added .\.error)", r"^(GET|PUT|POST|DELETE) ", "an unknown path has an error of OpenAI's shape"),
    (r"", "^//?v1/models/? ", "slashes too many are ignored"),
    (r"^status 200  -> 200 application/json", "^/health", "health has a document"),
    (r"^(absent|value|order) .(\.data\[\])?(\.(permission|root|parent|owned_by))?", "^/v1/models", "the list of models is the router's"),
]


def accepted(mode, request, difference):
    """Why the difference is accepted; `None` if it is not."""
    for pattern, of_request, reason in SAME if mode == "same" else LIKE:
        if re.search(pattern, difference) and re.search(of_request, request.name):
            return reason
    return None
