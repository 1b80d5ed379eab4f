//! `Reloader`: reads the configuration again and puts it in force, whole or not at all.
//!
//! Flags and environment stay as at the start. Only files can change: the configuration file, and the keys and
//! certificates that it and the flags name. All of it is read and checked before anything is replaced. Streams keep
//! their permissions.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus::{Gauge, IntGauge, Registry};
use tokio::sync::Notify;

use crate::{Invocation, alarm::Alarm, config::Sections, http::AppState, tls::Tls};

/// Reads the configuration again on request.
pub(crate) struct Reloader {
    pub(crate) app_state: Arc<AppState>,
    pub(crate) tls: Option<Tls>,
    pub(crate) redis: broker::Renewal,
    pub(crate) access: access::Builder,
    /// The configuration file that is in force.
    pub(crate) sections: Sections,
    pub(crate) metrics: ReloadMetrics,
    pub(crate) alarm: Alarm,
}

/// Whether the last reload succeeded.
#[derive(Clone, Debug)]
pub(crate) struct ReloadMetrics {
    succeeded: IntGauge,
    at: Gauge,
}

impl ReloadMetrics {
    pub(crate) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let succeeded = IntGauge::new(
            "sse_gateway_config_last_reload_successful",
            "1 if the configuration in force is the one that was read last, 0 if that was wrong and the one before stays",
        )?;
        let at = Gauge::new(
            "sse_gateway_config_last_reload_success_timestamp_seconds",
            "When the configuration in force was read, in seconds since 1970",
        )?;
        registry.register(Box::new(succeeded.clone()))?;
        registry.register(Box::new(at.clone()))?;
        let new = Self { succeeded, at };
        new.succeed();
        Ok(new)
    }

    fn succeed(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        self.at.set(now.unwrap_or_default().as_secs_f64());
        self.succeeded.set(1);
    }
}

impl Reloader {
    /// Reloads whenever it is notified, as long as the process lives.
    pub(crate) async fn run(mut self, wanted: Arc<Notify>) {
        loop {
            wanted.notified().await;
            match self.reload().await {
                Ok(changed) => {
                    self.metrics.succeed();
                    tracing::info!(changed, "configuration reloaded");
                }
                Err(error) => {
                    self.metrics.succeeded.set(0);
                    tracing::error!(
                        error,
                        "failed to reload the configuration: the one before stays in force"
                    );
                }
            }
        }
    }

    /// Answers which parts of the file have changed.
    async fn reload(&mut self) -> Result<String, String> {
        let config = match Invocation::from_args().map_err(|error| error.to_string())? {
            Invocation::Serve(config) => *config,
            // The arguments are those of the start.
            _ => return Ok(String::new()),
        };
        for doubt in &config.doubts {
            tracing::warn!("{doubt}");
        }
        let before = self.app_state.access.get();
        let (access, refresh) = self.access.build(config.access, Some(&before))?;
        let refresh = match refresh {
            Some(mut refresh) => {
                // A new set of keys that cannot be fetched would lock everyone out.
                refresh.first().await?;
                Some(refresh)
            }
            None => None,
        };
        let certificate = match &self.tls {
            Some(tls) => Some(
                tls.read()
                    .map_err(|error| format!("--tls-certificate, --tls-key: {error}"))?,
            ),
            None => None,
        };
        let redis = self.redis.set_certificates(&config.broker.redis);
        redis.map_err(|error| error.to_string())?;
        // Nothing fails from here on.
        if let (Some(tls), Some(certificate)) = (&self.tls, certificate) {
            tls.set(certificate);
        }
        self.app_state.access.set(access);
        if let Some(refresh) = refresh {
            self.alarm.watch("the refresh of keys", refresh.run());
        }
        let changed = self.sections.changed(&config.sections);
        let rules_changed = changed.contains(&"channels");
        self.sections = config.sections;
        if rules_changed && let Err(error) = self.redis.set_rules(&config.broker.rules).await {
            tracing::warn!(%error, "redis does not take the new rules of [[channels]] now: they are sent when it is back");
        }
        Ok(changed.join(", "))
    }
}
