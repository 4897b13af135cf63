//! Each small example as a newcomer runs it.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use private_servers::Postgres;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite;

/// An example that serves on a free port, ended with the test.
struct Served {
    process: Child,
    stdout: BufReader<ChildStdout>,
    address: SocketAddr,
}

impl Served {
    fn start(program: &str, arguments: &[&str]) -> Self {
        let mut process = Command::new(program)
            .args(arguments)
            .env("LISTEN", "127.0.0.1:0")
            .env("LEAD_MS", "200")
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut stdout = BufReader::new(process.stdout.take().expect("a pipe"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line");
        let address = line.trim().strip_prefix("listening on ");
        let address = address.and_then(|address| address.parse().ok());
        Self {
            process,
            stdout,
            address: address.unwrap_or_else(|| panic!("no address: {line}")),
        }
    }

    /// The next line that it prints.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    async fn send(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (StatusCode, HeaderMap, String) {
        let method = if body.is_empty() { "GET" } else { "POST" };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let client = Client::builder(TokioExecutor::new()).build_http::<Body>();
        let request = request.body(Body::from(body.to_owned())).expect("valid");
        let response = client.request(request).await.expect("a response");
        let (head, body) = response.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        let body = String::from_utf8(body.to_vec()).expect("text");
        (head.status, head.headers, body)
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let (status, _, body) = self.send(path, &[], "").await;
        (status.as_u16(), body)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn output(program: &str) -> String {
    let output = Command::new(program).output().expect("it runs");
    let text = String::from_utf8(output.stdout).expect("text");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    text
}

#[tokio::test]
async fn axum_with_postgres_through_deadpool_serves_a_query() {
    let postgres = Postgres::start().await.expect("Postgres starts");
    let served = Served::start(env!("CARGO_BIN_EXE_axum_postgres"), &[&postgres.url()]);
    let (status, body) = served.get("/").await;
    assert_eq!(status, 200, "{body}");
    assert!(body.parse::<u64>().expect("a count") > 100);
    let (_, report) = served.get("/pool").await;
    assert!(report.starts_with("Pool "), "{report}");
}

#[tokio::test]
async fn axum_with_sqlx_serves_queries_and_transactions() {
    let postgres = Postgres::start().await.expect("Postgres starts");
    let served = Served::start(env!("CARGO_BIN_EXE_axum_sqlx"), &[&postgres.url()]);
    for (name, expected) in [("pear", 201), ("apple", 201), ("pear", 500)] {
        let (status, _, body) = served.send("/", &[], name).await;
        assert_eq!(status, expected, "{body}");
    }
    assert_eq!(served.get("/").await, (200, "apple\npear".to_owned()));
}

#[test]
fn a_grpc_server_and_its_client_are_protected() {
    let text = output(env!("CARGO_BIN_EXE_grpc"));
    let lines: Vec<&str> = text.lines().skip(1).collect();
    assert_eq!(
        lines,
        [
            "call: Serving",
            "shed: ResourceExhausted, overloaded",
            "after 4 more: ResourceExhausted, quota exceeded",
        ]
    );
}

#[tokio::test]
async fn each_user_has_a_quota_and_guessing_tokens_has_one_too() {
    let served = Served::start(env!("CARGO_BIN_EXE_per_user"), &[]);
    let ask = async |token: &str| {
        let token = format!("Bearer {token}");
        let (status, _, body) = served.send("/", &[("authorization", &token)], "").await;
        (status.as_u16(), body)
    };
    for left in [2, 1, 0] {
        let expected = format!("hello ann, {left} left");
        assert_eq!(ask("good-ann").await, (200, expected));
    }
    assert_eq!(ask("good-ann").await.0, 429);
    assert_eq!(ask("good-bob").await.0, 200);
    // Ten a minute for the address; what the inner quota refused cost nothing.
    for guess in 0..6 {
        assert_eq!(ask(&format!("guess-{guess}")).await.0, 401);
    }
    assert_eq!(ask("guess-6").await.0, 429);
}

#[tokio::test]
async fn sockets_count_with_a_limiter_of_their_own() {
    let served = Served::start(env!("CARGO_BIN_EXE_websockets"), &["1"]);
    let handshake = async || {
        let stream = TcpStream::connect(served.address)
            .await
            .expect("it accepts");
        let url = format!("ws://{}/socket", served.address);
        tokio_tungstenite::client_async(url, stream).await
    };
    let (_socket, _) = handshake().await.expect("the first");
    match handshake().await {
        Err(tungstenite::Error::Http(refused)) => assert_eq!(refused.status(), 503),
        other => panic!("{other:?}"),
    }
    assert_eq!(served.get("/").await, (200, "1 sockets".to_owned()));
}

#[test]
fn an_outbound_client_waits_for_one_service_and_spares_the_other() {
    let text = output(env!("CARGO_BIN_EXE_outbound"));
    assert_eq!(text.matches("granted: 200 OK").count(), 10, "{text}");
    assert!(
        text.contains("refused: 503 Service Unavailable, try again after 1s"),
        "{text}"
    );
}

#[tokio::test]
async fn a_shutdown_is_announced_and_loses_no_request() {
    let mut served = Served::start(env!("CARGO_BIN_EXE_shutdown"), &[]);
    // It listens before it has started.
    assert_eq!(served.line(), "started");
    let probes = async |served: &Served| {
        let mut statuses = Vec::new();
        for path in ["/startedz", "/readyz", "/livez"] {
            statuses.push(served.get(path).await.0);
        }
        statuses
    };
    assert_eq!(probes(&served).await, [200, 200, 200]);
    // Inside until its body is sent, which the server asks for.
    let mut upload = Upload::start(served.address, "/").await;
    let terminated = Command::new("kill")
        .args(["-TERM", &served.process.id().to_string()])
        .status();
    assert!(terminated.expect("kill runs").success());
    assert_eq!(served.line(), "not ready");
    assert_eq!(probes(&served).await, [200, 503, 200]);
    assert!(upload.finish().await.starts_with("HTTP/1.1 200"));
    let mut rest = String::new();
    served.stdout.read_to_string(&mut rest).expect("text");
    assert_eq!(rest, "drained\n");
    assert!(served.process.wait().expect("it ends").success());
}

#[tokio::test]
async fn what_is_shed_is_no_failure_and_browsers_read_it() {
    let mut served = Served::start(env!("CARGO_BIN_EXE_layers"), &[]);
    let ask = async |path: &str| {
        let (status, headers, _) = served
            .send(path, &[("origin", "https://example.org")], "")
            .await;
        let readable = headers.contains_key("access-control-allow-origin")
            && headers.contains_key("access-control-expose-headers");
        (
            status.as_u16(),
            readable,
            headers.contains_key("retry-after"),
        )
    };
    let mut upload = Upload::start(served.address, "/upload").await;
    // Sheds cost no quota: of three, one is used.
    for _ in 0..5 {
        assert_eq!(ask("/").await, (503, true, true));
    }
    assert!(upload.finish().await.starts_with("HTTP/1.1 200"));
    // The permit comes back just after the last byte.
    while ask("/broken").await.0 == 503 {}
    assert_eq!(ask("/").await, (200, true, false));
    assert_eq!(ask("/").await, (429, true, true));
    served.process.kill().expect("it runs");
    let mut log = String::new();
    served.stdout.read_to_string(&mut log).expect("text");
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{log}");
    assert!(errors[0].contains("500"), "{log}");
}

/// A request that is inside the handler while its body is still to come.
struct Upload(TcpStream);

impl Upload {
    async fn start(address: SocketAddr, path: &str) -> Self {
        let mut stream = TcpStream::connect(address).await.expect("it accepts");
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: 4\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.expect("it is read");
        let mut asked = [0; 25];
        stream.read_exact(&mut asked).await.expect("an answer");
        assert_eq!(asked, *b"HTTP/1.1 100 Continue\r\n\r\n");
        Self(stream)
    }

    async fn finish(&mut self) -> String {
        self.0.write_all(b"done").await.expect("it is read");
        let mut text = String::new();
        let read = self.0.read_to_string(&mut text);
        tokio::time::timeout(Duration::from_secs(10), read)
            .await
            .expect("in time")
            .expect("text");
        text
    }
}
