//! A Prometheus with the rules of the kit.

use std::{collections::BTreeMap, fs};

use tempfile::TempDir;

use super::{Http, Running, free_port, kit, program};

/// A Prometheus with the rules of the kit.
pub(crate) struct Prometheus {
    url: String,
    http: Http,
    _process: Running,
    _directory: TempDir,
}

impl Prometheus {
    /// Scrapes `targets` (job and port) twice a second, with the times of `short` in the rules.
    pub(crate) async fn start(targets: &BTreeMap<&str, u16>, short: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().unwrap();
        let write = |name: &str, text: &str| {
            fs::write(directory.path().join(name), text).unwrap();
        };
        for name in ["recording.yml", "alerts.yml"] {
            let mut rules = fs::read_to_string(kit().join("rules").join(name)).unwrap();
            for (long, short) in short {
                rules = rules
                    .replace(&format!("for: {long}\n"), &format!("for: {short}\n"))
                    .replace(&format!("[{long}]"), &format!("[{short}]"))
                    .replace("interval: 15s", "interval: 500ms");
            }
            write(name, &rules);
        }
        let mut config = "global:\n  scrape_interval: 500ms\n  evaluation_interval: 500ms\n\
                          rule_files: [recording.yml, alerts.yml]\nscrape_configs:\n"
            .to_owned();
        for (job, port) in targets {
            config += &format!(
                "  - job_name: {job}\n    static_configs:\n      - targets: ['127.0.0.1:{port}']\n"
            );
        }
        write("prometheus.yml", &config);
        let port = free_port();
        let mut command = program("prometheus");
        command
            .current_dir(directory.path())
            .arg("--config.file=prometheus.yml")
            .arg("--storage.tsdb.path=data")
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--log.level=error");
        let process = Running::start(&mut command);
        let http = Http::new();
        let url = format!("http://127.0.0.1:{port}");
        http.until_up(&format!("{url}/-/ready")).await;
        Self {
            url,
            http,
            _process: process,
            _directory: directory,
        }
    }

    /// The reply of the API at `path`.
    pub(crate) async fn api(&self, path: &str) -> serde_json::Value {
        let (status, body) = self
            .http
            .get(&format!("{}/api/v1/{path}", self.url), "test")
            .await
            .expect("Prometheus responds");
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }
}
