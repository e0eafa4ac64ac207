//! Being told to stop: over real connections.

use std::time::Duration;

use detoxd::http::server::{self, Drained};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::support::{
    app::App,
    fake::{MILDER, SLOW, TOXIC},
};

struct Served {
    app: App,
    address: std::net::SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<std::io::Result<Drained>>,
}

async fn serve(patience: Duration) -> Served {
    let app = App::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving = server::serve(listener, app.state.clone(), stop.clone(), patience);
    Served {
        app,
        address,
        stop,
        serving: tokio::spawn(serving),
    }
}

/// Posts a text and reads the answer to the end of the connection.
async fn post(address: std::net::SocketAddr, text: &str) -> std::io::Result<String> {
    let body = json!({ "text": text }).to_string();
    let length = body.len();
    let mut connection = TcpStream::connect(address).await?;
    let request = format!(
        "POST /detoxify HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    connection.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await?;
    Ok(answer)
}

fn text_of(answer: &str) -> Value {
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str::<Value>(body).unwrap()["text"].clone()
}

#[tokio::test]
async fn a_running_request_is_finished_and_nothing_new_accepted() {
    let Served {
        app,
        address,
        stop,
        serving,
    } = serve(Duration::from_secs(30)).await;
    assert_eq!(text_of(&post(address, TOXIC).await.unwrap()), MILDER);

    let running = tokio::spawn(post(address, SLOW));
    app.slow_started(1).await;
    stop.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!serving.is_finished());
    app.get("/health/ready").await.problem(503);
    assert!(post(address, TOXIC).await.is_err(), "the port is closed");

    app.rewriter.finish.notify_one();
    let answer = running.await.unwrap().unwrap();
    assert_eq!(text_of(&answer), "The slow report is late again.");
    assert_eq!(serving.await.unwrap().unwrap(), Drained::Complete);
}

#[tokio::test]
async fn patience_ends() {
    let Served {
        app,
        address,
        stop,
        serving,
    } = serve(Duration::from_millis(50)).await;
    let _running = tokio::spawn(post(address, SLOW));
    app.slow_started(1).await;
    stop.cancel();
    assert_eq!(serving.await.unwrap().unwrap(), Drained::Cut { running: 1 });
}

#[tokio::test]
async fn with_nothing_running_it_ends_at_once() {
    let Served { stop, serving, .. } = serve(Duration::from_secs(30)).await;
    stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(5), serving).await;
    assert_eq!(ended.unwrap().unwrap().unwrap(), Drained::Complete);
}
