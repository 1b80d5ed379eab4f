//! The console at `/`: one page to watch, publish, cut and resume streams during development.

use std::{net::IpAddr, sync::Arc};

use access::Secret;
use axum::{
    Router, extract,
    http::{HeaderMap, StatusCode, header, uri::Authority},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing,
};
use clap::builder::BoolishValueParser;
use serde::Deserialize;

use crate::invalid::Invalid;

const PAGE: &str = include_str!("../console.html");
/// Elements of the page that only a demonstration fills.
const TOKEN: &str = r#"<meta name="publish-token" content="">"#;
const KILL: &str = r#"<meta name="kill" content="off">"#;
/// The command with which a backend publishes. The channel's name follows.
const PUBLISH: &str = r#"<meta name="publish" content="redis-cli PUBLISH sse:">"#;
/// The page contains all that it needs, and may connect only to its own gateway.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Flags about the page.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(crate) struct ConsoleFlags {
    /// A page at / to watch, publish, cut and resume streams during development.
    #[arg(
        long,
        env = "SSE_GATEWAY_CONSOLE",
        value_parser = BoolishValueParser::new()
    )]
    console: bool,

    /// The page at / knows the publish token, and can kill the replica: for ./dev up.
    #[arg(
        long,
        env = "SSE_GATEWAY_CONSOLE_DEMO",
        hide = true,
        value_parser = BoolishValueParser::new()
    )]
    console_demo: bool,
}

impl ConsoleFlags {
    /// The page, if there is one. `token` is that of publishers.
    pub(crate) fn into_console(
        self,
        broker: &broker::Config,
        token: Option<Secret>,
        is_loopback: bool,
    ) -> Result<Option<Console>, Invalid> {
        if self.console_demo && !is_loopback {
            return Err(
                "--console-demo gives the token of publishers to whoever looks: it needs a loopback address"
                    .into(),
            );
        }
        let demo = self.console_demo.then(|| Demo {
            token,
            replica: broker.replica.as_str().into(),
            redis_port: broker.redis.plain_port(),
        });
        Ok((self.console || self.console_demo).then(|| Console {
            prefix: broker.prefix.clone(),
            demo,
        }))
    }
}

/// Settings of the page.
#[derive(Clone, Debug)]
pub(crate) struct Console {
    /// The prefix of raw channels.
    prefix: String,
    /// Set if the page may do more than any client.
    demo: Option<Demo>,
}

/// For `./dev up`: the console knows the publish token, and may end the replica as if it was killed.
#[derive(Clone, Debug)]
struct Demo {
    token: Option<Secret>,
    replica: Arc<str>,
    /// The port of Redis on this machine.
    redis_port: Option<u16>,
}

#[derive(Deserialize)]
struct Victim {
    replica: String,
}

impl Console {
    pub(crate) fn router(self) -> Router {
        let page: Arc<str> = self.page().into();
        let show = async move || {
            let headers = [
                (header::CONTENT_SECURITY_POLICY, POLICY),
                (header::CACHE_CONTROL, "no-store"),
                (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
                (header::REFERRER_POLICY, "no-referrer"),
            ];
            (headers, Html(page.to_string()))
        };
        let router = Router::new().route("/", routing::get(show));
        let Some(Demo { replica, .. }) = self.demo else {
            return router;
        };
        let kill = async move |headers: HeaderMap,
                               extract::Query(victim): extract::Query<Victim>| {
            // Another site's page cannot send this header without asking first (CORS).
            if headers.get("x-console").is_none_or(|value| value != "kill") {
                return StatusCode::FORBIDDEN.into_response();
            }
            if *victim.replica != *replica {
                // The balancer sent the request to another replica.
                return StatusCode::CONFLICT.into_response();
            }
            tracing::warn!("killed from the console");
            std::process::abort();
        };
        let router = router.route("/console/kill", routing::post(kill));
        router.layer(middleware::from_fn(at_home))
    }

    fn page(&self) -> String {
        let port = self.demo.as_ref().and_then(|demo| demo.redis_port);
        let port = port.map_or(String::new(), |port| format!(" -p {port}"));
        let publish = format!("redis-cli{port} PUBLISH {}", self.prefix);
        let page = fill(PAGE, PUBLISH, "redis-cli PUBLISH sse:", &publish);
        let Some(demo) = &self.demo else {
            return page;
        };
        let page = fill(&page, KILL, "off", "on");
        match &demo.token {
            Some(token) => fill(&page, TOKEN, "", token.as_str()),
            None => page,
        }
    }
}

/// Replaces the content of a `meta` element of the page.
fn fill(page: &str, meta: &str, old: &str, new: &str) -> String {
    let new = new
        .replace('&', "&amp;")
        .replace('"', "&quot;")
        .replace('<', "&lt;");
    let filled = meta.replace(&format!("content=\"{old}\""), &format!("content=\"{new}\""));
    page.replace(meta, &filled)
}

/// Refuses requests to a foreign host name. The owner of a site can let its name resolve to this machine. A browser
/// then takes the site's page for one of the same origin, so that page could read the token.
async fn at_home(request: extract::Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    if host.is_some_and(|host| is_home(host.host())) {
        return next.run(request).await;
    }
    let hint = "this console is for this machine: open it as localhost, or by an address\n";
    (StatusCode::MISDIRECTED_REQUEST, hint).into_response()
}

fn is_home(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_demonstration_has_a_token_and_can_kill() {
        let mut console = Console {
            prefix: "sse:".to_owned(),
            demo: None,
        };
        let plain = console.page();
        assert!(
            [TOKEN, KILL, PUBLISH]
                .iter()
                .all(|meta| plain.contains(meta))
        );
        console.demo = Some(Demo {
            token: Some(Secret::from("\"><b>&")),
            replica: "r".into(),
            redis_port: Some(18080),
        });
        let page = console.page();
        assert!(page.contains(r#"<meta name="publish-token" content="&quot;>&lt;b>&amp;">"#));
        assert!(page.contains(r#"<meta name="kill" content="on">"#));
        assert!(page.contains(r#"content="redis-cli -p 18080 PUBLISH sse:">"#));
    }
}
