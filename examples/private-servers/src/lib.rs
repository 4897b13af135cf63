//! Starts a private Postgres or Redis for an example, a test or a bench, and ends it on drop.
