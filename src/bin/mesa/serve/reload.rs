//! Reloads the configuration at SIGHUP.

use mesa::{
    config::{Loaded, Sources, load},
    server::{Handle, Reloaded},
};
use tokio::signal::unix::Signal;

use crate::{logging, systemd};

/// Reloads at each signal, until the server stops.
///
/// Options and environment keep their precedence over the file. `generated_api_key` is the key of `--dev`, which stays.
pub async fn on_signals(mut hangups: Signal, server: Handle, sources: Sources, generated_api_key: Option<String>) {
    while hangups.recv().await.is_some() {
        systemd::notify_reloading();
        match reload(&server, &sources, generated_api_key.as_ref()).await {
            Ok(()) => {}
            Err(mistakes) => {
                for mistake in &mistakes {
                    tracing::error!("not reloaded: {mistake}");
                }
                tracing::error!(
                    mistakes = mistakes.len(),
                    "the configuration was not reloaded, and nothing has changed; correct it, and send SIGHUP again"
                );
            }
        }
        systemd::notify_ready();
    }
}

/// Reloads once.
///
/// # Errors
/// All mistakes, one sentence each. Then nothing has changed.
async fn reload(server: &Handle, sources: &Sources, generated_api_key: Option<&String>) -> Result<(), Vec<String>> {
    let sources = sources.clone();
    // Reads files, which may be slow.
    let loading = tokio::task::spawn_blocking(move || load(&sources)).await;
    let loaded =
        loading.map_err(|error| vec![error.to_string()])?.map_err(|error| error.problems().collect::<Vec<_>>())?;
    let Loaded { mut config, warnings, generated_api_key: another, .. } = loaded;
    if let (Some(key), Some(another)) = (generated_api_key, another) {
        config.api.keys.retain(|each| *each != another);
        config.api.keys.push(key.clone());
    }
    let filter = logging::filter(&config.log.level).map_err(|error| vec![error])?;
    let reloaded = server
        .reload(&config)
        .await
        .map_err(|error| error.to_string().lines().map(str::to_owned).collect::<Vec<_>>())?;
    logging::set_filter(filter);
    for warning in reloaded.warnings.iter().chain(warnings.iter().filter(|each| !reloaded.warnings.contains(each))) {
        tracing::warn!("{warning}");
    }
    log(&reloaded);
    Ok(())
}

/// Logs the names of the changed keys, never their values.
fn log(reloaded: &Reloaded) {
    let Reloaded { applied, at_next_start, .. } = reloaded;
    let names = if applied.is_empty() { "no changed key".to_owned() } else { applied.join(", ") };
    tracing::info!("the configuration was reloaded; in effect now: {names}");
    if !at_next_start.is_empty() {
        tracing::warn!("these changed keys take effect at the next start only: {}", at_next_start.join(", "));
    }
}
