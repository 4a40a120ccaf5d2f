//! A connection without the HTTP library: the test reads it, and is the client too.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::{advance, pause, resume, timeout},
};

use super::*;
use crate::connection_limits::AddressLimit;

const HOUR: Duration = Duration::from_secs(3_600);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// The server's and the client's side.
async fn connected() -> (Connection, TcpStream) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))
        .await
        .unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (socket, peer) = listener.accept().await.unwrap();
    let place = AddressLimit::new(None).admit(peer.ip()).unwrap();
    (Connection::new(socket, place), client)
}

/// Writes `bytes` as the client and reads them as the server.
async fn pass(connection: &mut Connection, client: &mut TcpStream, bytes: &[u8]) {
    client.write_all(bytes).await.unwrap();
    let mut read = vec![0; bytes.len()];
    connection.read_exact(&mut read).await.unwrap();
    assert_eq!(read, bytes);
}

/// How long the connection stays open if nothing arrives, `None` for an hour, and what the client receives then.
async fn end(mut connection: Connection, mut client: TcpStream) -> (Option<Duration>, String) {
    pause();
    let began = Instant::now();
    let ended = timeout(HOUR, connection.read(&mut [0; 64])).await;
    let lasted = ended.is_ok().then(|| began.elapsed());
    resume();
    assert!(
        matches!(ended, Err(_) | Ok(Ok(0))),
        "the library sees a client that closed its side: {ended:?}"
    );
    drop(connection);
    let mut received = String::new();
    client.read_to_string(&mut received).await.unwrap();
    (lasted, received)
}

#[actix_rt::test]
async fn a_head_that_begins_must_be_complete_in_time_on_every_request_of_a_connection() {
    for earlier_requests in [0, 1, 3] {
        let (mut connection, mut client) = connected().await;
        for _ in 0..earlier_requests {
            pass(&mut connection, &mut client, REQUEST).await;
            drop(connection.handle().begin(false));
        }
        pass(&mut connection, &mut client, &REQUEST[..10]).await;
        let (lasted, received) = end(connection, client).await;
        let lasted = lasted.expect("the connection is closed");
        assert!(lasted >= HEAD_TIMEOUT - Duration::from_secs(1), "{lasted:?}");
        assert!(received.starts_with("HTTP/1.1 408 "), "{received:?}");
    }
}

#[actix_rt::test]
async fn a_head_that_arrives_byte_by_byte_gets_no_more_time() {
    let (mut connection, mut client) = connected().await;
    pass(&mut connection, &mut client, &REQUEST[..1]).await;
    pause();
    for byte in 1..REQUEST.len() - 4 {
        client.write_all(&REQUEST[byte..=byte]).await.unwrap();
        advance(Duration::from_millis(500)).await;
        let mut read = [0];
        if connection.read(&mut read).await.unwrap() == 0 {
            assert!((8..=11).contains(&byte), "{byte}");
            return;
        }
    }
    panic!("the head went on for 10 s");
}

#[actix_rt::test]
async fn an_idle_connection_and_one_whose_request_is_under_way_have_no_deadline_here() {
    let (mut connection, mut client) = connected().await;
    pass(&mut connection, &mut client, REQUEST).await;
    drop(connection.handle().begin(false));
    assert_eq!(end(connection, client).await, (None, String::new()), "idle");

    let (mut connection, mut client) = connected().await;
    pass(&mut connection, &mut client, REQUEST).await;
    let exchange = connection.handle().begin(false);
    assert_eq!(end(connection, client).await, (None, String::new()), "under way");
    drop(exchange);
}

#[actix_rt::test]
async fn a_head_that_was_read_ahead_has_a_deadline_too_and_no_answer() {
    let (mut connection, mut client) = connected().await;
    let ahead = [REQUEST, &REQUEST[..10]].concat();
    pass(&mut connection, &mut client, &ahead).await;
    drop(connection.handle().begin(false));
    let (lasted, received) = end(connection, client).await;
    assert!(lasted.is_some(), "the connection is closed");
    assert_eq!(received, "", "nobody knows whether there is a head");
}

#[actix_rt::test]
async fn a_bare_line_feed_in_a_head_is_refused_and_one_in_a_body_is_not() {
    let (mut connection, mut client) = connected().await;
    client.write_all(b"GET / HTTP/1.1\nHost: a\n\n").await.unwrap();
    let read = connection.read(&mut [0; 64]).await.unwrap();
    assert_eq!(read, 0, "the library sees nothing of it");
    drop(connection);
    let mut received = String::new();
    client.read_to_string(&mut received).await.unwrap();
    assert!(received.starts_with("HTTP/1.1 400 "), "{received:?}");

    let (mut connection, mut client) = connected().await;
    pass(&mut connection, &mut client, &[REQUEST, b"a\nb"].concat()).await;
    let _exchange = connection.handle().begin(false);
    pass(&mut connection, &mut client, b"c\n\nd").await;
}

#[actix_rt::test]
async fn a_connection_whose_chunked_body_nobody_reads_is_closed_although_bytes_arrive() {
    let (mut connection, mut client) = connected().await;
    pass(&mut connection, &mut client, REQUEST).await;
    let exchange = connection.handle().begin(true);
    assert!(exchange.closes());
    drop(exchange);
    pause();
    for _ in 0..20 {
        client.write_all(b"x").await.unwrap();
        advance(Duration::from_millis(500)).await;
        if connection.read(&mut [0; 64]).await.unwrap() == 0 {
            return;
        }
    }
    panic!("the connection is open after 10 s");
}

#[actix_rt::test]
async fn a_connection_whose_chunked_body_was_read_stays_open() {
    let (mut connection, mut client) = connected().await;
    pass(&mut connection, &mut client, REQUEST).await;
    let exchange = connection.handle().begin(true);
    connection.handle().body_ended();
    assert!(!exchange.closes());
    drop(exchange);
    assert_eq!(end(connection, client).await, (None, String::new()));
}
