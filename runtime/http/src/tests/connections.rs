//! Connections at their limits, and the framing of answers.

use super::*;

/// Writes `request`, which does not ask to close the connection, and reads until the server closes it.
async fn until_closed(address: SocketAddr, request: &str) -> Vec<u8> {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    timeout(PATIENCE, socket.read_to_end(&mut bytes))
        .await
        .expect("the server closes the connection")
        .unwrap();
    bytes
}

const CHUNKED: &str = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";

#[actix_rt::test]
async fn a_chunked_body_that_is_too_slow_gets_408_and_the_connection_is_closed() {
    let rig = Rig::start(Some("slow-chunks"), |config| {
        config.body_timeout = Duration::from_millis(50);
    })
    .await;
    let bytes = until_closed(rig.http.public_address(), &format!("{CHUNKED}1\r\nx")).await;
    let reply = Reply::parse(&bytes);
    reply.check_error(408, None);
    assert_eq!(reply.header("connection"), Some("close"));
}

#[actix_rt::test]
async fn an_endless_chunked_body_on_any_other_path_ends_with_the_connection() {
    let rig = Rig::serving("unread").await;
    for head in [
        CHUNKED.replace("completions", "nothing"),
        CHUNKED.replace("POST", "PUT"),
    ] {
        let bytes = until_closed(rig.http.public_address(), &format!("{head}1\r\nx\r\n")).await;
        let reply = Reply::parse(&bytes);
        assert!(matches!(reply.status, 404 | 405), "{reply:?}");
        assert_eq!(reply.header("connection"), Some("close"));
    }
}

#[actix_rt::test]
async fn a_broken_chunk_is_the_clients_error_and_not_a_closed_connection() {
    let rig = Rig::serving("broken-chunk").await;
    for chunk in ["zz\r\n", "1\r\nabc", "1 2\r\n"] {
        let bytes = until_closed(rig.http.public_address(), &format!("{CHUNKED}{chunk}")).await;
        let message = Reply::parse(&bytes).check_error(400, None);
        assert!(message.contains("chunk"), "{message}");
    }
}

#[actix_rt::test]
async fn a_client_of_http_1_0_receives_a_stream_as_a_bare_body_that_ends_with_the_connection() {
    let mut rig = Rig::serving("old-client").await;
    let request = chat("old-client", r#","stream":true"#)
        .replace("HTTP/1.1", "HTTP/1.0")
        .replace("Connection: close", "Connection: keep-alive");
    let address = rig.http.public_address();
    let client = actix_rt::spawn(async move { until_closed(address, &request).await });
    let (_, _, responder) = rig.call().await;
    responder.queue(1, b"data: {}\n\n").unwrap();
    responder.flush();
    responder.queue(1, b"data: [DONE]\n\n").unwrap();
    responder.end(StreamSummary::default());
    let text = String::from_utf8(client.await.unwrap()).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let head = head.to_ascii_lowercase();
    assert!(
        !head.contains("transfer-encoding") && !head.contains("keep-alive"),
        "{head}"
    );
    assert_eq!(body, "data: {}\n\ndata: [DONE]\n\n");
}

#[actix_rt::test]
async fn a_head_with_bare_line_feeds_is_refused() {
    let rig = Rig::serving("bare").await;
    let bytes = until_closed(rig.http.public_address(), "GET /live HTTP/1.1\nHost: a\n\n").await;
    assert!(
        bytes.starts_with(b"HTTP/1.1 400 "),
        "{}",
        String::from_utf8_lossy(&bytes)
    );
}

#[actix_rt::test]
async fn an_address_with_as_many_connections_as_it_may_have_is_refused_further_ones() {
    let rig = Rig::start(Some("crowded"), |config| {
        config.max_connections_per_address = Some(1);
    })
    .await;
    let address = rig.http.public_address();
    let mut first = TcpStream::connect(address).await.unwrap();
    let live = b"GET /live HTTP/1.1\r\nHost: a\r\n\r\n";
    first.write_all(live).await.unwrap();
    first.read_exact(&mut [0; 12]).await.unwrap();
    let mut second = TcpStream::connect(address).await.unwrap();
    let mut refusal = [0; 12];
    timeout(PATIENCE, second.read_exact(&mut refusal))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&refusal, b"HTTP/1.1 429");
    drop(first);
    // The place is free once the server has seen the end of the first connection.
    timeout(PATIENCE, async {
        loop {
            let mut socket = TcpStream::connect(address).await.unwrap();
            let mut status = [0; 12];
            if socket.write_all(live).await.is_ok()
                && socket.read_exact(&mut status).await.is_ok()
                && &status == b"HTTP/1.1 200"
            {
                return;
            }
        }
    })
    .await
    .expect("the place is free again");
}

#[actix_rt::test]
async fn bodies_past_the_budget_of_all_bodies_are_refused_and_give_it_back() {
    let rig = Rig::start(Some("budget"), |config| config.body_budget_bytes = 100_000).await;
    let large = chat("budget", &format!(r#","x":"{}""#, "x".repeat(100_000)));
    let reply = rig.public(&large).await;
    reply.check_error(429, None);
    assert_eq!(reply.header("retry-after"), Some("1"));
    // A body that is still arriving holds its part.
    let half = chat("budget", &format!(r#","x":"{}""#, "x".repeat(80_000)));
    let mut arriving = TcpStream::connect(rig.http.public_address()).await.unwrap();
    arriving.write_all(&half.as_bytes()[..79_000]).await.unwrap();
    let other = chat("other", &format!(r#","x":"{}""#, "x".repeat(60_000)));
    timeout(PATIENCE, async {
        // The second body is refused once the first one has arrived so far.
        while rig.public(&other).await.status != 429 {}
    })
    .await
    .expect("both bodies together pass the budget");
    drop(arriving);
    timeout(PATIENCE, async {
        while rig.public(&other).await.status != 404 {}
    })
    .await
    .expect("the budget is free again");
}

/// A client that does not read keeps the library from asking the answer for more.
#[actix_rt::test]
async fn the_deadline_ends_an_answer_whose_client_does_not_read() {
    let mut rig = Rig::start(Some("unread-answer"), |config| {
        config.request_timeout = Duration::from_secs(1);
    })
    .await;
    let mut socket = TcpStream::connect(rig.http.public_address()).await.unwrap();
    socket
        .write_all(chat("unread-answer", r#","stream":true"#).as_bytes())
        .await
        .unwrap();
    let (_, _, responder) = rig.call().await;
    // Far more than all buffers on the way hold.
    let event = format!("data: {}\n\n", "x".repeat(1 << 20));
    timeout(PATIENCE, async {
        while responder.send(event.as_bytes()).await.is_ok() {}
    })
    .await
    .expect("the work ends at the deadline");
    let mut received = Vec::new();
    timeout(PATIENCE, socket.read_to_end(&mut received))
        .await
        .unwrap()
        .unwrap();
    let reply = Reply::parse(&received);
    let last = reply.text().trim_end().rsplit("data: ").next().unwrap();
    let error: Value = serde_json::from_str(last).unwrap();
    assert_eq!(error["error"]["type"], "timeout_error", "{error}");
}

#[actix_rt::test]
async fn the_tokens_of_an_answer_that_breaks_off_are_counted() {
    let mut rig = Rig::serving("counted").await;
    let mut socket = TcpStream::connect(rig.http.public_address()).await.unwrap();
    socket
        .write_all(chat("counted", r#","stream":true"#).as_bytes())
        .await
        .unwrap();
    let (_, parts, responder) = rig.call().await;
    let counter = |name: &str| {
        format!(r#"signalbox_{name}_tokens_total{{model="counted",endpoint="chat_completions"}} "#)
    };
    let (prompt, completion) = (counter("prompt"), counter("completion"));
    let prompt = format!("{prompt}{}", parts.tokens.len());
    responder.queue(70, b"data: {}\n\n").unwrap();
    responder.flush();
    // While the answer is under way.
    timeout(PATIENCE, async {
        loop {
            let metrics = rig.admin(get("/metrics").as_bytes()).await;
            if metrics.text().contains(&format!("{completion}70")) {
                assert!(metrics.text().contains(&prompt), "{}", metrics.text());
                return;
            }
        }
    })
    .await
    .expect("the tokens are counted as they flow");
    responder.queue(3, b"data: {}\n\n").unwrap();
    responder.flush();
    let mut bytes = [0; 512];
    let mut text = String::new();
    while text.matches("data: {}").count() < 2 {
        let read = socket.read(&mut bytes).await.unwrap();
        text.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
    }
    drop(socket);
    timeout(PATIENCE, responder.cancelled()).await.expect("cancelled");
    let metrics = rig.admin(get("/metrics").as_bytes()).await;
    assert!(
        metrics.text().contains(&format!("{completion}73")),
        "{}",
        metrics.text()
    );
}
