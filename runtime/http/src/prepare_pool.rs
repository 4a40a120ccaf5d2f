//! Prepares large requests beside the HTTP threads.
//!
//! An HTTP thread streams the answers of many clients, so no request may hold it for long. Reading and encoding a body
//! takes time in proportion to its size: normal text 3 ns a byte, the worst text (one letter or space, repeated) 2 µs a
//! byte. A body up to [`SMALL_BYTES`] is prepared at once on the HTTP thread, which is faster than to hand it over. A
//! larger one is prepared on threads of this pool.
//!
//! The pool has two lanes, so that a few huge bodies, which take seconds each, do not delay all long prompts. Each lane
//! has a bounded number of threads and a bounded queue. A request that finds its lane's queue full is refused.
//!
//! A third lane writes the reports that grow with the number of workers: thousands of them take tens of milliseconds.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use metrics::{counter, describe_counter, describe_histogram, histogram};
use signalbox_protocol::{ErrorKind, WireError};
use tokio::{
    runtime::{Builder, Runtime},
    sync::{Semaphore, oneshot},
};

/// Largest body in bytes that is prepared on the HTTP thread: its worst text takes some 30 ms there.
pub(crate) const SMALL_BYTES: usize = 16 * 1024;

/// Smallest body in bytes of the lane for huge ones: its worst text takes a second. Normal text of this size has 130,000
/// tokens.
const HUGE_BYTES: usize = 512 * 1024;

/// Most threads of the lane for large bodies. Half of the cores are used, and more than this many encode faster than an
/// HTTP thread reads.
const MAX_LARGE_THREADS: usize = 8;

/// Large bodies that may wait, for each thread of the lane. The last one of them waits a few milliseconds with normal text.
const LARGE_QUEUE: usize = 64;

/// Huge bodies are prepared one at a time: encoding takes sixty times their size in memory.
const HUGE_THREADS: usize = 1;

/// Huge bodies that may wait.
const HUGE_QUEUE: usize = 16;

/// Reports are written one at a time.
const REPORT_THREADS: usize = 1;

/// Reports that may wait. Load balancers ask once a second or less often.
const REPORT_QUEUE: usize = 64;

/// Time to wait for a turn and to be prepared, of the requests that the pool prepared. By lane.
pub(crate) const PREPARE_SECONDS: &str = "signalbox_http_prepare_seconds";
const REFUSED: &str = "signalbox_http_prepare_refused_total";

/// Gives the installed recorder the help text of each metric.
pub(crate) fn describe() {
    describe_histogram!(
        PREPARE_SECONDS,
        "Seconds that requests with a large or huge body, and reports, waited for their turn beside the HTTP threads and took, by lane"
    );
    describe_counter!(
        REFUSED,
        "Requests with a large or huge body, and reports, that were refused because too many waited, by lane"
    );
}

/// The pool of a process, shared by its HTTP threads.
#[derive(Debug)]
pub(crate) struct PreparePool {
    large: Lane,
    huge: Lane,
    reports: Lane,
}

impl PreparePool {
    /// The pool of a machine with this many cores. Its threads start when they are needed.
    pub(crate) fn new(cores: usize) -> std::io::Result<Self> {
        let threads = (cores / 2).clamp(1, MAX_LARGE_THREADS);
        Ok(Self {
            large: Lane::new("large", threads, threads * LARGE_QUEUE)?,
            huge: Lane::new("huge", HUGE_THREADS, HUGE_QUEUE)?,
            reports: Lane::new("report", REPORT_THREADS, REPORT_QUEUE)?,
        })
    }

    /// Runs `prepare`, which reads a body of `bytes` bytes: here if the body is small, otherwise on the pool.
    ///
    /// # Errors
    /// Too many bodies of this size wait, or `prepare` panicked.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        prepare: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WireError> {
        if bytes <= SMALL_BYTES {
            return Ok(prepare());
        }
        let lane = if bytes < HUGE_BYTES {
            &self.large
        } else {
            &self.huge
        };
        lane.run(prepare).await
    }

    /// Writes a report about all workers on the pool.
    ///
    /// # Errors
    /// Too many reports wait, or `write` panicked.
    pub(crate) async fn report<T: Send + 'static>(
        &self,
        write: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WireError> {
        self.reports.run(write).await
    }
}

#[derive(Debug)]
struct Lane {
    name: &'static str,
    /// Its blocking pool has the threads. `None` only while it is dropped.
    threads: Option<Runtime>,
    /// A permit for each body that may wait or be prepared.
    places: Arc<Semaphore>,
}

impl Lane {
    fn new(name: &'static str, threads: usize, queue: usize) -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .max_blocking_threads(threads)
            .thread_name(format!("prepare-{name}"))
            .build()?;
        Ok(Self {
            name,
            threads: Some(runtime),
            places: Arc::new(Semaphore::new(threads + queue)),
        })
    }

    async fn run<T: Send + 'static>(
        &self,
        prepare: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WireError> {
        let refused = || {
            counter!(REFUSED, "lane" => self.name).increment(1);
            let message = format!(
                "too many requests of this kind ({}) wait; try again shortly",
                self.name
            );
            WireError::new(ErrorKind::Overloaded, message)
        };
        let place = self.places.clone().try_acquire_owned().map_err(|_| refused())?;
        let threads = self.threads.as_ref().ok_or_else(refused)?;
        let began = Instant::now();
        let (reply, prepared) = oneshot::channel();
        threads.spawn_blocking(move || {
            // The client may be gone since.
            if !reply.is_closed()
                && let Ok(prepared) = catch_unwind(AssertUnwindSafe(prepare))
            {
                let _ = reply.send(prepared);
            }
            // Held until here, because a body whose client is gone still takes a thread.
            drop(place);
        });
        let prepared = prepared.await.map_err(|_| {
            let message = "reading the request failed, which is a defect of this program";
            WireError::new(ErrorKind::Internal, message)
        });
        histogram!(PREPARE_SECONDS, "lane" => self.name).record(began.elapsed());
        prepared
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        // A runtime that is dropped waits for its threads, which an asynchronous caller may not.
        if let Some(threads) = self.threads.take() {
            threads.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    fn thread_name() -> Option<String> {
        thread::current().name().map(str::to_owned)
    }

    #[actix_rt::test]
    async fn small_bodies_are_prepared_here_and_larger_ones_in_a_lane_of_the_pool() {
        let pool = PreparePool::new(4).unwrap();
        let here = thread_name();
        assert_eq!(pool.run(SMALL_BYTES, thread_name).await.unwrap(), here);
        for (bytes, name) in [
            (SMALL_BYTES + 1, "prepare-large"),
            (HUGE_BYTES - 1, "prepare-large"),
            (HUGE_BYTES, "prepare-huge"),
            (16 << 20, "prepare-huge"),
        ] {
            let there = pool.run(bytes, thread_name).await.unwrap();
            assert_eq!(there.as_deref(), Some(name), "{bytes}");
        }
        let there = pool.report(thread_name).await.unwrap();
        assert_eq!(there.as_deref(), Some("prepare-report"));
    }

    #[actix_rt::test]
    async fn a_full_lane_refuses_and_the_other_lane_goes_on() {
        let pool = Arc::new(PreparePool::new(1).unwrap());
        let (release, blocked) = mpsc::sync_channel::<()>(64);
        let blocked = Arc::new(std::sync::Mutex::new(blocked));
        let waiting: Vec<_> = (0..HUGE_THREADS + HUGE_QUEUE)
            .map(|_| {
                let (pool, blocked) = (Arc::clone(&pool), Arc::clone(&blocked));
                actix_rt::spawn(async move {
                    pool.run(HUGE_BYTES, move || blocked.lock().unwrap().recv().is_ok())
                        .await
                })
            })
            .collect();
        tokio::task::yield_now().await;
        let refused = pool.run(HUGE_BYTES, || ()).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Overloaded);
        assert_eq!(pool.run(HUGE_BYTES - 1, || 7).await, Ok(7));
        for _ in &waiting {
            release.send(()).unwrap();
        }
        for waited in waiting {
            assert_eq!(waited.await.unwrap(), Ok(true));
        }
        assert_eq!(pool.run(HUGE_BYTES, || 8).await, Ok(8), "there is room again");
    }

    #[actix_rt::test]
    async fn a_body_whose_client_is_gone_is_not_prepared() {
        let pool = Arc::new(PreparePool::new(1).unwrap());
        let (release, blocked) = mpsc::sync_channel::<()>(64);
        let (started, is_started) = oneshot::channel();
        let first = Arc::clone(&pool);
        let first = actix_rt::spawn(async move {
            let block = move || {
                let _ = started.send(());
                blocked.recv().is_ok()
            };
            first.run(HUGE_BYTES, block).await
        });
        is_started.await.unwrap();
        let (prepared, was_prepared) = mpsc::sync_channel(1);
        let gone = Arc::clone(&pool);
        let gone = actix_rt::spawn(async move { gone.run(HUGE_BYTES, move || prepared.send(())).await });
        tokio::task::yield_now().await;
        gone.abort();
        let _ = gone.await;
        release.send(()).unwrap();
        assert_eq!(first.await.unwrap(), Ok(true));
        assert_eq!(pool.run(HUGE_BYTES, || 1).await, Ok(1));
        assert!(was_prepared.recv().is_err(), "dropped without a call");
    }

    #[actix_rt::test]
    async fn a_panic_is_an_error_of_that_request_only() {
        let pool = PreparePool::new(1).unwrap();
        let failed = pool
            .run(HUGE_BYTES, || panic!("this panic is part of the test"))
            .await;
        let failed: WireError = failed.map(|never: ()| never).unwrap_err();
        assert_eq!(failed.kind, ErrorKind::Internal);
        assert_eq!(pool.run(HUGE_BYTES, || 1).await, Ok(1));
    }
}
