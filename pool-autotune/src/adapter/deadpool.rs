//! [deadpool](https://docs.rs/deadpool)'s managed pools, with any manager.
//!
//! Hand the pool itself to [`Autotuned::new`](crate::Autotuned::new), and do not call its `get` or
//! `resize` any more. Build it with `max_size` at the most connections it may ever have. Its
//! `create` and `recycle` timeouts stay in force; its `wait` timeout becomes the wait timeout of
//! the gate. `QueueMode::Lifo` keeps the connections in use warm and lets the longest idle be the
//! ones that are closed.

use std::any::{Any, TypeId};
use std::error::Error as StdError;
use std::time::Duration;

use deadpool::managed::{Manager, Object, Pool, PoolError, TimeoutType, Timeouts};

use tokio::time::Instant;

use super::{Adapter, Checked, PutBack};

impl<M, W> Adapter for Pool<M, W>
where
    M: Manager<Error: StdError + Send + Sync> + 'static,
    M::Type: Send,
    W: From<Object<M>> + Send + 'static,
{
    type Connection = W;
    type Error = PoolError<M::Error>;

    fn max_size(&self) -> usize {
        self.status().max_size
    }

    fn size(&self) -> usize {
        self.status().size
    }

    fn idle(&self) -> Option<usize> {
        // `status` counts those that are being opened as if they held an idle one.
        let mut idle = 0;
        self.retain(|_, _| {
            idle += 1;
            true
        });
        Some(idle)
    }

    async fn checkout(&self) -> Result<Checked<W>, Self::Error> {
        // Where nothing is wrapped, the object can be looked at as it is.
        if TypeId::of::<W>() == TypeId::of::<Object<M>>() {
            // Zero asks deadpool's semaphore and does not stand in its line, which costs less.
            let at_once = waiting(self, Some(Duration::ZERO));
            return match self.timeout_get(&at_once).await {
                Ok(connection) => Ok(checked::<M, W>(connection)),
                Err(PoolError::Timeout(TimeoutType::Wait)) => wait(self).await.map(checked::<M, W>),
                Err(error) => Err(error),
            };
        }
        let pool: Pool<M> = self.weak().upgrade().ok_or(PoolError::Closed)?;
        // Boxed, so that the case above does not carry the room for it.
        let object = Box::pin(get(&pool)).await?;
        Ok(Checked {
            is_new: is_new(&object),
            connection: W::from(object),
        })
    }

    async fn checkout_idle(&self) -> Result<Option<Checked<W>>, Self::Error> {
        // A dial that may take no time is given up before it has sent anything. Without a runtime,
        // deadpool refuses to begin one.
        let idle_only = Timeouts {
            create: Some(Duration::ZERO),
            ..waiting(self, Some(Duration::ZERO))
        };
        match self.timeout_get(&idle_only).await {
            Ok(connection) => Ok(Some(checked::<M, W>(connection))),
            Err(
                PoolError::Timeout(TimeoutType::Wait | TimeoutType::Create)
                | PoolError::NoRuntimeSpecified,
            ) => Ok(None),
            Err(error) => Err(error),
        }
    }

    #[inline]
    fn handed_out(connection: &W) -> Option<Instant> {
        let metrics = Object::metrics(object::<M, W>(connection)?);
        metrics.recycled.map(Instant::from_std)
    }

    fn is_closed(&self) -> bool {
        Self::is_closed(self)
    }

    fn discard(&self, connection: W, before: Instant) -> PutBack {
        let mut connection = Some(connection);
        let object = (&mut connection as &mut dyn Any).downcast_mut::<Option<Object<M>>>();
        if let Some(object) = object.and_then(Option::take) {
            drop(Object::take(object));
            return PutBack::Done;
        }
        // A wrapper hides the object that could be taken out, so it goes back first.
        drop(connection);
        let before = before.into_std();
        self.retain(|_, metrics| metrics.created >= before);
        PutBack::Done
    }

    fn close_idle(&self, count: usize) -> PutBack {
        // From the front, where the longest idle are.
        let mut closed = 0;
        self.retain(|_, _| {
            let keep = closed == count;
            closed += usize::from(!keep);
            keep
        });
        PutBack::Done
    }

    fn knows_ages(&self) -> bool {
        true
    }

    fn close_aged(&self, is_due: &mut dyn FnMut(Instant) -> bool) -> PutBack {
        self.retain(|_, metrics| !is_due(Instant::from_std(metrics.created)));
        PutBack::Done
    }

    fn is_multiplexed(&self) -> bool {
        // The wrapper of deadpool-redis hides what it wraps.
        std::any::type_name::<M::Type>().contains("Multiplexed")
    }

    fn wait_timeout(&self) -> Option<Duration> {
        self.timeouts().wait
    }
}

/// Takes an object without waiting in deadpool's own line.
async fn get<M: Manager>(pool: &Pool<M>) -> Result<Object<M>, PoolError<M::Error>> {
    match pool.timeout_get(&waiting(pool, Some(Duration::ZERO))).await {
        Err(PoolError::Timeout(TimeoutType::Wait)) => wait(pool).await,
        got => got,
    }
}

/// The gate has done the waiting. That there is no place nevertheless means that others use the pool
/// too, and deadpool without a timeout waits for them.
async fn wait<M, W>(pool: &Pool<M, W>) -> Result<W, PoolError<M::Error>>
where
    M: Manager,
    W: From<Object<M>>,
{
    Box::pin(pool.timeout_get(&waiting(pool, None))).await
}

fn waiting<M, W>(pool: &Pool<M, W>, wait: Option<Duration>) -> Timeouts
where
    M: Manager,
    W: From<Object<M>>,
{
    Timeouts {
        wait,
        ..pool.timeouts()
    }
}

#[inline]
fn object<M: Manager + 'static, W: 'static>(connection: &W) -> Option<&Object<M>> {
    (connection as &dyn Any).downcast_ref()
}

#[inline]
fn is_new<M: Manager>(object: &Object<M>) -> bool {
    Object::metrics(object).recycle_count == 0
}

#[inline]
fn checked<M: Manager + 'static, W: 'static>(connection: W) -> Checked<W> {
    let is_new = object::<M, W>(&connection).is_some_and(is_new);
    Checked { connection, is_new }
}
