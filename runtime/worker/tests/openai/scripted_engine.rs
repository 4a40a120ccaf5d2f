//! An engine of the test: it answers what a probe asks like vLLM, and each POST as the test says, byte by byte.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    task::{AbortHandle, JoinSet},
};

/// One step of an answer to a POST.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Send(String),
    /// Waits for the test.
    Wait(Arc<Notify>),
    /// Closes the connection.
    Close,
}

/// A POST as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
    /// The number of the connection it came on, from 0.
    pub(crate) connection: usize,
}

/// What the engine answers.
#[derive(Debug, Clone)]
pub(crate) struct Answers {
    /// The status of `GET /health`.
    pub(crate) health: u16,
    /// The time in `process_start_time_seconds`.
    pub(crate) started_at: u64,
    /// The steps of the answer to the POST with this number, from 0; the last also for those after it.
    pub(crate) posts: Vec<Vec<Step>>,
}

pub(crate) struct ScriptedEngine {
    pub(crate) url: String,
    pub(crate) answers: Arc<Mutex<Answers>>,
    pub(crate) received: Arc<Mutex<Vec<Received>>>,
    /// The numbers of connections that the adapter closed while an answer was under way.
    pub(crate) abandoned: mpsc::Receiver<usize>,
    listener: AbortHandle,
}

impl ScriptedEngine {
    pub(crate) async fn start(posts: Vec<Vec<Step>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answers = Arc::new(Mutex::new(Answers {
            health: 200,
            started_at: 1_000,
            posts,
        }));
        let received = Arc::new(Mutex::new(Vec::new()));
        let (abandons, abandoned) = mpsc::channel(64);
        let (serve_answers, serve_received) = (answers.clone(), received.clone());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            for number in 0.. {
                let Ok((stream, _)) = listener.accept().await else {
                    return;
                };
                let connection = Connection {
                    number,
                    answers: serve_answers.clone(),
                    received: serve_received.clone(),
                    abandons: abandons.clone(),
                };
                connections.spawn(connection.serve(stream));
            }
        });
        Self {
            url,
            answers,
            received,
            abandoned,
            listener: task.abort_handle(),
        }
    }

    /// Closes the listener and every connection, as the end of the process does.
    pub(crate) fn die(&self) {
        self.listener.abort();
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }
}

impl Drop for ScriptedEngine {
    fn drop(&mut self) {
        self.die();
    }
}

struct Connection {
    number: usize,
    answers: Arc<Mutex<Answers>>,
    received: Arc<Mutex<Vec<Received>>>,
    abandons: mpsc::Sender<usize>,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        while let Some((method, mut request)) = read_request(&mut stream).await {
            request.connection = self.number;
            if method == "GET" {
                let answer = self.about_itself(&request.path);
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
                continue;
            }
            let number = {
                let mut received = self.received.lock().unwrap();
                received.push(request);
                received.len() - 1
            };
            let steps = {
                let posts = &self.answers.lock().unwrap().posts;
                posts[number.min(posts.len() - 1)].clone()
            };
            for step in steps {
                match step {
                    Step::Send(text) => {
                        if stream.write_all(text.as_bytes()).await.is_err() {
                            let _ = self.abandons.send(self.number).await;
                            return;
                        }
                    }
                    Step::Wait(notify) => tokio::select! {
                        () = notify.notified() => {}
                        // No client sends anything before the whole answer is there: this is the end.
                        _ = stream.fill_buf() => {
                            let _ = self.abandons.send(self.number).await;
                            return;
                        }
                    },
                    Step::Close => return,
                }
            }
        }
    }

    fn about_itself(&self, path: &str) -> String {
        let answers = self.answers.lock().unwrap();
        match path {
            "/health" => json(answers.health, ""),
            "/v1/models" => json(
                200,
                r#"{"data":[{"id":"tiny","owned_by":"vllm","root":"tiny","parent":null,"max_model_len":4096},
                    {"id":"sql","owned_by":"vllm","root":"/sql","parent":"tiny"}]}"#,
            ),
            "/version" => json(200, r#"{"version":"0.32.0"}"#),
            "/metrics" => json(
                200,
                &format!(
                    "process_start_time_seconds {}\nvllm:num_requests_running{{engine=\"0\"}} 3.0\n\
                     vllm:num_requests_waiting{{engine=\"0\"}} 2.0\nvllm:kv_cache_usage_perc{{engine=\"0\"}} 0.5\n\
                     vllm:cache_config_info{{block_size=\"16\",num_gpu_blocks=\"100\",enable_prefix_caching=\"True\"}} 1.0\n",
                    answers.started_at
                ),
            ),
            _ => json(404, r#"{"detail":"Not Found"}"#),
        }
    }
}

/// Reads a request; `None` at the end of the connection.
async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<(String, Received)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, path) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let request = Received {
        path,
        headers,
        body: String::from_utf8(body).unwrap(),
        connection: 0,
    };
    Some((method, request))
}

/// A whole JSON answer.
pub(crate) fn json(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The head of a stream.
pub(crate) fn stream_head() -> String {
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        .into()
}

/// One chunk of the body of a stream.
pub(crate) fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// The end of the body of a stream.
pub(crate) fn stream_end() -> String {
    "0\r\n\r\n".into()
}
