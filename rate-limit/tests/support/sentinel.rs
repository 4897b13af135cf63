//! A Redis Sentinel process of a test's own.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
};

/// A sentinel of one server, which ends with it.
pub(crate) struct Sentinel {
    process: Child,
    directory: PathBuf,
    pub(crate) port: u16,
}

impl Sentinel {
    /// Watches the server at this port under the name `mymaster`, with these settings more.
    pub(crate) fn start(master: u16, more: &[String]) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = port.local_addr().unwrap().port();
        let directory = std::env::temp_dir().join(format!("rate-limit-sentinel-{port}"));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("sentinel.conf");
        let settings = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\n{}\n\
             sentinel monitor mymaster 127.0.0.1 {master} 1\n\
             sentinel down-after-milliseconds mymaster 500\n\
             sentinel failover-timeout mymaster 3000\n",
            directory.display(),
            more.join("\n"),
        );
        std::fs::write(&file, settings).unwrap();
        let process = Command::new("redis-server")
            .arg(&file)
            .arg("--sentinel")
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server");
        Self {
            process,
            directory,
            port,
        }
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        // Best effort: it may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}
