use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::AbortHandle,
};

use super::{
    client::{Access, MAX_FILE_BYTES},
    *,
};

const REVISION: &str = "0123abcd";

/// What the fake hub answers to a path.
#[derive(Clone)]
enum Answer {
    File(&'static str),
    Redirect(String),
    Status(&'static str),
    Large,
    /// Nothing, ever.
    Silence,
}

/// The path and the token of each request.
type Received = Arc<Mutex<Vec<(String, Option<String>)>>>;

/// A hub on loopback. What it does not have is 404.
struct FakeHub {
    url: String,
    received: Received,
    asked: Arc<Notify>,
    task: AbortHandle,
}

impl FakeHub {
    async fn start(answers: Vec<(String, Answer)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answers: Arc<HashMap<String, Answer>> = Arc::new(answers.into_iter().collect());
        let received = Arc::new(Mutex::new(Vec::new()));
        let asked = Arc::new(Notify::new());
        let (log, bell) = (received.clone(), asked.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, answers.clone(), log.clone(), bell.clone()));
            }
        });
        Self {
            url,
            received,
            asked,
            task: task.abort_handle(),
        }
    }

    fn config(&self, token: Option<&str>) -> HubConfig {
        HubConfig {
            endpoint: self.url.clone(),
            token: token.map(str::to_owned),
        }
    }

    /// Fetches `org/name` into a cache in this folder.
    async fn fetch(&self, cache: &Path) -> Result<PathBuf, HubError> {
        let name = "org/name".parse().unwrap();
        self.config(None)
            .fetch_tokenizer(&name, &HubCache::new(cache))
            .await
    }

    fn paths(&self) -> Vec<String> {
        let received = self.received.lock().unwrap();
        received.iter().map(|(path, _)| path.clone()).collect()
    }
}

impl Drop for FakeHub {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    stream: TcpStream,
    answers: Arc<HashMap<String, Answer>>,
    received: Received,
    asked: Arc<Notify>,
) {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut path, mut token, mut line) = (String::new(), None, String::new());
        loop {
            line.clear();
            if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
                return;
            }
            match line.trim_end() {
                "" => break,
                head if path.is_empty() => head.split(' ').nth(1).unwrap().clone_into(&mut path),
                header => token = token.or_else(|| header.strip_prefix("authorization: ").map(str::to_owned)),
            }
        }
        received.lock().unwrap().push((path.clone(), token));
        asked.notify_one();
        let commit = format!("X-Repo-Commit: {REVISION}\r\n");
        let answer = match answers.get(&path) {
            None => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
            Some(Answer::File(text)) => {
                format!(
                    "HTTP/1.1 200 OK\r\n{commit}Content-Length: {}\r\n\r\n{text}",
                    text.len()
                )
            }
            Some(Answer::Redirect(to)) => {
                format!("HTTP/1.1 302 Found\r\n{commit}Location: {to}\r\nContent-Length: 0\r\n\r\n")
            }
            Some(Answer::Status(status)) => format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"),
            Some(Answer::Large) => {
                format!(
                    "HTTP/1.1 200 OK\r\n{commit}Content-Length: {}\r\n\r\n",
                    MAX_FILE_BYTES + 1
                )
            }
            Some(Answer::Silence) => std::future::pending().await,
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The path of a file of `org/name`.
fn path(revision: &str, file: &str) -> String {
    format!("/org/name/resolve/{revision}/{file}")
}

/// A hub with this answer in place of the vocabulary.
async fn hub_with(answer: Answer) -> FakeHub {
    FakeHub::start(vec![(path("main", "tokenizer.json"), answer)]).await
}

fn text(folder: &Path, file: &str) -> Option<String> {
    fs::read_to_string(folder.join(file)).ok()
}

#[tokio::test]
async fn the_files_of_one_revision_are_kept_as_the_hubs_libraries_keep_them() {
    let hub = FakeHub::start(vec![
        (path("main", "tokenizer.json"), Answer::File("{1}")),
        (path(REVISION, "tokenizer_config.json"), Answer::File("{2}")),
        (
            path(REVISION, "additional_chat_templates/tool_use.jinja"),
            Answer::File("{3}"),
        ),
    ])
    .await;
    let folder = TempDir::new().unwrap();
    let cache = HubCache::new(folder.path());
    let name: HubName = "org/name".parse().unwrap();
    assert_eq!(cache.snapshot(&name), None);
    let snapshot = hub.fetch(folder.path()).await.unwrap();
    assert_eq!(cache.snapshot(&name).as_ref(), Some(&snapshot));
    assert!(snapshot.ends_with(format!("models--org--name/snapshots/{REVISION}")));
    for (file, expected) in [
        ("tokenizer.json", Some("{1}")),
        ("tokenizer_config.json", Some("{2}")),
        ("additional_chat_templates/tool_use.jinja", Some("{3}")),
        ("config.json", None),
    ] {
        assert_eq!(text(&snapshot, file).as_deref(), expected, "{file}");
    }
    let mut left: Vec<_> = fs::read_dir(&snapshot)
        .unwrap()
        .map(|one| one.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(
        left,
        [
            "additional_chat_templates",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
}

#[tokio::test]
async fn a_revision_in_the_cache_is_completed_and_nothing_of_it_is_changed() {
    let hub = FakeHub::start(vec![
        (path(REVISION, "tokenizer.model"), Answer::File("pieces")),
        (path(REVISION, "config.json"), Answer::File("new")),
    ])
    .await;
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("models--org--name");
    let snapshot = model.join("snapshots").join(REVISION);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(model.join("refs")).unwrap();
    fs::write(model.join("refs/main"), REVISION).unwrap();
    fs::write(snapshot.join("config.json"), "old").unwrap();
    assert_eq!(hub.fetch(folder.path()).await.unwrap(), snapshot);
    assert_eq!(text(&snapshot, "config.json").unwrap(), "old");
    assert_eq!(text(&snapshot, "tokenizer.model").unwrap(), "pieces");
    assert!(
        hub.paths().iter().all(|path| path.contains(REVISION)),
        "{:?}",
        hub.paths()
    );
}

#[tokio::test]
async fn what_cannot_be_fetched_leaves_nothing_and_is_named() {
    let stranger = FakeHub::start(Vec::new()).await;
    let elsewhere = format!("{}/x", stranger.url);
    for (answer, named) in [
        (Answer::Status("401 Unauthorized"), "HF_TOKEN"),
        (Answer::Status("503 Service Unavailable"), "503"),
        (Answer::Status("404 Not Found"), "no tokenizer"),
        (Answer::Large, "more than"),
        (Answer::Redirect(elsewhere), "is not followed"),
        (
            Answer::Redirect("https://elsewhere/x?signature".into()),
            "is not followed",
        ),
        (Answer::Redirect(path("main", "tokenizer.json")), "too many"),
        (Answer::Redirect("//elsewhere/x".into()), "no address"),
        (Answer::Redirect(String::new()), "no address"),
    ] {
        let hub = hub_with(answer).await;
        let folder = TempDir::new().unwrap();
        let error = hub.fetch(folder.path()).await.unwrap_err().to_string();
        assert!(error.contains(named) && !error.contains("signature"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "{error}");
    }
    assert_eq!(stranger.paths(), [""; 0]);
}

#[tokio::test]
async fn redirects_within_the_hub_are_followed() {
    let hub = FakeHub::start(vec![
        (
            path("main", "tokenizer.json"),
            Answer::Redirect("/moved?a=b".into()),
        ),
        ("/moved?a=b".into(), Answer::File("{}")),
    ])
    .await;
    let folder = TempDir::new().unwrap();
    let snapshot = hub.fetch(folder.path()).await.unwrap();
    assert_eq!(text(&snapshot, "tokenizer.json").unwrap(), "{}");
}

#[tokio::test]
async fn the_token_goes_to_the_hub_and_its_refusal_is_named() {
    let hub = hub_with(Answer::Status("403 Forbidden")).await;
    let folder = TempDir::new().unwrap();
    let config = hub.config(Some("secret"));
    let name = "org/name".parse().unwrap();
    let error = config
        .fetch_tokenizer(&name, &HubCache::new(folder.path()))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("has no access"), "{error}");
    let received = hub.received.lock().unwrap().clone();
    assert_eq!(
        received,
        [(path("main", "tokenizer.json"), Some("Bearer secret".into()))]
    );
    assert!(!format!("{config:?}{error:?}").contains("secret"));
}

#[test]
fn a_store_of_the_hub_is_followed_over_tls_without_the_token() {
    let config = HubConfig {
        endpoint: "https://hub.example/prefix/".into(),
        token: Some("secret".into()),
    };
    let access = Access::new(&config).unwrap();
    let url: hyper::Uri = "https://hub.example/prefix/a".parse().unwrap();
    let follow = |to: &'static str| access.follow(&url, Some(&hyper::header::HeaderValue::from_static(to)));
    let store = follow("https://store.example/blob?signature").unwrap();
    assert!(!access.owns(&store) && access.owns(&url));
    assert!(access.owns(&follow("https://HUB.example:443/b").unwrap()));
    assert!(follow("http://hub.example/b").is_err());
    assert!(follow("http://store.example/b").is_err());
    assert!(access.follow(&url, None).is_err());
}

#[tokio::test]
async fn a_hub_that_hangs_is_left_after_a_minute() {
    let hub = hub_with(Answer::Silence).await;
    let folder = TempDir::new().unwrap();
    let (config, cache) = (hub.config(None), HubCache::new(folder.path()));
    let fetched = tokio::spawn(async move {
        let name = "org/name".parse().unwrap();
        config.fetch_tokenizer(&name, &cache).await
    });
    hub.asked.notified().await;
    // The clock moves on by itself while nothing else happens.
    tokio::time::pause();
    let error = fetched.await.unwrap().unwrap_err();
    assert!(matches!(error, HubError::TimedOut(..)), "{error}");
}

#[tokio::test]
async fn a_hub_that_is_not_there_and_a_cache_that_is_no_folder_are_named() {
    let folder = TempDir::new().unwrap();
    let hub = hub_with(Answer::File("{}")).await;
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = hub.fetch(&file).await.unwrap_err().to_string();
    assert!(error.contains("--hf-hub-cache"), "{error}");

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let absent = HubConfig {
        endpoint: format!("http://{}", listener.local_addr().unwrap()),
        token: None,
    };
    drop(listener);
    let name = "org/name".parse().unwrap();
    let error = absent
        .fetch_tokenizer(&name, &HubCache::new(folder.path()))
        .await
        .unwrap_err();
    assert!(matches!(error, HubError::Unreachable(..)), "{error}");
}

#[test]
fn what_is_no_hub_and_no_model_is_refused() {
    for endpoint in ["", "hub", "ftp://hub", "https://u:p@hub", "https://hub?x"] {
        let config = HubConfig {
            endpoint: endpoint.into(),
            token: None,
        };
        let error = config.check().unwrap_err().to_string();
        assert!(error.contains("HF_ENDPOINT"), "{error}");
    }
    let config = HubConfig {
        endpoint: PUBLIC_HUB.into(),
        token: Some("a\nb".into()),
    };
    assert!(config.check().unwrap_err().to_string().contains("HF_TOKEN"));
    for name in [
        "name", "/name", "org/", "../name", "org/..", "org/a/b", "org/a b", "",
    ] {
        assert!(name.parse::<HubName>().is_err(), "{name}");
    }
}
