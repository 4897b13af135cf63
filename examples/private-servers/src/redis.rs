use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::StartError;
use crate::find::directory_of;
use crate::process::{Process, free_port};

/// A private Redis server, or a Valkey server, which is the same to its clients.
///
/// Ended (SIGKILL) and removed from disk on drop. It keeps nothing: a restarted server is empty.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    program: PathBuf,
    environment: Vec<(String, String)>,
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
        Self::start_program("redis-server", &[], settings).await
    }

    /// As [`start_with`](Self::start_with), running `program` (`redis-server` or `valkey-server`)
    /// with these variables in its environment, `[("TZ", "UTC")]`.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_program(
        program: &str,
        environment: &[(&str, &str)],
        settings: &[(&str, &str)],
    ) -> Result<Self, StartError> {
        let program = directory_of(&[program], PLACES, program)?.join(program);
        let owned = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter();
            pairs.map(|&(k, v)| (k.to_owned(), v.to_owned())).collect()
        };
        let mut server = Self {
            process: Process::new("redis", false)?,
            program,
            environment: owned(environment),
            port: free_port()?,
            settings: owned(settings),
        };
        server.run().await?;
        Ok(server)
    }

    /// The server programs there are on this machine, of `redis-server` and `valkey-server`.
    #[must_use]
    pub fn programs() -> Vec<&'static str> {
        let is_here = |program: &&str| directory_of(&[program], PLACES, program).is_ok();
        ["redis-server", "valkey-server"]
            .into_iter()
            .filter(is_here)
            .collect()
    }

    /// Sends one command and returns the reply: the text, the number, or the elements one a
    /// line.
    ///
    /// # Errors
    ///
    /// No connection, or the server's own error.
    pub async fn ask(&self, command: &[&str]) -> io::Result<String> {
        let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", self.port)).await?);
        let mut request = format!("*{}\r\n", command.len());
        for word in command {
            request += &format!("${}\r\n{word}\r\n", word.len());
        }
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        let mut left = 1;
        while left > 0 {
            left -= 1;
            let mut line = String::new();
            stream.read_line(&mut line).await?;
            let line = line.trim_end();
            let (kind, rest) = line.split_at_checked(1).unwrap_or_default();
            let length = rest.parse().unwrap_or(0);
            match kind {
                "-" => return Err(io::Error::other(rest.to_owned())),
                "*" => left += length,
                "$" if rest != "-1" => {
                    let mut text = vec![0; length + 2];
                    stream.read_exact(&mut text).await?;
                    text.truncate(length);
                    answer.push(String::from_utf8_lossy(&text).into_owned());
                }
                "" => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ => answer.push(rest.to_owned()),
            }
        }
        Ok(answer.join("\n"))
    }

    /// Stops the server where it is (SIGSTOP): it holds its connections and does not reply.
    pub fn suspend(&self) {
        self.process.signal("STOP");
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.process.signal("CONT");
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
        let mut command = self.process.command(&self.program);
        command
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
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

/// Where else than in `PATH` it may be.
const PLACES: &[&str] = &["/usr/bin", "/usr/local/bin", "/opt/homebrew/bin"];

/// Whether a Redis answers `PING` on this port.
async fn answers(port: u16) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"PING\r\n").await?;
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).await?;
        io::Result::Ok(answer)
    };
    matches!(timeout(Duration::from_secs(1), ask).await, Ok(Ok(answer)) if &answer == b"+PONG\r\n")
}
