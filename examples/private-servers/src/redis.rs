use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::StartError;
use crate::find::directory_of;
use crate::process::{Process, free_port};

/// A private Redis server.
///
/// Ended (SIGKILL) and removed from disk on drop. It keeps nothing: a restarted server is empty.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    bin: PathBuf,
    port: u16,
    settings: Vec<(String, String)>,
}

impl Redis {
    /// Starts a server with the [default settings](crate#settings) and waits until it answers.
    ///
    /// # Errors
    ///
    /// No Redis on this machine, or a server that ended or did not answer within 30 seconds; the
    /// message carries the last line of its log.
    pub async fn start() -> Result<Self, StartError> {
        Self::start_with(&[]).await
    }

    /// As [`start`](Self::start), with settings as in `redis.conf`: `[("maxclients", "20")]`.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_with(settings: &[(&str, &str)]) -> Result<Self, StartError> {
        let bin = directory_of(
            &["redis-server"],
            &["/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"],
            "redis-server",
        )?;
        let settings = settings
            .iter()
            .map(|&(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        let process = Process::new("redis", false)?;
        let mut server = Self {
            process,
            bin,
            port: free_port()?,
            settings,
        };
        server.run().await?;
        Ok(server)
    }

    /// `redis://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The loopback port it listens on. The same after a [`restart`](Self::restart).
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the server, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// Kills the server (SIGKILL).
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the server again, empty, on the same port, and waits until it answers. Kills it
    /// first if it is running.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn restart(&mut self) -> Result<(), StartError> {
        self.kill();
        self.run().await
    }

    async fn run(&mut self) -> Result<(), StartError> {
        let mut command = self.process.command(&self.bin.join("redis-server"));
        command
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(self.process.directory());
        for (name, value) in &self.settings {
            command.arg(format!("--{name}")).arg(value);
        }
        let port = self.port;
        self.process
            .start(command, async |_| answers(port).await)
            .await
    }
}

/// Whether a Redis answers `PING` on this port.
async fn answers(port: u16) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"PING\r\n").await?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    matches!(timeout(Duration::from_secs(1), ask).await, Ok(Ok(answer)) if &answer == b"+PONG\r\n")
}
