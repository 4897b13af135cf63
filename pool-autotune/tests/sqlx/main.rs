//! A service on sqlx that passes its queries the tuned pool instead of its own, for each version of sqlx.

#[path = "."]
mod sqlx_0_8 {
    use ::sqlx_0_8 as sqlx;

    #[path = "queries.rs"]
    mod queries;
}

#[path = "."]
mod sqlx_0_9 {
    use ::sqlx_0_9 as sqlx;

    #[allow(clippy::duplicate_mod, reason = "the same tests for each version")]
    #[path = "queries.rs"]
    mod queries;
}
