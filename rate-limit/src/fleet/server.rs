//! What is asked of a server besides accounts: the nodes, the slots of a cluster, the master.

use std::{sync::Arc, time::Duration};

use redis::{
    Client, ConnectionAddr, RedisResult, ServerErrorKind, Value, aio::MultiplexedConnection,
};
use tokio::time::timeout;

use super::{
    failure::{LATE, LOST, reason},
    job::{Connection, Reports, SlotRange, State},
    script,
};

/// Reports that this node is alive, and learns how many there are.
pub(super) async fn report_alive(
    node: Arc<dyn Reports>,
    mut connection: Connection,
    state: Arc<State>,
) {
    let within = node.settings().deadline;
    match timeout(within, count_nodes(&*node, &connection, &state.address)).await {
        Ok(Ok(())) => state.success(node.now()),
        Ok(Err(why)) => {
            if why == LOST {
                state.broken.notify_one();
            }
            state.failure(node.now(), why);
        }
        Err(_) => state.failure(node.now(), LATE),
    }
    if node.wants_map()
        && let Ok(Some(map)) = timeout(CONNECT_WITHIN, slots(&mut connection.redis)).await
    {
        Arc::clone(&node).learn_map(&map, &state.address);
    }
}

pub(super) async fn count_nodes(
    node: &dyn Reports,
    connection: &Connection,
    address: &ConnectionAddr,
) -> Result<(), &'static str> {
    let Some(key) = node.nodes_key(address) else {
        // A server of a cluster that holds nothing at the moment has nothing to prove.
        return Ok(());
    };
    let mut redis = connection.redis.clone();
    let mut call = async |command: &str, script: &str| {
        let mut call = redis::cmd(command);
        call.arg(script).arg(1).arg(&key).arg(node.id());
        call.arg(GONE_AFTER.as_millis() as u64);
        call.query_async::<u64>(&mut redis).await
    };
    let mut count = call("EVALSHA", &connection.nodes).await;
    if let Err(error) = &count
        && error.kind() == redis::ErrorKind::Server(ServerErrorKind::NoScript)
    {
        count = call("EVAL", script::NODES).await;
    }
    match count {
        Ok(count) => {
            node.counted(count);
            Ok(())
        }
        Err(error) => Err(reason(&error)),
    }
}

/// Loads a script. Returns its digest.
pub(super) async fn load(redis: &MultiplexedConnection, script: &str) -> RedisResult<Arc<str>> {
    let mut redis = redis.clone();
    let mut command = redis::cmd("SCRIPT");
    let digest = command.arg("LOAD").arg(script).query_async(&mut redis);
    digest.await.map(|digest: String| Arc::from(digest))
}

/// Whether the server evicts keys that are in use. One that does not allow the question is assumed not to.
pub(super) async fn evicts(redis: &mut MultiplexedConnection) -> bool {
    let mut info = redis::cmd("INFO");
    let memory = info.arg("memory").query_async::<String>(redis);
    let memory = timeout(CONNECT_WITHIN, memory).await;
    matches!(memory, Ok(Ok(memory)) if memory.contains("maxmemory_policy:allkeys-"))
}

/// Which server of a cluster holds which slots.
pub(super) async fn slots(redis: &mut MultiplexedConnection) -> Option<Vec<SlotRange>> {
    let mut command = redis::cmd("CLUSTER");
    let Value::Array(ranges) = command.arg("SLOTS").query_async(redis).await.ok()? else {
        return None;
    };
    let range = |range: &Value| {
        let Value::Array(fields) = range else {
            return None;
        };
        let [
            Value::Int(first),
            Value::Int(last),
            Value::Array(server),
            ..,
        ] = &fields[..]
        else {
            return None;
        };
        let host = match server.first()? {
            Value::BulkString(host) => String::from_utf8(host.clone()).ok()?,
            Value::SimpleString(host) => host.clone(),
            // The server that was asked does not know its own name.
            Value::Nil => String::new(),
            _ => return None,
        };
        let &Value::Int(port) = server.get(1)? else {
            return None;
        };
        let number = |number: i64| u16::try_from(number).ok();
        Some(SlotRange {
            slots: number(*first)?..=number(*last)?,
            host,
            port: number(port)?,
        })
    };
    ranges.iter().map(range).collect()
}

/// Where the master is that `client` names, as the first of `sentinels` to reply knows it.
pub(super) async fn find_master(
    sentinels: &[Client],
    client: &Client,
) -> Result<Client, &'static str> {
    let info = client.get_connection_info();
    let (ConnectionAddr::Tcp(name, _) | ConnectionAddr::TcpTls { host: name, .. }) = info.addr()
    else {
        return Err("a unix socket has no sentinels");
    };
    for sentinel in sentinels {
        let ask = async {
            let mut sentinel = sentinel.get_multiplexed_async_connection().await.ok()?;
            let mut command = redis::cmd("SENTINEL");
            let command = command.arg("get-master-addr-by-name").arg(name);
            let found = command.query_async::<Option<(String, u16)>>(&mut sentinel);
            found.await.ok()?
        };
        if let Ok(Some((host, port))) = timeout(CONNECT_WITHIN, ask).await
            && let Some(address) = at(info.addr(), &host, port)
            && let Ok(client) = Client::open(info.clone().set_addr(address))
        {
            return Ok(client);
        }
    }
    Err("no sentinel knows where it is")
}

/// The address of another server, reached as this one is.
pub(super) fn at(like: &ConnectionAddr, host: &str, port: u16) -> Option<ConnectionAddr> {
    let or = |own: &str| {
        if host.is_empty() || host == "?" {
            own.to_owned()
        } else {
            host.to_owned()
        }
    };
    match like {
        ConnectionAddr::Tcp(own, _) => Some(ConnectionAddr::Tcp(or(own), port)),
        ConnectionAddr::TcpTls {
            host: own,
            insecure,
            tls_params,
            ..
        } => Some(ConnectionAddr::TcpTls {
            host: or(own),
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        }),
        _ => None,
    }
}

/// For the connection and the scripts, each.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_millis(500);

/// How often a node reports that it is alive, and after how long it counts as gone.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(1);
pub(super) const GONE_AFTER: Duration = Duration::from_secs(5);
