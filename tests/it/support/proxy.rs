//! A way to a server that can be cut and mended: to the program the server has gone and come back.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Passes connections on, on an address of its own.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    server: String,
    passing: Option<Arc<Mutex<JoinSet<()>>>>,
}

impl Proxy {
    /// In front of `server`, `host:port`.
    pub async fn to(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut proxy = Self {
            address: listener.local_addr().unwrap(),
            server: server.to_owned(),
            passing: None,
        };
        proxy.pass(listener);
        proxy
    }

    /// Breaks every connection and takes no new ones.
    pub fn cut(&mut self) {
        if let Some(passing) = self.passing.take() {
            passing.lock().unwrap().abort_all();
        }
    }

    /// Takes connections again.
    pub async fn mend(&mut self) {
        // The address is free as soon as the task that listened is gone.
        loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => return self.pass(listener),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            }
        }
    }

    fn pass(&mut self, listener: TcpListener) {
        let tasks = Arc::new(Mutex::new(JoinSet::new()));
        let (server, connections) = (self.server.clone(), Arc::clone(&tasks));
        tasks.lock().unwrap().spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let server = server.clone();
                connections.lock().unwrap().spawn(async move {
                    if let Ok(mut server) = TcpStream::connect(server).await {
                        // However it ends, it has ended.
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        self.passing = Some(tasks);
    }
}
