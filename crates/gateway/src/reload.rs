//! `Reloader`: reads the configuration again and puts it in force, whole or not at all.
//!
//! Flags and environment stay as at the start. Only files can change: the configuration file, and the keys and
//! certificates that it and the flags name. All of it is read and checked before anything is replaced. Streams keep
//! their permissions.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fair::Quotas;
use prometheus::{Gauge, IntGauge, Registry};
use tokio::sync::Notify;

use crate::{
    Invocation,
    access::{
        Access, ForwardAuth, Keys, MAX_REFUSED_TOKENS, Origins, Own, REFUSED_TOKENS_PERIOD,
        Refresh, TicketLookup, Verifier,
    },
    alarm::Alarm,
    aside::Aside,
    config::{JwtKeys, Rules, Sections},
    http::Front,
    tls::Tls,
};

/// Longest wait for a backend that is asked for keys or for an authorization.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// The part of the access rules that stays the same over a reload.
pub(crate) struct Fixed {
    tickets: Arc<dyn TicketLookup>,
    pub(crate) origins: Origins,
    pub(crate) own: Option<Own>,
    /// Refused tokens of each address.
    refusals: Arc<Quotas<IpAddr>>,
    /// For the backends that authorize requests. None until there is one, because the client needs the system's
    /// certificates, and a small image may lack them.
    client: Option<reqwest::Client>,
}

/// Reads the configuration again on request.
pub(crate) struct Reloader {
    pub(crate) front: Arc<Front>,
    pub(crate) tls: Option<Tls>,
    pub(crate) redis: broker::Renewal,
    pub(crate) fixed: Fixed,
    /// The configuration file that is in force.
    pub(crate) sections: Sections,
    /// The greatest number of a publisher so far.
    pub(crate) publishers: usize,
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

impl Fixed {
    pub(crate) fn new(
        tickets: Arc<dyn TicketLookup>,
        origins: Origins,
        own: Option<Own>,
        client: Option<reqwest::Client>,
    ) -> Self {
        let refusals = Quotas::new(MAX_REFUSED_TOKENS, REFUSED_TOKENS_PERIOD);
        Self {
            tickets,
            origins,
            own,
            refusals: Arc::new(refusals),
            client,
        }
    }

    /// Builds `Access`, and the task that keeps the keys up to date. Both belong to the runtime of the caller. A part
    /// of `before` with the same backend and settings is kept, with its keys or its cached answers.
    pub(crate) fn access(
        &mut self,
        rules: Rules,
        before: Option<&Access>,
    ) -> Result<(Access, Option<Refresh>), String> {
        if rules.ask_backends() && self.client.is_none() {
            let client = client();
            let client = client.map_err(|error| format!("cannot make requests over HTTP: {error}"));
            self.client = Some(client?);
        }
        let client = || self.client.clone().expect("it is there where it is needed");
        let mut refresh = None;
        let local_only = rules.is_default();
        let jwt = rules.jwt.map(|(config, keys)| {
            let keys = match keys {
                JwtKeys::Fixed(keys) => Keys::fixed(keys),
                JwtKeys::File(path, keys) => {
                    let (keys, again) = Keys::of_file(path, keys);
                    refresh = Some(again);
                    keys
                }
                JwtKeys::Url(url) => {
                    let known = before.and_then(|before| before.jwt.as_ref()?.keys_of(&url));
                    known.unwrap_or_else(|| {
                        let (keys, again) = Keys::of_url(url, client());
                        refresh = Some(again);
                        keys
                    })
                }
            };
            Verifier::new(config, keys)
        });
        let forward = rules.forward.map(|config| {
            let known = before.and_then(|before| before.forward.clone());
            let known = known.filter(|forward| forward.is_of(&config));
            known.unwrap_or_else(|| Arc::new(ForwardAuth::new(config, client())))
        });
        let access = Access {
            local_only,
            public: rules.public,
            jwt,
            forward,
            publishers: rules.publishers,
            tickets: Arc::clone(&self.tickets),
            aside: Aside::here(),
            origins: self.origins.clone(),
            refusals: Arc::clone(&self.refusals),
            own: self.own.clone(),
        };
        Ok((access, refresh))
    }
}

/// Makes requests to backends.
pub(crate) fn client() -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .timeout(ASK_TIMEOUT)
        // A redirect is no answer.
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
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
        let mut rules = config.rules;
        let before = self.front.access.get();
        self.publishers = rules.keep_numbers(&before.publishers, self.publishers);
        let (access, refresh) = self.fixed.access(rules, Some(&before))?;
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
        self.front.access.set(access);
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
