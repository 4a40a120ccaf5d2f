//! The body of a streamed answer without a connection, for counting what a chunk costs.

use std::{rc::Rc, sync::Arc};

use actix_web::body::MessageBody;
use signalbox_protocol::RequestId;
use signalbox_router::AnswerStream;

use crate::{
    answer::AnswerBody,
    metrics::{Endpoint, RequestMetrics, RequestRecord},
    traffic::Traffic,
};

/// What the HTTP library is given of `answer`.
pub fn body(answer: AnswerStream) -> impl MessageBody<Error = std::convert::Infallible> + Unpin {
    let traffic = Arc::new(Traffic::default());
    let record = RequestRecord::begin(
        &Rc::new(RequestMetrics::default()),
        Endpoint::Chat,
        RequestId::from_random(1),
        traffic.enter(),
    );
    AnswerBody::new(answer, record)
}
