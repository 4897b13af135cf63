//! What asks sqlx for a connection of its own, for each version of sqlx.

#[path = "."]
mod sqlx_0_8 {
    use ::sqlx_0_8 as sqlx;

    #[path = "migrations.rs"]
    mod migrations;
}

#[path = "."]
mod sqlx_0_9 {
    use ::sqlx;

    #[allow(clippy::duplicate_mod, reason = "the same tests for each version")]
    #[path = "migrations.rs"]
    mod migrations;
}

#[tokio::test]
async fn migrations_in_the_binary_run_on_a_checkout() -> Result<(), Box<dyn std::error::Error>> {
    let postgres = private_servers::Postgres::start().await?;
    let pool = pool_autotune::Autotuned::new(sqlx::PgPool::connect_lazy(&postgres.url())?)?;
    sqlx::migrate!().run(&mut **pool.get().await?).await?;
    let balance: i32 = sqlx::query_scalar("SELECT balance FROM account")
        .fetch_one(&pool)
        .await?;
    assert_eq!(balance, 100);
    Ok(())
}
