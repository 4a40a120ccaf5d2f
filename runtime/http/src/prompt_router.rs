//! Routes the prompts of one request, each by itself.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use actix_web::web::Data;
use bytes::Bytes;
use signalbox_protocol::{Endpoint, ErrorKind, RequestId, WireError};
use signalbox_router::RoutedAnswer;
use tokio::time::{Instant, timeout_at};

use crate::{
    body::Body,
    client_keys::HeaderKeys,
    every_form::EveryForm,
    frontend::Frontend,
    read_request::{Asked, ReadRequest, read_request},
};

/// What the prompts of one request have in common.
pub(crate) struct PromptRouter {
    pub(crate) frontend: Data<Frontend>,
    pub(crate) endpoint: Endpoint,
    pub(crate) id: RequestId,
    /// When the whole answer must be complete.
    pub(crate) deadline: Instant,
    /// Seconds since the Unix epoch: the date of the answer.
    created: u64,
    keys: HeaderKeys,
    /// Whether the answer says why its worker has the request.
    explained: bool,
    body: Body,
}

impl PromptRouter {
    pub(crate) fn new(
        frontend: Data<Frontend>,
        endpoint: Endpoint,
        id: RequestId,
        deadline: Instant,
        keys: HeaderKeys,
        explained: bool,
        body: Body,
    ) -> Self {
        let created = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            frontend,
            endpoint,
            id,
            deadline,
            created: created.map_or(0, |since| since.as_secs()),
            keys,
            explained,
            body,
        }
    }

    /// Reads the body on the pool, which has a thread for large ones.
    ///
    /// # Errors
    /// The request waited for others with a large body until its deadline.
    pub(crate) async fn read(&self) -> Result<ReadRequest, WireError> {
        let (bytes, router) = (self.bytes().clone(), self.frontend.router.clone());
        let endpoint = self.endpoint;
        let read = move || read_request(endpoint, &bytes, &router);
        let pool = &self.frontend.shared.prepare_pool;
        timeout_at(self.deadline, pool.run(self.bytes().len(), read))
            .await
            .unwrap_or_else(|_| {
                Err(WireError::new(
                    ErrorKind::DeadlineExceeded,
                    "the request was not read within its deadline",
                ))
            })
    }

    /// Routes the prompt with this number. If no worker can be reached, and the model's workers read other forms of prompts
    /// by now, the body is read again for these: a rolling update may have replaced every worker that the request was made
    /// ready for.
    ///
    /// # Errors
    /// No worker took the request, or its worker refused it: as the client is to receive it.
    pub(crate) async fn route(
        &self,
        model: &str,
        number: usize,
        prompt: EveryForm,
    ) -> Result<RoutedAnswer, WireError> {
        let mut prompt = prompt;
        // Once more at most: forms change with workers, and an update takes longer than a request.
        for is_last in [false, true] {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let known = prompt.forms();
            let request = prompt.into_route_request(self.bytes(), &self.id, milliseconds(left), self.created);
            let Some(mut request) = request else {
                break;
            };
            self.keys.add_to(&mut request);
            request.explained = self.explained;
            let error = match self.frontend.replica.route(request).await {
                Ok(routed) => return Ok(routed),
                Err(error) => error,
            };
            let is_known = |form| known.contains(&form);
            if is_last
                || error.kind != ErrorKind::Unavailable
                || self.frontend.model(model)?.forms().all(is_known)
            {
                return Err(error);
            }
            let Asked::Prompts(mut prompts) = self.read().await?.asked? else {
                return Err(error);
            };
            if number >= prompts.len() {
                return Err(error);
            }
            prompt = prompts.swap_remove(number);
        }
        Err(WireError::new(
            ErrorKind::Internal,
            "the request was made ready for no worker",
        ))
    }

    fn bytes(&self) -> &Bytes {
        &self.body.bytes
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
