//! A Hugging Face hub on loopback, with the files of one folder.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode, body::Incoming, header::HeaderValue, server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, task::AbortHandle};

/// The revision of every file.
const REVISION: &str = "0123456789abcdef0123456789abcdef01234567";

/// Serves a folder's files as those of the model `org/name`, until it is dropped.
#[derive(Debug)]
pub struct FakeHub {
    /// For `--hf-endpoint`.
    pub url: String,
    task: AbortHandle,
}

impl FakeHub {
    /// Starts the hub.
    ///
    /// # Errors
    /// There is no port.
    pub async fn start(folder: PathBuf) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let folder = folder.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let answer = answer(&folder, request.uri().path());
                    async move { Ok::<_, Infallible>(answer) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Ok(Self {
            url,
            task: task.abort_handle(),
        })
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The file that the path names, of the newest revision by any of its names.
fn answer(folder: &Path, path: &str) -> Response<Full<Bytes>> {
    let of_revision = |name: &str| {
        Some(
            path.strip_prefix(&format!("/org/name/resolve/{name}/"))?
                .to_owned(),
        )
    };
    let file = of_revision("main").or_else(|| of_revision(REVISION));
    let bytes = file.and_then(|file| std::fs::read(folder.join(file)).ok());
    let status = match bytes {
        Some(_) => StatusCode::OK,
        None => StatusCode::NOT_FOUND,
    };
    let mut answer = Response::new(Full::new(bytes.unwrap_or_default().into()));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert("x-repo-commit", HeaderValue::from_static(REVISION));
    answer
}
