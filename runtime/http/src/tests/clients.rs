//! Clients that disconnect, are slow, or send too much.

use super::*;

#[actix_rt::test]
async fn a_client_that_disconnects_cancels_its_stream() {
    let mut rig = Rig::serving("closing").await;
    // A closed socket and a socket closed for writing both count as a disconnected client.
    for half in [false, true] {
        let mut socket = TcpStream::connect(rig.http.public_address()).await.unwrap();
        socket
            .write_all(chat("closing", r#","stream":true"#).as_bytes())
            .await
            .unwrap();
        let (_, _, responder) = rig.call().await;
        responder.queue(1, b"data: {}\n\n").unwrap();
        responder.flush();
        let mut first = [0; 1];
        socket.read_exact(&mut first).await.unwrap();
        let kept = if half {
            socket.shutdown().await.unwrap();
            Some(socket)
        } else {
            drop(socket);
            None
        };
        timeout(PATIENCE, responder.cancelled())
            .await
            .expect("the work is cancelled");
        drop(kept);
    }
    let metrics = rig.admin(get("/metrics").as_bytes()).await;
    let line = r#"signalbox_requests_total{model="closing",endpoint="chat_completions",status="499"} 2"#;
    assert!(metrics.text().contains(line), "{}", metrics.text());
}

#[actix_rt::test]
async fn a_client_that_disconnects_before_the_first_token_cancels_too() {
    let mut rig = Rig::serving("early").await;
    for stream in ["true", "false"] {
        let mut socket = TcpStream::connect(rig.http.public_address()).await.unwrap();
        socket
            .write_all(chat("early", &format!(r#","stream":{stream}"#)).as_bytes())
            .await
            .unwrap();
        let (_, _, responder) = rig.call().await;
        drop(socket);
        timeout(PATIENCE, responder.cancelled())
            .await
            .expect("the work is cancelled");
    }
}

#[actix_rt::test]
async fn an_encoded_body_is_refused_and_never_decompressed() {
    let rig = Rig::serving("encoded").await;
    for encoding in ["gzip", "br", "zstd", "deflate", "gzip, identity"] {
        let request = chat("encoded", "").replace("Host:", &format!("Content-Encoding: {encoding}\r\nHost:"));
        let message = rig.public(&request).await.check_error(415, None);
        assert!(message.contains(encoding), "{message}");
    }
    let request = chat("other", "").replace("Host:", "Content-Encoding: identity\r\nHost:");
    rig.public(&request).await.check_error(404, Some("model"));
}

#[actix_rt::test]
async fn a_body_that_does_not_arrive_in_time_is_refused() {
    let rig = Rig::start(Some("slow"), |config| {
        config.body_timeout = Duration::from_millis(50)
    })
    .await;
    let whole = chat("slow", "");
    let message = rig.public(&whole[..whole.len() - 1]).await.check_error(408, None);
    assert!(message.contains("0.05 s"), "{message}");
}

#[actix_rt::test]
async fn a_body_past_the_limit_is_refused_with_the_limit_named() {
    let limit = 4_096;
    let rig = Rig::start(Some("large"), |config| config.max_body_bytes = limit).await;
    let body = |size: usize| {
        let empty = r#"{"model":"other","messages":[{"role":"user","content":""}]}"#;
        empty.replace(r#""""#, &format!("\"{}\"", "x".repeat(size - empty.len())))
    };
    let at_limit = post("/v1/chat/completions", &body(limit));
    rig.public(&at_limit).await.check_error(404, Some("model"));
    let over_limit = post("/v1/chat/completions", &body(limit + 1));
    assert!(
        rig.public(&over_limit)
            .await
            .check_error(413, None)
            .contains("4096")
    );
    // In chunks, without an announced length.
    let chunk = format!("800\r\n{}\r\n", "x".repeat(0x800)).repeat(3);
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n";
    let chunked = format!("{head}\r\n{chunk}0\r\n\r\n");
    assert!(rig.public(&chunked).await.check_error(413, None).contains("4096"));
}

/// A client that writes all of a large body before it reads must get the answer, not a reset.
#[actix_rt::test]
async fn a_twenty_mebibyte_body_is_answered_413() {
    let rig = Rig::serving("huge").await;
    let request = post("/v1/chat/completions", &"x".repeat(20 << 20));
    rig.public(&request).await.check_error(413, None);
}

#[actix_rt::test]
async fn ambiguous_framing_is_refused() {
    let rig = Rig::serving("smuggling").await;
    for framing in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: +5\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
    ] {
        let request = format!("POST /v1/completions HTTP/1.1\r\nHost: a\r\n{framing}\r\n0\r\n\r\nGET /live");
        let reply = rig.public(&request).await;
        assert_eq!(reply.status, 400, "{framing}: {reply:?}");
    }
}

#[actix_rt::test]
async fn stopping_lets_requests_end_and_refuses_new_ones() {
    let mut rig = Rig::serving("stopping").await;
    let address = rig.http.public_address();
    let mut waiting = TcpStream::connect(address).await.unwrap();
    waiting
        .write_all(b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    waiting.read_exact(&mut [0; 12]).await.unwrap();
    let client =
        actix_rt::spawn(
            async move { exchange(address, chat("stopping", r#","stream":true"#).as_bytes()).await },
        );
    let (_, _, responder) = rig.call().await;
    responder.queue(1, b"data: {}\n\n").unwrap();
    responder.flush();
    let stopped = actix_rt::spawn(rig.http.stop(PATIENCE));
    tokio::task::yield_now().await;
    waiting.write_all(chat("stopping", "").as_bytes()).await.unwrap();
    let mut late = Vec::new();
    timeout(PATIENCE, waiting.read_to_end(&mut late))
        .await
        .unwrap()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&late).contains("HTTP/1.1 503"),
        "{}",
        String::from_utf8_lossy(&late)
    );
    assert!(!stopped.is_finished());
    responder.end(StreamSummary::default());
    assert_eq!(client.await.unwrap().text(), "data: {}\n\n");
    timeout(PATIENCE, stopped).await.expect("it stops").unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[actix_rt::test]
async fn requests_that_outlast_the_grace_end_with_an_error_that_the_client_receives() {
    let mut rig = Rig::serving("cut").await;
    let address = rig.http.public_address();
    let [stream, whole] = ["true", "false"].map(|stream| {
        let request = chat("cut", &format!(r#","stream":{stream}"#));
        actix_rt::spawn(async move { exchange(address, request.as_bytes()).await })
    });
    let mut responders = Vec::new();
    for _ in 0..2 {
        let (request, _, responder) = rig.call().await;
        if request.format.stream {
            responder.queue(1, b"data: {}\n\n").unwrap();
            responder.flush();
        }
        responders.push(responder);
    }
    timeout(PATIENCE, rig.http.stop(Duration::from_millis(200)))
        .await
        .expect("it stops");
    for responder in responders {
        timeout(PATIENCE, responder.cancelled())
            .await
            .expect("the work is cancelled");
    }
    whole.await.unwrap().check_error(503, None);
    let reply = stream.await.unwrap();
    let (first, last) = reply.text().split_once("\n\n").unwrap();
    assert_eq!((reply.status, first), (200, "data: {}"));
    let error: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap().trim_end()).unwrap();
    assert_eq!(error["error"]["type"], "service_unavailable_error");
}
