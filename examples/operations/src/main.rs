//! A server with all three crates, and the metrics that the files beside it read.
//!
//! ```sh
//! cargo run --release --bin operations
//! ```
//!
//! `examples/operations/up` starts it with a Prometheus that loads the rules.

use clap::Parser;
use overload_operations::{Settings, app, install};
use tokio::net::TcpListener;

#[derive(Debug, Parser)]
#[command(about = "A server with metrics of a limiter, a quota and a pool")]
struct Options {
    /// The port to listen on, on 127.0.0.1.
    #[arg(long, default_value_t = 3000)]
    port: u16,
    /// Requests a second for each caller, by the header x-api-key.
    #[arg(long, default_value_t = 50)]
    quota: u64,
    /// The most connections to the database.
    #[arg(long, default_value_t = 20)]
    max_connections: usize,
    /// The Redis of a fleet's quota, such as redis://127.0.0.1:6379.
    #[arg(long)]
    redis: Option<String>,
    /// Connections that all processes with this Redis share.
    #[arg(long, requires = "redis")]
    budget: Option<usize>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    let mut settings = Settings::default();
    settings.quota = options.quota;
    settings.max_connections = options.max_connections;
    settings.redis = options.redis;
    settings.budget = options.budget;
    let app = app(&settings, install()?)?;
    let listener = TcpListener::bind(("127.0.0.1", options.port)).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app)
        .with_graceful_shutdown(async {
            // Without a signal handler the server ends by the signal itself.
            let _ = tokio::signal::ctrl_c().await;
        })
        .await?;
    Ok(())
}
