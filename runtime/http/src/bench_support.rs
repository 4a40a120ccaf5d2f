//! The body of a streamed answer without a connection, to measure the cost of a chunk.

use std::{rc::Rc, sync::Arc};

use actix_web::body::MessageBody;
use signalbox_protocol::{Endpoint, RequestId};
use signalbox_router::AnswerStream;

use crate::{
    answer::AnswerBody,
    metrics::{RequestMetrics, RequestRecord},
    traffic::Traffic,
};

/// The body that the HTTP library gets for `answer`.
pub fn body(answer: AnswerStream) -> impl MessageBody<Error = std::convert::Infallible> + Unpin {
    let traffic = Arc::new(Traffic::default());
    let record = RequestRecord::begin(
        &Rc::new(RequestMetrics::default()),
        Endpoint::Chat,
        RequestId::from_random(1),
        traffic.enter(),
    );
    AnswerBody::unregistered(answer, record)
}
