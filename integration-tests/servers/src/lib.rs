//! Real NATS and etcd servers for tests. They have free ports and their own folders, can be killed, suspended and
//! started again, and always end with the test.
//!
//! The programs are `nats-server` and `etcd` from the search path, or the ones that `SIGNALBOX_NATS_SERVER` and
//! `SIGNALBOX_ETCD` name; `make deps` installs Debian's. All functions block for a short time, and panic with a reason
//! when a server fails: the test cannot continue then.
#![allow(
    clippy::panic,
    clippy::expect_used,
    reason = "test support: a failure is the test's"
)]

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::{NamedTempFile, TempDir};

pub use cluster::{EtcdCluster, NatsCluster};
pub use operator::NatsOperator;

mod cluster;
mod operator;

/// Longest wait for a server to answer after its start.
const START: Duration = Duration::from_secs(30);

/// Longest wait for an answer of a health check.
const ANSWER: Duration = Duration::from_secs(2);

/// A NATS server, with JetStream by default.
#[derive(Debug)]
pub struct NatsServer(Server);

/// An etcd server.
#[derive(Debug)]
pub struct EtcdServer(Server);

#[derive(Debug)]
struct Server {
    program: &'static str,
    arguments: Vec<String>,
    address: SocketAddr,
    /// Whether the server works; polled after its start until it does.
    is_ready: fn(SocketAddr) -> bool,
    child: Option<Child>,
    /// Keeps the data over restarts.
    folder: TempDir,
    configuration: Option<NamedTempFile>,
}

impl NatsServer {
    /// Picks a port and a folder; does not start the server.
    pub fn prepare() -> Self {
        let address = free_address();
        let folder = folder();
        let arguments = vec![
            "--addr=127.0.0.1".into(),
            format!("--port={}", address.port()),
            "--jetstream".into(),
            format!("--store_dir={}", folder.path().display()),
        ];
        Self(Server::new(
            program("SIGNALBOX_NATS_SERVER", "nats-server"),
            arguments,
            address,
            folder,
            takes_connections,
        ))
    }

    /// A running server.
    pub fn started() -> Self {
        let mut server = Self::prepare();
        server.start();
        server
    }

    /// Without JetStream from its next start on.
    pub fn without_jetstream(mut self) -> Self {
        self.0.arguments.retain(|argument| argument != "--jetstream");
        self
    }

    /// With these lines of a configuration file, from its next start on.
    pub fn configured(mut self, configuration: &str) -> Self {
        let mut file = NamedTempFile::new().expect("a temporary file");
        file.write_all(configuration.as_bytes()).expect("a writable file");
        self.0
            .arguments
            .push(format!("--config={}", file.path().display()));
        self.0.configuration = Some(file);
        self
    }

    /// `127.0.0.1:port`
    pub fn address(&self) -> String {
        self.0.address.to_string()
    }

    /// `nats://127.0.0.1:port`
    pub fn url(&self) -> String {
        format!("nats://{}", self.0.address)
    }

    /// Starts the server, or starts it again with its data; returns once it works.
    pub fn start(&mut self) {
        self.0.start();
    }

    /// Sends SIGKILL.
    pub fn kill(&mut self) {
        self.0.kill();
    }

    /// Sends SIGSTOP: the server keeps its connections and answers nothing.
    pub fn suspend(&self) {
        self.0.signal("STOP");
    }

    /// Sends SIGCONT.
    pub fn resume(&self) {
        self.0.signal("CONT");
    }

    /// Kills the server and removes its data.
    pub fn wipe(&mut self) {
        self.0.wipe();
    }
}

impl EtcdServer {
    /// Picks ports and a folder; does not start the server.
    pub fn prepare() -> Self {
        let (address, peer) = (free_address(), free_address());
        let folder = folder();
        let arguments = vec![
            format!("--data-dir={}", folder.path().display()),
            format!("--listen-client-urls=http://{address}"),
            format!("--advertise-client-urls=http://{address}"),
            format!("--listen-peer-urls=http://{peer}"),
            format!("--initial-advertise-peer-urls=http://{peer}"),
            format!("--initial-cluster=default=http://{peer}"),
        ];
        Self(Server::new(
            program("SIGNALBOX_ETCD", "etcd"),
            arguments,
            address,
            folder,
            is_healthy,
        ))
    }

    /// A running server.
    pub fn started() -> Self {
        let mut server = Self::prepare();
        server.start();
        server
    }

    /// `127.0.0.1:port`
    pub fn address(&self) -> String {
        self.0.address.to_string()
    }

    /// `etcd://127.0.0.1:port`
    pub fn url(&self) -> String {
        format!("etcd://{}", self.0.address)
    }

    /// Starts the server, or starts it again with its data; returns once it works.
    pub fn start(&mut self) {
        self.0.start();
    }

    /// Sends SIGKILL.
    pub fn kill(&mut self) {
        self.0.kill();
    }

    /// Sends SIGSTOP: the server keeps its connections and answers nothing.
    pub fn suspend(&self) {
        self.0.signal("STOP");
    }

    /// Sends SIGCONT.
    pub fn resume(&self) {
        self.0.signal("CONT");
    }

    /// Kills the server and removes its data.
    pub fn wipe(&mut self) {
        self.0.wipe();
    }
}

impl Server {
    fn new(
        program: String,
        arguments: Vec<String>,
        address: SocketAddr,
        folder: TempDir,
        is_ready: fn(SocketAddr) -> bool,
    ) -> Self {
        Self {
            is_ready,
            program: program.leak(),
            arguments,
            address,
            child: None,
            folder,
            configuration: None,
        }
    }

    fn start(&mut self) {
        self.spawn();
        self.becomes_ready();
    }

    fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} is already running", self.program);
        let child = Command::new(self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = child.unwrap_or_else(|error| {
            panic!("cannot start {}: {error}; `make deps` installs it", self.program)
        });
        self.child = Some(child);
    }

    fn becomes_ready(&mut self) {
        let began = Instant::now();
        while !(self.is_ready)(self.address) {
            let ended = self
                .child
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten());
            assert!(
                ended.is_none(),
                "{} {:?} ended at once: {ended:?}",
                self.program,
                self.arguments
            );
            assert!(began.elapsed() < START, "{} does not become ready", self.program);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // This fails only if the process has already ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn wipe(&mut self) {
        self.kill();
        empty(self.folder.path());
    }

    fn signal(&self, name: &str) {
        let child = self
            .child
            .as_ref()
            .unwrap_or_else(|| panic!("{} is not running", self.program));
        let status = Command::new("kill")
            .args([format!("-{name}"), child.id().to_string()])
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "cannot send {name} to {}",
            self.program
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "test support: the paths of the servers are no settings of the runtime"
)]
fn program(variable: &str, name: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| name.into())
}

fn folder() -> TempDir {
    TempDir::new().expect("a temporary folder")
}

fn empty(folder: &Path) {
    for entry in folder.read_dir().expect("a readable folder").flatten() {
        let path = entry.path();
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.expect("a removable entry");
    }
}

/// NATS takes connections once it is ready.
fn takes_connections(address: SocketAddr) -> bool {
    TcpStream::connect(address).is_ok()
}

/// etcd takes connections before it has a leader. An etcd that is killed before it has stored its first members never
/// gets a leader again, so a started server must be healthy before it is used.
fn is_healthy(address: SocketAddr) -> bool {
    let request = || -> io::Result<String> {
        let mut connection = TcpStream::connect(address)?;
        connection.set_read_timeout(Some(ANSWER))?;
        connection.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    };
    request().is_ok_and(|answer| answer.contains(r#""health":"true""#))
}

/// A port that is free now. If another process takes it before the server does, the start of the server fails with a
/// reason; this is rare enough.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_can_be_killed_and_started_again() {
        let mut nats = NatsServer::started();
        let mut etcd = EtcdServer::started();
        nats.suspend();
        nats.resume();
        nats.kill();
        etcd.wipe();
        nats.start();
        etcd.start();
        assert!(TcpStream::connect(nats.0.address).is_ok());
        assert!(TcpStream::connect(etcd.0.address).is_ok());
    }
}
