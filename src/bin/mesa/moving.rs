//! `mesa import` and `mesa export`: what waits in a stock set-up, into a store, and back.

use crate::{args::MoveArgs, failure::Failure};

/// Brings what waits in Redis into a store.
#[cfg(feature = "redis")]
pub async fn import(args: &MoveArgs) -> Result<(), Failure> {
    let (store, link) = open(args, Some(mesa::store::disk::unfinished::Work::Import))?;
    let moved = mesa::store::redis::moving::import(&link, &*store).await;
    close(&*store, &link).await?;
    if moved.is_ok() {
        let cannot = |error| Failure::because(format!("{}: {error}", args.store_path.display()));
        mesa::store::disk::unfinished::end(&args.store_path).map_err(cannot)?;
    }
    told(moved, &format!("in {}", args.store_path.display()))
}

/// Brings what waits in a store into Redis.
#[cfg(feature = "redis")]
pub async fn export(args: &MoveArgs) -> Result<(), Failure> {
    if !args.store_path.exists() {
        return Err(Failure::because(format!("there is no store at {}", args.store_path.display())));
    }
    let (store, link) = open(args, None)?;
    let origin = mesa::store::redis::moving::origin(&args.store_path)
        .map_err(|error| Failure::because(format!("{}: {error}", args.store_path.display())))?;
    let moved = mesa::store::redis::moving::export(&*store, &origin, &link).await;
    close(&*store, &link).await?;
    told(moved, "in Redis")
}

#[cfg(feature = "redis")]
type Ends = (std::sync::Arc<dyn mesa::store::Store>, std::sync::Arc<mesa::cluster::redis::Link>);

#[cfg(feature = "redis")]
fn open(args: &MoveArgs, work: Option<mesa::store::disk::unfinished::Work>) -> Result<Ends, Failure> {
    use std::time::Duration;

    use mesa::{
        cluster::redis::{Link, LinkOptions},
        config::parse_redis,
        store::{Limits, disk},
    };
    let redis = parse_redis(&serde_json::Value::String(args.redis.clone())).map_err(Failure::usage)?;
    let link = Link::open(&redis, args.namespace.as_deref(), LinkOptions::default()).map_err(Failure::because)?;
    // What waits there waits whatever a server would take.
    let limits = Limits {
        messages: u64::MAX,
        bytes: u64::MAX >> 1,
        ids_window: Duration::from_secs(24 * 3600),
        device_age: None,
        ..Limits::default()
    };
    let namespace = args.namespace.clone();
    let options = disk::DiskOptions { namespace, limits, work, ..disk::DiskOptions::new(&args.store_path) };
    Ok((disk::open(options).map_err(|error| Failure::unopened(error, ""))?, link))
}

#[cfg(feature = "redis")]
async fn close(
    store: &dyn mesa::store::Store,
    link: &std::sync::Arc<mesa::cluster::redis::Link>,
) -> Result<(), Failure> {
    // A lease that is not given back ends by itself.
    _ = link.leave().await;
    store.close().await.map_err(Failure::because)
}

#[cfg(feature = "redis")]
fn told(
    moved: Result<mesa::store::redis::moving::Moved, mesa::store::redis::moving::MoveError>,
    place: &str,
) -> Result<(), Failure> {
    use crate::output::{count, line, remark};

    let moved = moved.map_err(Failure::because)?;
    let (users, messages) = (count(moved.users, "user"), count(moved.messages, "message"));
    let known = if moved.known > 0 { format!("; {} had been moved before", moved.known) } else { String::new() };
    line(&format!("{users}, {messages} {place}, each read again there{known}"))?;
    if moved.refused > 0 {
        remark(&format!("mesa: {} could not be moved, and stays where it was", count(moved.refused, "message")));
        return Err(Failure::Told);
    }
    Ok(())
}

#[cfg(not(feature = "redis"))]
const WITHOUT: &str = "this build cannot speak to Redis; build it with `cargo build --release --features redis`";

/// Says what it takes.
#[cfg(not(feature = "redis"))]
pub fn import(_: &MoveArgs) -> std::future::Ready<Result<(), Failure>> {
    std::future::ready(Err(Failure::because(WITHOUT)))
}

/// Says what it takes.
#[cfg(not(feature = "redis"))]
pub fn export(_: &MoveArgs) -> std::future::Ready<Result<(), Failure>> {
    std::future::ready(Err(Failure::because(WITHOUT)))
}
