use std::fs;
use std::path::PathBuf;

use tokio::net::TcpStream;

use crate::find::directory_of;
use crate::process::{Process, free_port};
use crate::{Postgres, StartError};

/// A private `PgBouncer` in front of a [`Postgres`].
///
/// Ended (SIGKILL) and removed from disk on drop.
#[derive(Debug)]
pub struct PgBouncer {
    process: Process,
    program: PathBuf,
    port: u16,
}

impl PgBouncer {
    /// Starts a bouncer that pools by transaction, and waits until it accepts connections.
    ///
    /// # Errors
    ///
    /// No `pgbouncer` on this machine, no user to run it as, or one that ended or was not ready within
    /// 30 seconds; the message carries the last line of its log.
    pub async fn start(postgres: &Postgres) -> Result<Self, StartError> {
        Self::start_with(postgres, &[]).await
    }

    /// Like [`start`](Self::start), with settings as in `pgbouncer.ini`:
    /// `[("pool_mode", "session"), ("max_client_conn", "12")]`.
    ///
    /// # Errors
    ///
    /// See [`start`](Self::start).
    pub async fn start_with(
        postgres: &Postgres,
        settings: &[(&str, &str)],
    ) -> Result<Self, StartError> {
        const DEFAULTS: [(&str, &str); 5] = [
            ("listen_addr", "127.0.0.1"),
            ("auth_type", "trust"),
            ("pool_mode", "transaction"),
            ("unix_socket_dir", ""),
            ("ignore_startup_parameters", "extra_float_digits"),
        ];
        let program = directory_of(
            &["pgbouncer"],
            &["/usr/sbin", "/usr/local/bin", "/usr/local/sbin"],
            "pgbouncer",
        )?
        .join("pgbouncer");
        let process = Process::new("pgbouncer", true)?;
        let port = free_port()?;
        let users = process.directory().join("users");
        let mut text = format!(
            "[databases]\npostgres = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\n\
             listen_port = {port}\nauth_file = {}\n",
            postgres.port(),
            users.display()
        );
        // The last mention of a setting wins.
        for (name, value) in DEFAULTS.iter().chain(settings) {
            text += &format!("{name} = {value}\n");
        }
        let file = process.directory().join("pgbouncer.ini");
        let cannot = |error| StartError::io(format!("cannot write its settings: {error}"), error);
        fs::write(&users, "\"postgres\" \"\"\n").map_err(cannot)?;
        fs::write(&file, text).map_err(cannot)?;
        let mut bouncer = Self {
            process,
            program,
            port,
        };
        bouncer.restart().await?;
        Ok(bouncer)
    }

    /// Kills the bouncer (SIGKILL). Its settings stay for [`restart`](Self::restart).
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts the bouncer again, on the same port, and waits until it accepts connections. Kills it
    /// first if it is running.
    ///
    /// # Errors
    ///
    /// See [`start`](Self::start).
    pub async fn restart(&mut self) -> Result<(), StartError> {
        self.kill();
        let mut command = self.process.command(&self.program);
        command.arg(self.process.directory().join("pgbouncer.ini"));
        let port = self.port;
        self.process
            .start(command, async |_| {
                TcpStream::connect(("127.0.0.1", port)).await.is_ok()
            })
            .await
    }

    /// `postgres://postgres@127.0.0.1:PORT/postgres`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// The loopback port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}
