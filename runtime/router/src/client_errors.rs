//! The errors that a client receives when its request could not be routed or its answer broke off.

use std::time::Duration;

use signalbox_protocol::{ErrorKind, WireError};
use signalbox_request_plane::LinkError;

use crate::{candidates::NoCandidate, retries::REMEMBERED_FOR};

/// No worker serves the model, and none has served it before.
pub(crate) fn no_model(name: &str) -> WireError {
    WireError {
        kind: ErrorKind::ModelNotFound,
        message: format!("no worker serves the model {name:?}; GET /v1/models lists those that are served"),
        param: Some("model".into()),
        retry_after_s: None,
        engine: None,
    }
}

/// The model is known, but none of its workers can take the request.
pub(crate) fn no_candidate(reason: NoCandidate, model: &str) -> WireError {
    match reason {
        NoCandidate::Unavailable => WireError::new(
            ErrorKind::Unavailable,
            format!("no worker for the model {model:?} can be reached right now"),
        ),
        NoCandidate::Busy => WireError::new(
            ErrorKind::Overloaded,
            format!("every worker for the model {model:?} has as many requests as it takes; try again"),
        ),
        NoCandidate::Unable(ability) => WireError::new(
            ErrorKind::InvalidRequest,
            format!(
                "no worker of the model {model:?} honours {} yet; leave it out",
                ability.asked()
            ),
        ),
        NoCandidate::TooManyChoices { choices, most } => WireError::invalid_param(
            "n",
            format!(
                "n is {choices}, and no worker of the model {model:?} takes more than {most} choices, running and waiting \
                 together; ask for at most {most}"
            ),
        ),
        NoCandidate::Rejected(rejection) => {
            let kind = if rejection.is_overload {
                ErrorKind::Overloaded
            } else {
                ErrorKind::Unavailable
            };
            WireError {
                retry_after_s: rejection.retry_after_s,
                ..WireError::new(kind, rejection.reason)
            }
        }
        // Client libraries look for "this model's maximum context length is".
        NoCandidate::TooLong { context_length } => WireError::new(
            ErrorKind::ContextLengthExceeded,
            format!(
                "the prompt leaves no room for an answer; this model's maximum context length is {context_length} tokens: \
                 shorten the prompt"
            ),
        ),
    }
}

/// The prompt was at two workers when they were lost.
pub(crate) fn lost_twice() -> WireError {
    let s = REMEMBERED_FOR.as_secs();
    WireError::new(
        ErrorKind::Internal,
        format!(
            "two workers were lost while they worked on this prompt; it is not sent to another one for {s} s"
        ),
    )
}

/// The worker sends nothing, and its engine makes no progress.
pub(crate) fn no_token(quiet: Duration) -> WireError {
    let s = quiet.as_secs_f32();
    WireError::new(
        ErrorKind::Unavailable,
        format!("the worker answering this request has sent nothing for {s:.1} s; send the request again"),
    )
}

/// The deadline passed before the first bytes of the answer.
pub(crate) fn no_answer_in_time() -> WireError {
    WireError::new(
        ErrorKind::DeadlineExceeded,
        "no worker answered within the request's deadline",
    )
}

/// The deadline passed after the first bytes and before the end of the answer.
pub(crate) fn not_whole_in_time() -> WireError {
    WireError::new(
        ErrorKind::DeadlineExceeded,
        "the answer was not whole within the request's deadline",
    )
}

/// The stream from the worker stopped with neither an end nor an error.
pub(crate) fn no_end() -> WireError {
    WireError::new(
        ErrorKind::Internal,
        "the worker's answer stopped without an end or an error",
    )
}

/// The worker ended its answer without a byte.
pub(crate) fn no_data() -> WireError {
    WireError::new(ErrorKind::Internal, "the worker's answer ended without data")
}

/// The worker refused the request, or the link to it failed. A worker's own error passes unchanged.
pub(crate) fn worker_failed(error: LinkError) -> WireError {
    match error {
        LinkError::Refused(error) => error,
        LinkError::Lost { .. } => WireError::new(
            ErrorKind::Unavailable,
            "the worker answering this request was lost; send the request again",
        ),
        LinkError::Unreachable { .. } | LinkError::Draining { .. } => WireError::new(
            ErrorKind::Unavailable,
            "the chosen worker cannot be reached; send the request again",
        ),
        LinkError::Full { .. } => WireError::new(
            ErrorKind::Overloaded,
            "the connection to the chosen worker holds as many requests as it may",
        ),
    }
}
