use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::StartError;
use crate::find::directory_of;
use crate::process::{Process, free_port};

/// A private Postgres server.
///
/// Ended (SIGKILL) and removed from disk on drop.
#[derive(Debug)]
pub struct Postgres {
    process: Process,
    bin: PathBuf,
    port: u16,
    settings: Vec<(String, String)>,
}

impl Postgres {
    /// Starts a server with the [default settings](crate#settings) and waits until it accepts
    /// connections: about two seconds, most of it `initdb`.
    ///
    /// # Errors
    ///
    /// No Postgres on this machine, no user to run it as, or a server that ended or was not ready
    /// within 30 seconds; the message carries the last line of its log.
    pub async fn start() -> Result<Self, StartError> {
        Self::start_with(&[]).await
    }

    /// As [`start`](Self::start), with settings as in `postgresql.conf`:
    /// `[("max_connections", "20"), ("fsync", "on")]`.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn start_with(settings: &[(&str, &str)]) -> Result<Self, StartError> {
        let bin = directory_of(&["initdb", "postgres"], PLACES, "postgresql")?;
        let process = Process::new("postgres", true)?;
        initdb(&process, &bin).await?;
        let settings = settings
            .iter()
            .map(|&(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        let mut server = Self {
            process,
            bin,
            port: free_port()?,
            settings,
        };
        server.run().await?;
        Ok(server)
    }

    /// Starts a read-only replica of this server by streaming replication, with its settings, and
    /// waits until it accepts connections.
    ///
    /// # Errors
    ///
    /// See [`start`](Self::start).
    pub async fn replica(&self) -> Result<Self, StartError> {
        // Some packages link only the servers' programs into a common place.
        let bin = directory_of(&["pg_basebackup"], PLACES, "postgresql")?;
        let process = Process::new("postgres", true)?;
        let mut command = process.command(&bin.join("pg_basebackup"));
        command
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .args(["-U", "postgres", "-c", "fast", "-X", "stream", "-R", "-D"])
            .arg(process.directory().join("data"));
        run_once(command).await?;
        let mut server = Self {
            process,
            bin: self.bin.clone(),
            port: free_port()?,
            settings: self.settings.clone(),
        };
        server.run().await?;
        Ok(server)
    }

    /// `postgres://postgres@127.0.0.1:PORT/postgres`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// The loopback port it listens on. The same after a [`restart`](Self::restart).
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the postmaster, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.pid()
    }

    /// Kills the server and all its backends (SIGKILL), as a power cut would. Its data stay for
    /// [`restart`](Self::restart).
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the server again, on the same port and data, and waits until it accepts connections.
    /// Kills it first if it is running.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn restart(&mut self) -> Result<(), StartError> {
        self.kill();
        self.run().await
    }

    /// Like [`restart`](Self::restart), with these settings beside or instead of those that it had.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn restart_with(&mut self, settings: &[(&str, &str)]) -> Result<(), StartError> {
        let owned = settings.iter().map(|&(k, v)| (k.to_owned(), v.to_owned()));
        self.settings.extend(owned);
        self.restart().await
    }

    async fn run(&mut self) -> Result<(), StartError> {
        const DEFAULTS: [(&str, &str); 4] = [
            ("fsync", "off"),
            ("full_page_writes", "off"),
            ("max_connections", "100"),
            ("synchronous_commit", "off"),
        ];
        let data = self.process.directory().join("data");
        let mut command = self.process.command(&self.bin.join("postgres"));
        command
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(self.process.directory())
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()]);
        let given = self.settings.iter().map(|(k, v)| (k.as_str(), v.as_str()));
        // The last mention of a setting wins.
        for (name, value) in DEFAULTS.into_iter().chain(given) {
            command.arg("-c").arg(format!("{name}={value}"));
        }
        let pid_file = data.join("postmaster.pid");
        self.process
            .start(command, async |pid| is_ready(&pid_file, pid))
            .await
    }
}

const PLACES: &[&str] = &[
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql/bin",
    "/usr/local/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
];

async fn initdb(process: &Process, bin: &Path) -> Result<(), StartError> {
    let program = bin.join("initdb");
    let mut command = process.command(&program);
    command.args([
        "-U",
        "postgres",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C",
        "--no-sync",
        "-D",
    ]);
    command.arg(process.directory().join("data"));
    run_once(command).await
}

/// Runs a program of Postgres that ends by itself.
async fn run_once(command: Command) -> Result<(), StartError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = tokio::process::Command::from(command)
        .output()
        .await
        .map_err(|error| StartError::io(format!("cannot run {program}: {error}"), error))?;
    if output.status.success() {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(StartError::new(format!(
        "{program} failed ({}): {}",
        output.status,
        errors
            .lines()
            .find(|line| line.contains("error:"))
            .unwrap_or("it said nothing")
            .trim(),
    )))
}

/// Whether the postmaster with this process id accepts connections. Line 1 of `postmaster.pid` is
/// its process id, line 8 its state.
fn is_ready(pid_file: &Path, pid: u32) -> bool {
    let text = fs::read_to_string(pid_file).unwrap_or_default();
    let mut lines = text.lines();
    let of_this_process = lines.next().and_then(|line| line.trim().parse().ok()) == Some(pid);
    of_this_process && lines.nth(6).is_some_and(|state| state.trim() == "ready")
}
