//! One replay: a request for retained batches, and its answers.

use std::time::Duration;

use bytes::Bytes;
use tokio::{sync::mpsc, task::AbortHandle};
use zeromq::{DealerSocket, Socket, SocketOptions, SocketRecv, SocketSend, ZmqError, ZmqMessage};

use super::frames::{InvalidFrames, ReplayAnswer, read_replay, replay_request};

/// Longest time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Answers between the socket and the source. The socket is not read while they wait.
const MAX_ANSWERS: usize = 16;

/// A replay under way. Dropping it closes the connection.
#[derive(Debug)]
pub(super) struct ReplayRun {
    answers: mpsc::Receiver<ReplayAnswer>,
    task: AbortHandle,
}

#[derive(Debug, thiserror::Error)]
enum ReplayError {
    #[error(transparent)]
    Socket(#[from] ZmqError),
    #[error(transparent)]
    Frames(#[from] InvalidFrames),
}

impl ReplayRun {
    /// Asks the engine's replay socket for the batches from number `from` on.
    pub(super) fn start(endpoint: String, from: u64) -> Self {
        let (sender, answers) = mpsc::channel(MAX_ANSWERS);
        let task = tokio::spawn(async move {
            if let Err(error) = run(&endpoint, from, sender).await {
                tracing::debug!(endpoint, from, %error, "the replay of KV events failed");
            }
        });
        Self {
            answers,
            task: task.abort_handle(),
        }
    }

    /// The next answer; `None` after the last one and after a failure. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Option<ReplayAnswer> {
        self.answers.recv().await
    }
}

impl Drop for ReplayRun {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(endpoint: &str, from: u64, answers: mpsc::Sender<ReplayAnswer>) -> Result<(), ReplayError> {
    let mut options = SocketOptions::default();
    options.connect_timeout(CONNECT_TIMEOUT);
    let mut socket = DealerSocket::with_options(options);
    socket.connect(endpoint).await?;
    let [empty, number] = replay_request(from);
    let mut request = ZmqMessage::from(empty);
    request.push_back(number);
    socket.send(request).await?;
    loop {
        let frames: Vec<Bytes> = socket.recv().await?.into_vec();
        let answer = read_replay(&frames)?;
        let is_end = answer == ReplayAnswer::End;
        if answers.send(answer).await.is_err() || is_end {
            return Ok(());
        }
    }
}
