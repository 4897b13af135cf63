//! Connection pools that size themselves from observed wait time: deadpool, bb8 and sqlx, for Postgres and Redis.
