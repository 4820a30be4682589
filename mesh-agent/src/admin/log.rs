//! The log: to standard error, filtered by text that can be replaced while the agent runs.

use std::sync::Arc;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Registry, fmt};

/// A log filter that is not one.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The text is not a filter.
    #[error("log filter {0:?} is not one of error, warn, info, debug, trace, or target=level,…")]
    Filter(String),
    /// Somebody else has the log already.
    #[error("the log was set up already: {0}")]
    Twice(#[from] TryInitError),
}

/// Replaces the filter. Cheap to clone.
#[derive(Clone)]
pub struct LogFilter {
    set: Arc<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>,
}

fn parse(text: &str) -> Result<EnvFilter, LogError> {
    let bad = || LogError::Filter(text.to_owned());
    // An empty filter would silence everything, silently.
    if text.trim().is_empty() {
        return Err(bad());
    }
    EnvFilter::try_new(text).map_err(|_| bad())
}

/// Sets the log up for this process.
pub fn init(filter: &str, json: bool) -> Result<LogFilter, LogError> {
    let (filter, handle) = reload::Layer::<EnvFilter, Registry>::new(parse(filter)?);
    let registry = tracing_subscriber::registry().with(filter);
    if json {
        registry.with(fmt::layer().json().with_writer(std::io::stderr)).try_init()?;
    } else {
        let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
        registry.with(fmt::layer().with_ansi(ansi).with_writer(std::io::stderr)).try_init()?;
    }
    Ok(LogFilter { set: Arc::new(move |filter| handle.reload(filter).map_err(|e| e.to_string())) })
}

impl LogFilter {
    /// Replaces the filter.
    pub fn set(&self, text: &str) -> Result<(), String> {
        (self.set)(parse(text).map_err(|e| e.to_string())?)?;
        tracing::info!(filter = text, "log filter replaced");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked() {
        for good in ["info", "mesh_agent=debug,warn"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["", "  ", "mesh_agent=loud"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
