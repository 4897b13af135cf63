s/sqlx::Pool<[^>]*>/pool_autotune::Autotuned<&>/
s/Ok(Self { pool })/Ok(Self { pool: pool_autotune::Autotuned::new(pool).map_err(|error| DbError::Other(error.into()))? })/
