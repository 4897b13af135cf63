//! `cargo run -p overload-examples --bin axum_sqlx -- postgres://localhost/orders`
//!
//! axum and sqlx 0.9: the queries stay as they are, and so does the error type of the handlers.

use std::env;

use axum::{Router, extract::State, http::StatusCode, routing::get};
use pool_autotune::Autotuned;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx_0_9 as sqlx; // in your service, the crate is `sqlx`
use tower_capacity::CapacityLayer;

/// The one type that changes: it was `PgPool`.
type Db = Autotuned<PgPool>;

struct Failure(sqlx::Error);

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self(error)
    }
}

impl axum::response::IntoResponse for Failure {
    fn into_response(self) -> axum::response::Response {
        let status = match self.0 {
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, self.0.to_string()).into_response()
    }
}

async fn list(State(db): State<Db>) -> Result<String, Failure> {
    let names: Vec<String> = sqlx::query_scalar("SELECT name FROM item ORDER BY name")
        .fetch_all(&db)
        .await?;
    Ok(names.join("\n"))
}

async fn add(State(db): State<Db>, name: String) -> Result<StatusCode, Failure> {
    let mut transaction = db.begin().await?;
    sqlx::query("INSERT INTO item VALUES ($1)")
        .bind(name)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(StatusCode::CREATED)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = env::args().nth(1).ok_or("expected the URL of a Postgres")?;
    let db = Autotuned::new(
        PgPoolOptions::new()
            .max_connections(50)
            .connect_lazy(&url)?,
    )?;
    // A migrator takes a connection that is checked out: `sqlx::migrate!().run(&mut **db.get().await?)`.
    sqlx::query("CREATE TABLE IF NOT EXISTS item (name text PRIMARY KEY)")
        .execute(&db)
        .await?;
    let app = Router::new()
        .route("/", get(list).post(add))
        .layer(CapacityLayer::adaptive())
        .with_state(db);

    let address = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:3000".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}
