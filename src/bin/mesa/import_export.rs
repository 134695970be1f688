//! `mesa import` and `mesa export`: copies pending messages from a Redis of the original into a store, and back.

#[cfg(feature = "redis")]
use crate::progress::{Progress, Unit};
use crate::{args::ImportExportArgs, error::Failure};

/// Copies pending messages from Redis into a store.
#[cfg(feature = "redis")]
pub async fn import(args: &ImportExportArgs) -> Result<(), Failure> {
    let (store, link) = open(args, Some(mesa::embedded::tables::unfinished::Operation::Import))?;
    let progress = Progress::start("importing", Unit::Users, None);
    let moved = mesa::redis::import_export::import(&link, &*store, &|| progress.add(1)).await;
    drop(progress);
    close(&*store, &link).await?;
    if moved.is_ok() {
        let cannot = |error| Failure::because(format!("{}: {error}", args.store_path.display()));
        mesa::embedded::tables::unfinished::end(&args.store_path).map_err(cannot)?;
    }
    report(moved, &args.store_path.display().to_string())
}

/// Copies pending messages from a store into Redis.
#[cfg(feature = "redis")]
pub async fn export(args: &ImportExportArgs) -> Result<(), Failure> {
    if !args.store_path.exists() {
        return Err(Failure::because(format!(
            "there is no store at {}. Name its directory with --store-path",
            args.store_path.display()
        )));
    }
    let (store, link) = open(args, None)?;
    let origin = mesa::redis::import_export::origin(&args.store_path)
        .map_err(|error| Failure::because(format!("{}: {error}", args.store_path.display())))?;
    let progress = Progress::start("exporting", Unit::Users, None);
    let moved = mesa::redis::import_export::export(&*store, &origin, &link, &|| progress.add(1)).await;
    drop(progress);
    close(&*store, &link).await?;
    report(moved, "Redis")
}

#[cfg(feature = "redis")]
type StoreAndLink = (std::sync::Arc<dyn mesa::store::Store>, std::sync::Arc<mesa::redis::ServerLink>);

#[cfg(feature = "redis")]
fn open(
    args: &ImportExportArgs,
    operation: Option<mesa::embedded::tables::unfinished::Operation>,
) -> Result<StoreAndLink, Failure> {
    use std::time::Duration;

    use mesa::{
        config::parse_redis,
        redis::{LinkOptions, ServerLink},
        store::Limits,
    };
    let redis = parse_redis(&serde_json::Value::String(args.redis.clone()))
        .map_err(|mistakes| Failure::usage(mistakes.join("; ")))?;
    let link = ServerLink::open(&redis, args.namespace.as_deref(), LinkOptions::default()).map_err(Failure::because)?;
    // Quotas and expiry do not apply to messages that are already pending.
    let limits = Limits {
        messages: u64::MAX,
        bytes: u64::MAX >> 1,
        ids_window: Duration::from_secs(24 * 3600),
        device_age: None,
        ..Limits::default()
    };
    let namespace = args.namespace.clone();
    let options = mesa::embedded::tables::DiskOptions {
        namespace,
        limits,
        operation,
        ..mesa::embedded::tables::DiskOptions::new(&args.store_path)
    };
    Ok((mesa::embedded::tables::open(options).map_err(|error| Failure::unopened(error, ""))?, link))
}

#[cfg(feature = "redis")]
async fn close(store: &dyn mesa::store::Store, link: &std::sync::Arc<mesa::redis::ServerLink>) -> Result<(), Failure> {
    // If the lease cannot be released, it expires by itself.
    _ = link.leave().await;
    store.close().await.map_err(Failure::because)
}

#[cfg(feature = "redis")]
fn report(
    moved: Result<mesa::redis::import_export::Moved, mesa::redis::import_export::MoveError>,
    target: &str,
) -> Result<(), Failure> {
    use crate::output::{count, line, remark};

    let moved = moved.map_err(Failure::because)?;
    let (users, messages) = (count(moved.users, "user"), count(moved.messages, "message"));
    let known = if moved.known > 0 { format!("; {} copied before", moved.known) } else { String::new() };
    line(&format!("{users}, {messages} copied to {target}, and verified{known}"))?;
    if moved.refused > 0 {
        remark(&format!("mesa: {} could not be copied, and stays at its source", count(moved.refused, "message")));
        return Err(Failure::Reported);
    }
    Ok(())
}

#[cfg(not(feature = "redis"))]
const NO_REDIS: &str = "this build has no support for Redis; build one with `cargo build --release --features redis`";

/// Fails: this build has no support for Redis.
#[cfg(not(feature = "redis"))]
pub fn import(_: &ImportExportArgs) -> std::future::Ready<Result<(), Failure>> {
    std::future::ready(Err(Failure::because(NO_REDIS)))
}

/// Fails: this build has no support for Redis.
#[cfg(not(feature = "redis"))]
pub fn export(_: &ImportExportArgs) -> std::future::Ready<Result<(), Failure>> {
    std::future::ready(Err(Failure::because(NO_REDIS)))
}
