//! Queries on the pool itself.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use super::sqlx::pool::Pool;
use super::sqlx::{Database, Either, Error, Execute, Executor};
use crate::Autotuned;
use crate::sync::lock;
use futures_core::Stream;
use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;

/// A row, or what a statement of the query has done.
type Step<DB> = Either<<DB as Database>::QueryResult, <DB as Database>::Row>;

/// A stream of what a query returns, on a connection that is checked out for it.
pub(in super::super) fn fetch_many<'e, 'q: 'e, DB, E>(
    pool: Autotuned<Pool<DB>>,
    query: E,
) -> BoxStream<'e, Result<Step<DB>, Error>>
where
    DB: Database,
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    E: 'q + Execute<'q, DB>,
{
    Box::pin(Yielding::new(|yielder| async move {
        let mut connection = pool.get().await?;
        let mut rows = (**connection).fetch_many(query);
        while let Some(row) = poll_fn(|cx| rows.as_mut().poll_next(cx)).await {
            yielder.send(row?).await;
        }
        Ok(())
    }))
}

/// As bare sqlx would have said it. [`crate::Error`] says more.
impl From<crate::Error<Self>> for Error {
    fn from(error: crate::Error<Self>) -> Self {
        match error {
            crate::Error::Backend(error) => error,
            crate::Error::Closed => Self::PoolClosed,
            _ => Self::PoolTimedOut,
        }
    }
}

/// A stream of what a future sends, which so can hold a connection and what borrows it.
struct Yielding<'e, T> {
    /// `None` after the end.
    run: Option<BoxFuture<'e, Result<(), Error>>>,
    item: Yielder<T>,
}

struct Yielder<T>(Arc<Mutex<Option<T>>>);

impl<T> Yielder<T> {
    fn take(&self) -> Option<T> {
        lock(&self.0).take()
    }

    /// Returns when the stream is polled for the next item.
    async fn send(&self, item: T) {
        *lock(&self.0) = Some(item);
        let mut is_sent = false;
        poll_fn(|_| match std::mem::replace(&mut is_sent, true) {
            // The stream returns the item, and is polled again without a wake-up.
            false => Poll::Pending,
            true => Poll::Ready(()),
        })
        .await;
    }
}

impl<'e, T> Yielding<'e, T> {
    fn new<F>(run: impl FnOnce(Yielder<T>) -> F) -> Self
    where
        F: Future<Output = Result<(), Error>> + Send + 'e,
    {
        let item = Arc::new(Mutex::new(None));
        Self {
            run: Some(Box::pin(run(Yielder(Arc::clone(&item))))),
            item: Yielder(item),
        }
    }
}

impl<T> Stream for Yielding<'_, T> {
    type Item = Result<T, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(run) = &mut self.run else {
            return Poll::Ready(None);
        };
        let polled = run.as_mut().poll(cx);
        if polled.is_ready() {
            self.run = None;
        }
        match (self.item.take(), polled) {
            (Some(item), _) => Poll::Ready(Some(Ok(item))),
            (None, Poll::Ready(Ok(()))) => Poll::Ready(None),
            (None, Poll::Ready(Err(error))) => Poll::Ready(Some(Err(error))),
            (None, Poll::Pending) => Poll::Pending,
        }
    }
}

impl<T> fmt::Debug for Yielding<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Yielding").finish_non_exhaustive()
    }
}
